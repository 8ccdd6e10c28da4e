"""Adapters are added to what the source stores, at its full width, whatever dtype training computed in."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from omni_jax.config_json import config_to_dict
from omni_jax.interop.restore import load_checkpoint_info, restore_leaves
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.checkpoints_model import save_model
from omni_jax.training.lora import LoraConfig
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.step import Trainer
from omni_jax.training.thinker_task import ThinkerTask
from tests.training.random_batches import random_params

LORA = LoraConfig(("^thinker/layers/(attention/(query|out)|mlp/down)/", "^thinker/embed/"), rank=2, alpha=3.0)
# path -> its matrices' axes: stacked, inputs
ADAPTED = {
    "thinker/layers/attention/query/kernel": (1, 2),
    "thinker/layers/attention/out/kernel": (1, 3),
    "thinker/layers/mlp/down/kernel": (1, 2),
    "thinker/embed/embedding": (0, 1),
}


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("compute", [jnp.float32, jnp.bfloat16])
def test_what_is_exported_is_the_sum_in_the_dtype_of_the_source(tmp_path, stored, compute):
    config, mesh = preset("tiny"), make_mesh(jax.devices()[:1])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, stored), random_params(config, ("thinker",)))
    source = tmp_path / "source"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(source / "params", args=ocp.args.PyTreeSave(params))
    (source / "config.json").write_text(json.dumps(config_to_dict(config)))

    task = ThinkerTask(config, audio=False, vision=False, dtype=compute)
    trainer = Trainer(config, task, OptimizerConfig(), mesh, lora=LORA, dtype=compute)
    assert trainer.adapted == set(ADAPTED)
    state = trainer.start(params)
    rng = np.random.default_rng(0)
    learnt = {path: jnp.asarray(0.1 * rng.normal(size=state.params[path].shape), "float32") for path in trainer.trained}
    state = state.replace(params=state.params | learnt)
    changes = {path: partial(trainer.with_adapter, state, path) for path in trainer.adapted}
    written = dict(source=source, mesh=mesh, untouched=trainer.untouched, changes=changes, about={})
    save_model(tmp_path / "model", trainer.kept(state), config, **written)

    before, after = (
        restore_leaves(info, list(info.shapes)) for info in map(load_checkpoint_info, (source, tmp_path / "model"))
    )
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        assert after[path].dtype == leaf.dtype == stored, path
        if path not in ADAPTED:
            assert after[path].tobytes() == leaf.tobytes(), path
            continue
        stack, split = ADAPTED[path]
        inner, outer = (np.asarray(learnt[f"lora/{path}/{side}"], np.float64) for side in ("lora_in", "lora_out"))
        shape = leaf.shape[:stack], int(np.prod(leaf.shape[stack:split])), int(np.prod(leaf.shape[split:]))
        change = inner.reshape(*shape[0], shape[1], 2) @ outer.reshape(*shape[0], 2, shape[2])
        exact = leaf.astype(np.float64) + 1.5 * change.reshape(leaf.shape)
        # half a unit in the last place, and the rounding of a sum of few float32 products
        tolerance = np.abs(exact) * float(jnp.finfo(stored).eps) / 2 + 1e-6
        assert (np.abs(after[path].astype(np.float64) - exact) <= tolerance).all(), path
