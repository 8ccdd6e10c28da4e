"""What weight-only int8 costs on the logits of a Thinker at published widths, with random weights.

    python benchmarks/int8_accuracy.py --preset qwen2.5-omni-3b --layers 4 --json

Weights are drawn as they are at initialisation. Trained weights have outliers that random ones lack, so take this as a
check of the arithmetic and of how error grows with depth, and measure your own checkpoint with
`Sampler.from_checkpoint(folder, weights="int8")`.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.layers.weight_only import quantise_params
from omni_jax.models.logical_axes import logical_axes
from omni_jax.models.thinker import Thinker
from omni_jax.presets import preset


def measure(name: str, layers: int, tokens: int) -> dict[str, float]:
    config = preset(name)
    text = dataclasses.replace(config.thinker_config.text_config, num_hidden_layers=layers)
    config = dataclasses.replace(config, thinker_config=dataclasses.replace(config.thinker_config, text_config=text))
    axes, shapes = logical_axes(config, ["thinker"])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(text.initializer_range)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    ids = jnp.asarray(rng.integers(0, text.vocab_size, (1, tokens)))
    positions = jnp.broadcast_to(jnp.arange(tokens), (3, 1, tokens))

    def logits(tree, dtype):
        model = Thinker(text, dtype=dtype)
        return np.asarray(jax.jit(model.apply)({"params": tree["thinker"]}, ids, positions), np.float64)[0]

    exact = logits(params, jnp.float32)
    forms = {"bfloat16": (jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params), jnp.bfloat16)}
    forms["int8"] = (quantise_params(params, axes), jnp.float32)
    out = {}
    for form, (tree, dtype) in forms.items():
        ours = logits(tree, dtype)
        log_exact, log_ours = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (exact, ours))
        out[form] = {
            "relative_error": float(np.linalg.norm(ours - exact) / np.linalg.norm(exact)),
            "largest_error": float(np.abs(ours - exact).max()),
            "kl_divergence": float(np.mean(np.sum(np.exp(log_exact) * (log_exact - log_ours), axis=-1))),
            "same_first_choice": float(np.mean(ours.argmax(-1) == exact.argmax(-1))),
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(tree)),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="qwen2.5-omni-3b")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for layers in args.layers:
        for form, figures in measure(args.preset, layers, args.tokens).items():
            rows.append({"layers": layers, "form": form, **figures})
            print(layers, form, {name: float(f"{value:.3g}") for name, value in figures.items()}, flush=True)
    if args.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
