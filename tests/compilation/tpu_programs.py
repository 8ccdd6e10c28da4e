"""Small programs whose traffic is known by hand, compiled for TPU v5e; prints their HLO text as one JSON object.

Run by `test_traffic.py` in a process of its own, which has the compiler.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LAYERS, WIDTH, SLOTS = 6, 4096, 65536
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
one = NamedSharding(Mesh(np.array(topology.devices[:1]), ("x",)), PartitionSpec())
four = Mesh(np.array(topology.devices), ("x",))


def shape(*dims, dtype=jnp.bfloat16, sharding=one):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def scanned_stack(weights, x):
    return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, weights)[0]


def scanned_int8(weights, x):
    """Weights that are converted on their way into the product."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w.astype(jnp.bfloat16)), None), x, weights)[0]


def decoding(weights, cache, x, steps):
    """Each step multiplies by all weights and writes one slot of the cache, in place."""

    def step(carry):
        index, cache, x = carry
        x = jnp.tanh(x @ weights)
        return index + 1, jax.lax.dynamic_update_slice(cache, x[None], (index, 0, 0)), x

    return jax.lax.while_loop(lambda carry: carry[0] < steps, step, (jnp.int32(0), cache, x))[1:]


def summed(x):
    return jax.shard_map(
        lambda x: jax.lax.psum(x, "x"), mesh=four, in_specs=PartitionSpec("x"), out_specs=PartitionSpec()
    )(x)


def gathered(x):
    gather = lambda x: jax.lax.all_gather(x, "x", tiled=True)  # noqa: E731
    return jax.shard_map(gather, mesh=four, in_specs=PartitionSpec("x"), out_specs=PartitionSpec(), check_vma=False)(x)


def picked(stack, index):
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False) * 2


def _kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2


def first_rows(cost):
    """A kernel that reads the first 256 rows of a long array."""

    def run(x):
        call = pl.pallas_call(
            _kernel,
            grid=(1,),
            in_specs=[pl.BlockSpec((256, 1024), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((256, 1024), lambda i: (0, 0)),
            out_shape=jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16),
            name="first_rows",
            cost_estimate=cost,
        )
        return call(x)

    return run


def called(x):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


split = NamedSharding(four, PartitionSpec("x"))
rows = shape(8 * 4, 4096, 128, dtype=jnp.float32, sharding=split)
PROGRAMS = {
    "scanned_stack": (scanned_stack, (), (shape(LAYERS, WIDTH, WIDTH), shape(8, WIDTH))),
    "scanned_int8": (scanned_int8, (), (shape(LAYERS, WIDTH, WIDTH, dtype=jnp.int8), shape(8, WIDTH))),
    "decoding": (
        decoding,
        (1,),
        (shape(WIDTH, WIDTH), shape(SLOTS, 8, WIDTH), shape(8, WIDTH), shape(dtype=jnp.int32)),
    ),
    "summed": (summed, (), (rows,)),
    "gathered": (gathered, (), (rows,)),
    "picked": (picked, (), (shape(32, 4096, 4096), shape(dtype=jnp.int32))),
    "kernel": (first_rows(None), (), (shape(65536, 1024),)),
    "kernel_with_cost": (
        first_rows(pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=4 * 256 * 1024)),
        (),
        (shape(65536, 1024),),
    ),
}

if __name__ == "__main__":
    texts = {}
    for name, (function, donated, arguments) in PROGRAMS.items():
        texts[name] = jax.jit(function, donate_argnums=donated).lower(*arguments).compile().as_text()
    print("PROGRAMS " + json.dumps(texts))
