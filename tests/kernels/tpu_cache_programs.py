"""Cache attention at the sizes of the 7B model, compiled for a TPU by tpu_kernels.py."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from omni_jax.kernels.cache_attention import cache_attention

CASES = {  # rows, new tokens, query heads, kv heads, layers, slots, dtype, chips that share the heads
    "Thinker token": (1, 1, 28, 4, 28, 32768, "bfloat16", 1),
    "Thinker token, 8 rows on 4 chips": (8, 1, 28, 4, 28, 32768, "bfloat16", 4),
    "Thinker chunk": (1, 512, 28, 4, 28, 32768, "bfloat16", 1),
    "Talker token": (1, 1, 12, 4, 24, 32768, "bfloat16", 1),
    "Talker chunk of odd length, float32": (2, 50, 12, 4, 24, 5000, "float32", 1),
}
REPRESENTATIVE = ("Thinker token", "Thinker chunk")


def compile_cases(devices, names) -> dict[str, dict]:
    """What came out of each named case, for an assumed target."""
    results = {}
    for name in names:
        batch, length, heads, kv_heads, layers, slots, dtype, chips = CASES[name]
        mesh = Mesh(np.array(devices[:chips]), ("model",))
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
    return results
