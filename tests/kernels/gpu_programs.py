"""Compiles the GPU kernels for an H100 at the sizes of the 7B model; prints what came out as JSON.

PYTHONPATH=compilers:. python tests/kernels/gpu_programs.py
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from omni_jax import compilation
from omni_jax.kernels.cache_attention import cache_attention
from omni_jax.kernels.interval_attention.gpu import interval_attention_gpu
from omni_jax.kernels.target import Target, assume_target

INTERVAL = {  # length, query heads, kv heads, head size, dtype
    "causal 8k": (8192, 28, 4, 128, "bfloat16"),
    "causal 32k": (32768, 28, 4, 128, "bfloat16"),
    "Talker 8k": (8192, 12, 4, 128, "bfloat16"),
    "audio": (3000, 20, 20, 64, "bfloat16"),
    "vision": (4096, 16, 16, 80, "bfloat16"),
    "DiT": (3000, 16, 16, 64, "bfloat16"),
    "DiT, float32": (1000, 16, 16, 64, "float32"),
}
CACHE = {  # new tokens, query heads, kv heads, layers
    "Thinker token": (1, 28, 4, 28),
    "Thinker chunk": (512, 28, 4, 28),
    "Talker token": (1, 12, 4, 24),
    "Talker chunk": (512, 12, 4, 24),
}
SLOTS = 32768


def main() -> None:
    config = (Path(compilation.__path__[0]) / "h100_target_config.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x1", target_config=config)
    mesh = Mesh(np.array(topology.devices[:1]), ("model",))
    whole = NamedSharding(mesh, jax.P())

    def compile_it(function, *shapes):
        began = time.perf_counter()
        shapes = [jax.ShapeDtypeStruct(*each) for each in shapes]
        program = jax.jit(function, in_shardings=whole).lower(*shapes).compile()
        text = program.as_text()
        names = ("interval_attention_forward", "interval_attention_backward_query",
                 "interval_attention_backward_key_value", "cache_attention")  # fmt: skip
        return {
            "kernels": [name for name in names if name in text and "triton" in text],
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            "seconds": round(time.perf_counter() - began, 1),
        }

    def forward_and_backward(query, key, value, start, stop, d_out):
        out, pull = jax.vjp(lambda *qkv: interval_attention_gpu(*qkv, start, stop), query, key, value)
        return out, pull(d_out)

    def over_layers(query, key, value, start):
        """Attention of every layer in turn, as a decoder that scans over its layers does; under shard_map."""
        cache, heads = jax.P(None, None, "model"), jax.P(None, None, "model")

        def layers(query, key, value, start):
            def layer(x, index):
                return cache_attention(x, key, value, index, start), None

            return jax.lax.scan(layer, query, jnp.arange(key.shape[0]))[0]

        specs = dict(in_specs=(heads, cache, cache, jax.P()), out_specs=heads)
        return jax.shard_map(layers, mesh=mesh, **specs)(query, key, value, start)

    def sharded(query, key, value, start, stop, d_out):
        heads = jax.P(None, "model")
        specs = dict(in_specs=(heads, heads, heads, jax.P(), jax.P(), heads), out_specs=(heads, (heads,) * 3))
        return jax.shard_map(forward_and_backward, mesh=mesh, **specs)(query, key, value, start, stop, d_out)

    results = {}
    with assume_target(Target.of(topology.devices[0])):
        for name, (length, heads, kv_heads, width, dtype) in INTERVAL.items():
            query, key = ((length, each, width) for each in (heads, kv_heads))
            rows = ((length,), jnp.int32)
            shapes = [(query, dtype), (key, dtype), (key, dtype), rows, rows, (query, dtype)]
            function = sharded if name == "Talker 8k" else forward_and_backward
            results[name] = compile_it(function, *shapes)
        for name, (length, heads, kv_heads, layers) in CACHE.items():
            cache = (layers, 1, kv_heads, SLOTS, 128), jnp.bfloat16
            results[name] = compile_it(
                over_layers, ((1, length, heads, 128), jnp.bfloat16), cache, cache, ((1,), jnp.int32)
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
