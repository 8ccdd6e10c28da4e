"""Run by test_hosts.py in one process of eight devices, and in two of four: trains, samples, prints what came out."""

import json
import sys

import jax
import numpy as np

from input_pipeline.training_batch import RowShape
from omni_jax.config_json import read_config
from omni_jax.interop.restore import restore_params
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sampling.load import load_sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sharding.hosts import own_rows, start
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import TRAINING, shardings
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_hosts import gathered
from omni_jax.training.step import Trainer
from omni_jax.training.thinker_task import ThinkerTask
from tests.training.random_batches import random_batch


def main(checkpoint: str) -> None:
    process, processes = start()
    assert start() == (process, processes)  # twice does no harm
    config = read_config(checkpoint)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert len(mesh.local_devices) * processes == 8

    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, epsilon=1e-5)
    trainer = Trainer(config, ThinkerTask(config, audio=False, vision=False, chunk=8), optimizer, mesh)
    placement = shardings(*logical_axes(config, ("thinker",)), mesh, TRAINING)
    params = restore_params(checkpoint, config, shardings=placement, components=("thinker",), dtype=np.float32)
    kernel = params["thinker"]["layers"]["mlp"]["up"]["kernel"]
    held = sum(shard.data.size for shard in kernel.addressable_shards)
    state = trainer.start(params)

    rows = own_rows(8, mesh)
    whole = random_batch(config, 8, RowShape(tokens=32))
    batch = trainer.put(jax.tree.map(lambda x: x[rows], whole))  # a host loads its own rows and no others
    losses = []
    for _ in range(2):
        state, metrics = trainer(state, batch)
        losses.append(float(metrics["loss"]))

    sampler = load_sampler(checkpoint, mesh=mesh, chunk=64)
    requests = [
        sampler.prepare([{"role": "user", "content": [{"type": "text", "text": text}]}]) for text in ("Hello.", "Why?")
    ]
    answers = [answer.token_ids for answer in sampler.generate(requests, SamplingOptions(max_new_tokens=10))]
    result = {"rows": [rows.start, rows.stop], "held": held / kernel.size, "losses": losses, "answers": answers}
    result |= {"gathered": gathered({"process": process, "longer": process * "é"})}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
