"""Interval attention at the sizes of the 7B model, compiled for a TPU by tpu_kernels.py."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from omni_jax.kernels.interval_attention import interval_attention

CASES = {  # positions, query heads, kv heads, head size, reach, gradients too, chips that share the heads
    "Thinker, 32,768 tokens": (32768, 28, 4, 128, None, True, 1),
    "Thinker, 8,192 tokens on 4 chips": (8192, 28, 4, 128, None, False, 4),
    "Talker, 8,192 tokens": (8192, 12, 4, 128, None, True, 1),
    "audio, 60 s": (3000, 20, 20, 64, 100, True, 1),
    "vision, windows of 4,096 patches": (4096, 16, 16, 80, 64, True, 1),
    "vision, 4 frames of 1,024 patches": (4096, 16, 16, 80, None, True, 1),
    "vision, frames of 113,152 patches": (113152, 16, 16, 80, None, True, 1),  # 97,682 pairs, at the limit
    "DiT, 96 frames": (96, 16, 16, 64, 48, True, 1),
    "DiT, 3,000 frames": (3000, 16, 16, 64, 48, False, 1),
}
# one of the long kernels, and one of the short with heads that straddle registers
REPRESENTATIVE = ("Thinker, 32,768 tokens", "vision, windows of 4,096 patches")


def compile_cases(devices, names) -> dict[str, dict]:
    """What came out of each named case, for an assumed target."""
    results = {}
    for name in names:
        length, heads, kv_heads, head_dim, reach, gradients, chips = CASES[name]
        mesh = Mesh(np.array(devices[:chips]), ("model",))
        specs = dict(in_specs=(jax.P(None, "model"),) * 3 + (jax.P(),) * 2, out_specs=jax.P(None, "model"))

        @jax.shard_map(mesh=mesh, **specs)
        def attend(query, key, value, start, stop, reach=reach):
            return interval_attention(query, key, value, start, stop, reach=reach)

        def whole(query, key, value, start, stop, attend=attend, gradients=gradients, head_dim=head_dim):
            """From the columns that projections give, and back to columns."""
            query, key, value = (x.reshape(x.shape[0], -1, head_dim) for x in (query, key, value))
            if not gradients:
                return attend(query, key, value, start, stop).reshape(query.shape[0], -1)
            out, pull = jax.vjp(lambda *qkv: attend(*qkv, start, stop), query, key, value)
            return jax.tree.map(lambda x: x.reshape(x.shape[0], -1), (out, pull(out)))

        def array(shape, dtype, *axes, mesh=mesh):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, jax.P(*axes)))

        query = array((length, heads * head_dim), jnp.bfloat16, None, "model")
        key = array((length, kv_heads * head_dim), jnp.bfloat16, None, "model")
        bounds = array((length,), jnp.int32)
        began = time.perf_counter()
        program = jax.jit(whole).lower(query, key, key, bounds, bounds).compile()
        results[name] = {
            "kernels": program.as_text().count('custom_call_target="tpu_custom_call"'),
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            "seconds": round(time.perf_counter() - began, 1),
        }
    return results
