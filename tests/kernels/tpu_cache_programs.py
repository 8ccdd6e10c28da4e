"""Compiles cache attention for one TPU generation at the sizes of the 7B model; prints what came out as JSON.

PYTHONPATH=compilers:. python tests/kernels/tpu_cache_programs.py v5e:2x4
"""

import json
import os
import sys
import time

os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from omni_jax.kernels.cache_attention import cache_attention
from omni_jax.kernels.target import Target, assume_target

CASES = {  # rows, new tokens, query heads, kv heads, layers, slots, dtype, chips that share the heads
    "Thinker token": (1, 1, 28, 4, 28, 32768, "bfloat16", 1),
    "Thinker token, 8 rows on 4 chips": (8, 1, 28, 4, 28, 32768, "bfloat16", 4),
    "Thinker chunk": (1, 512, 28, 4, 28, 32768, "bfloat16", 1),
    "Talker token": (1, 1, 12, 4, 24, 32768, "bfloat16", 1),
    "Talker chunk of odd length, float32": (2, 50, 12, 4, 24, 5000, "float32", 1),
}


def main() -> None:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
    results = {}
    with assume_target(Target.of(topology.devices[0])):
        for name, (batch, length, heads, kv_heads, layers, slots, dtype, chips) in CASES.items():
            mesh = Mesh(np.array(topology.devices[:chips]), ("model",))
            of_heads, of_cache = jax.P(None, None, "model"), jax.P(None, None, "model")

            def decode(query, key, value, start):
                """Three steps of a loop on the device, each over all layers."""

                def layer(x, index, start):
                    return cache_attention(x, key, value, index, start)

                def step(carry):
                    count, x = carry
                    scanned = jax.lax.scan(
                        lambda x, index: (layer(x, index, start + count), None), x, jnp.arange(key.shape[0])
                    )
                    return count + 1, scanned[0]

                return jax.lax.while_loop(lambda carry: carry[0] < 3, step, (jnp.int32(0), query))[1]

            specs = dict(in_specs=(of_heads, of_cache, of_cache, jax.P()), out_specs=of_heads)
            function = jax.shard_map(decode, mesh=mesh, **specs)
            cache = jax.ShapeDtypeStruct(
                (layers, batch, kv_heads, slots, 128), dtype, sharding=NamedSharding(mesh, of_cache)
            )
            query = jax.ShapeDtypeStruct((batch, length, heads, 128), dtype, sharding=NamedSharding(mesh, of_heads))
            start = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=NamedSharding(mesh, jax.P()))
            began = time.perf_counter()
            program = jax.jit(function).lower(query, cache, cache, start).compile()
            results[name] = {
                "kernel": "tpu_custom_call" in program.as_text(),
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                "layer_bytes": batch * kv_heads // chips * slots * 128 * jnp.dtype(dtype).itemsize,
                "seconds": round(time.perf_counter() - began, 1),
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
