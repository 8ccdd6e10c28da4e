"""Run by the tests of the training step in a process of eight devices: compares meshes with a single device.

Each line printed: logits (of plain text), losses, and parameters after two steps within 1e-5, and moments split as
parameters are.
"""

import os
import subprocess
import sys
from dataclasses import replace

from tests.processes import on_devices


def run_on_eight_devices(kind: str) -> list[str]:
    """What this file prints for "text" or "media"."""
    environment = os.environ | on_devices(8)
    command = [sys.executable, "-m", "tests.training.eight_devices", kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def main(kind: str) -> None:
    import jax
    import numpy as np

    from input_pipeline.training_batch import RowShape
    from omni_jax.errors import ShardingError
    from omni_jax.models.thinker import Thinker
    from omni_jax.presets import preset
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.sharding.rules import TRAINING
    from omni_jax.sharding.scope import on_mesh
    from omni_jax.training.lora import LoraConfig
    from omni_jax.training.optimizer import OptimizerConfig
    from omni_jax.training.step import Trainer
    from omni_jax.training.thinker_task import ThinkerTask
    from tests.training.random_batches import random_batch, random_params

    config, media = preset("tiny"), kind == "media"
    shape = RowShape(tokens=64, audio_blocks=1, patches=64) if media else RowShape(tokens=64)
    task = ThinkerTask(config, audio=media, vision=media, chunk=8)
    params, batch = random_params(config, task.components), random_batch(config, 8, shape)
    # the true gradient of a key's bias is zero: an epsilon above its rounding error keeps Adam from blowing it up
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, epsilon=1e-5)

    def logits_of(trainer, state, placed):
        if media or trainer.accumulate > 1:
            return np.zeros(1)
        thinker = {"params": trainer.merged(state)["thinker"]}
        positions = np.moveaxis(batch.position_ids, 1, 0)
        with on_mesh(trainer.mesh, TRAINING):
            apply = jax.jit(Thinker(config.thinker_config.text_config).apply)
            logits = apply(thinker, placed.token_ids, positions, placed.segment_ids)
        return np.asarray(logits) * (batch.segment_ids > 0)[..., None]

    def run(mesh, optimizer=optimizer, **options):
        trainer = Trainer(config, task, optimizer, mesh, **options)
        state, placed, losses = trainer.start(params), trainer.put(batch), []
        moments = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim > 1]
        whole = {leaf.sharding.shard_shape(leaf.shape) == leaf.shape for leaf in moments}
        logits = logits_of(trainer, state, placed)
        for _ in range(2):
            state, metrics = trainer(state, placed)
            losses.append(float(metrics["loss"]))
        return losses, jax.tree.map(np.asarray, state.params), whole, logits

    def compare(one, sizes, **options):
        many = run(make_mesh(**sizes), **options)
        worst = max(np.abs(one[1][path] - many[1][path]).max() for path in one[1])
        split = many[2] == {True} if sizes == {"data": 8} else False in many[2]
        same = np.abs(one[3] - many[3]).max() < 1e-5
        print(same, np.allclose(one[0], many[0], atol=1e-5, rtol=0), worst < 1e-5, split, flush=True)

    alone = make_mesh(jax.devices()[:1])
    one = run(alone)
    if media:
        for sizes in ({"fsdp": 4, "tensor": 2}, {"fsdp": 2, "context": 4}):
            compare(one, sizes)
        return
    for sizes in ({"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "context": 4}):
        compare(one, sizes)
    adapted = {"lora": LoraConfig(rank=2), "accumulate": 2}
    compare(run(alone, **adapted), {"data": 2, "fsdp": 2, "tensor": 2}, **adapted)
    muon = {"optimizer": replace(optimizer, rule="muon")}
    compare(run(alone, **muon), {"fsdp": 4, "tensor": 2}, **muon)
    trainer = Trainer(config, task, optimizer, make_mesh(data=8))
    try:
        trainer.put(jax.tree.map(lambda x: x[:3], batch))
    except ShardingError as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1])
