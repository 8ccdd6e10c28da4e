"""Thinker and Talker over packed media on meshes: the same losses and gradients, and rows that stay where they are."""

import os
import subprocess
import sys
import textwrap

from tests.processes import on_devices

CODE = """
    import re, sys

    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from omni_jax.layers.linear import Linear
    from omni_jax.models.logical_axes import logical_axes
    from omni_jax.presets import preset
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.sharding.rules import TRAINING, partition_spec, shardings
    from omni_jax.sharding.scope import on_mesh
    from omni_jax.training.batches import batch_axes
    from omni_jax.training.talker_task import TalkerTask
    from tests.training.packed_batches import case, largest_difference, pack
    from tests.training.random_batches import random_params

    config = preset("tiny")
    task = TalkerTask(config, detach=False, text_weight=0.5, chunk=16, tasks=("read", "told"))
    params, (axes, shapes) = random_params(config, task.components), logical_axes(config, task.components)
    kinds = "", "audio", "image", "talking"
    batch = pack([[case(config, kind, seed=i, codes=(5,), task=i % 2), case(config, seed=9, codes=(3,))]
                  for i, kind in enumerate(kinds)], config)

    def loss(params, batch):
        losses = task.loss(params, batch)
        return losses.total.loss, losses

    def run(mesh):
        places = jax.tree.map(lambda names, _: NamedSharding(mesh, partition_spec(names, TRAINING)),
                              batch_axes(batch), batch, is_leaf=lambda node: isinstance(node, tuple))
        placed = jax.device_put((params, batch), (shardings(axes, shapes, mesh, TRAINING), places))
        with on_mesh(mesh, TRAINING):
            program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*placed).compile()
            out = jax.tree.map(np.asarray, program(*placed))
        return out, len(re.findall(r" all-gather(?:-start)?\\(", program.as_text()))

    one, _ = run(make_mesh(jax.devices()[:1]))
    for sizes in (dict(data=4), dict(fsdp=2, tensor=2, context=2)):
        mesh = make_mesh(jax.devices()[:4], **sizes) if "data" in sizes else make_mesh(**sizes)
        many, gathers = run(mesh)
        print(largest_difference(many, one) < 1e-5, "data" not in sizes or gathers == 0)

    # a product of rows whose sequence is split
    mesh, layer = make_mesh(fsdp=2, context=4), Linear((8,), (16,), ("embed", "mlp"))
    x = jax.device_put(np.ones((4, 32, 8), np.float32), NamedSharding(mesh, partition_spec(("batch", "length", None),
                                                                                           TRAINING)))
    kernel = jax.device_put(np.ones((8, 16), np.float32), NamedSharding(mesh, PartitionSpec()))
    with on_mesh(mesh, TRAINING):
        product = lambda kernel, x: (layer.apply({"params": {"kernel": kernel}}, x) ** 2).sum()
        program = jax.jit(jax.grad(product, (0, 1))).lower(kernel, x).compile()
    print("all-gather" not in program.as_text())
"""


def test_a_mesh_changes_neither_losses_nor_gradients_and_moves_no_rows():
    environment = os.environ | on_devices(8)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines() == ["True True", "True True", "True"]
