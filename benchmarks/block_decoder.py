"""How far the block decoders are from solving the whole utterance in one flow, and what each costs.

    python benchmarks/block_decoder.py --size small --json

`full` solves the whole utterance at once. `window` solves each block in a window of four (`models/dit_block.py`, what
streaming ships); `carried` solves each block beside its look-ahead and remembers its past (`models/dit_carried.py`).
All start from the same noise. Weights are random: they are scaled so that blocks do influence one another, which is
printed beside the results, but trained ones may differ.

    influence   change of a block's mel when the codes of a neighbour change, over that when its own change (in `full`)
    deviation   from `full`: greatest and mean absolute (natural-log mel), and relative to the deviation of `full`
                from its mean; "other noise" is `full` from another seed, for scale
    work        velocity evaluations times blocks solved, for each block of output
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TextIO

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import DiTConfig
from omni_jax.models import dit, dit_block, dit_carried
from omni_jax.models.flow import FlowOptions

# All have the published 22 layers and the published windows, which is what influence travels through.
SIZES = {
    "tiny": replace(DiTConfig(), hidden_size=64, num_attention_heads=4, head_dim=16, emb_dim=32, num_embeds=200),
    "small": replace(DiTConfig(), hidden_size=256, num_attention_heads=8, head_dim=32, emb_dim=128),
    "full": DiTConfig(),
}


def random_params(config: DiTConfig, gain: float) -> dict:
    """Normal weights of variance gain² / fan-in; those of modulation half as strong, so that layers add, not drown."""
    tree = jax.eval_shape(lambda key: nn.unbox(dit.init_params(key, config)), jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def leaf(key, path, shape):
        name = jax.tree_util.keystr(path)
        stacked = "layers" in name or "['modulation']" in name
        inner = shape.shape[1:] if stacked else shape.shape
        if len(inner) == 1:
            fan_in = 10
        elif "attention" in name and "speaker" not in name:
            fan_in = inner[0] * inner[1] if "'out'" in name else inner[0]
        else:
            fan_in = int(np.prod(inner[:-1]))
        if "['codes']" in name:
            fan_in = 1
        scale = (0.5 if "modulation" in name else 1.0) * gain / fan_in**0.5
        return scale * jax.random.normal(key, shape.shape)

    return jax.tree.unflatten(structure, [leaf(key, *item) for key, item in zip(keys, leaves)])


class Decoders:
    """The three ways to a mel [T, M], of one voice and one set of options."""

    def __init__(self, config: DiTConfig, options: FlowOptions, gain: float):
        self.config, self.options = config, options
        self.params = params = random_params(config, gain)
        self.size = dit_block.block_codes(config)
        rng = np.random.default_rng(0)
        speaker = jnp.asarray(rng.normal(size=(1, config.enc_emb_dim)), jnp.float32)
        ref_mel = jnp.asarray(rng.normal(-4, 2, (1, 400, config.mel_dim)), jnp.float32)
        voice = jax.jit(lambda p: dit.make_voice(p, config, speaker, ref_mel))(params)
        self.voice = dit.stack_voices([voice])
        self.modulation = jax.jit(lambda p: dit.modulate_solver(p, config, options))(params)

        @jax.jit
        def full(params, modulation, voice, codes, seeds):
            blocks = codes.shape[1] // self.size
            noise = dit_block.window_noise(seeds, jnp.zeros(1, jnp.int32), blocks, config)
            conditioning = dit.condition(params, config, codes, voice, guided=options.guided)
            return dit.solve(params, config, noise, conditioning, options, modulation=modulation)

        @jax.jit
        def window(params, modulation, voice, codes, index, frames, seeds):
            return dit_block.solve_windows(params, config, modulation, codes, index, frames, voice, seeds, options)

        @jax.jit
        def carried(params, modulation, voice, state, codes, frames, seeds):
            return dit_carried.step(params, config, modulation, state, codes, frames, voice, seeds, options)

        self._full, self._window, self._carried = full, window, carried

    def _cut(self, codes: np.ndarray, block: int, back: int, ahead: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes [1, C] of blocks block - back … block + ahead, zero where there are none; frames until the end."""
        start, stop = (block - back) * self.size, (block + ahead + 1) * self.size
        before = np.zeros(max(0, -start), np.int32)
        own = np.concatenate([before, codes[max(0, start) : stop]])
        frames = np.int32([len(own) * self.config.repeats])
        return np.pad(own, (0, stop - start - len(own)))[None].astype(np.int32), frames

    def full(self, codes: np.ndarray, seed: int) -> np.ndarray:
        codes = jnp.asarray(codes, jnp.int32)[None]
        return np.asarray(self._full(self.params, self.modulation, self.voice, codes, jnp.int32([seed])))[0]

    def window(self, codes: np.ndarray, seed: int) -> np.ndarray:
        out = []
        for block in range(len(codes) // self.size):
            own, frames = self._cut(codes, block, *dit_block.context_blocks(self.config))
            index, seeds = np.int32([block]), np.int32([seed])
            out.append(self._window(self.params, self.modulation, self.voice, own, index, frames, seeds)[0])
        return np.concatenate(out)

    def carried(self, codes: np.ndarray, seed: int) -> np.ndarray:
        out, state = [], dit_carried.initial_state(self.config, self.options, 1)
        for block in range(len(codes) // self.size):
            own, frames = self._cut(codes, block, 0, dit_block.context_blocks(self.config)[1])
            state, mel = self._carried(self.params, self.modulation, self.voice, state, own, frames, np.int32([seed]))
            out.append(mel[0])
        return np.concatenate(out)


def influence(decoders: Decoders, codes: np.ndarray) -> dict[int, float]:
    """Distance in blocks -> change of a block's mel, relative to the change of the block whose codes changed."""
    size, middle = decoders.size, len(codes) // decoders.size // 2
    other = codes.copy()
    other[middle * size : (middle + 1) * size] = np.roll(codes, size)[middle * size : (middle + 1) * size]
    change = (decoders.full(other, 0) - decoders.full(codes, 0)).reshape(
        -1, decoders.config.block_size * decoders.config.mel_dim
    )
    norms = np.linalg.norm(change, axis=1)
    near = range(max(0, middle - 3), min(len(norms), middle + 5))
    return {block - middle: float(norms[block] / norms[middle]) for block in near}


def deviation(mel: np.ndarray, full: np.ndarray) -> dict[str, float]:
    difference = np.abs(mel - full)
    return {
        "max_abs": float(difference.max()),
        "mean_abs": float(difference.mean()),
        "relative": float(np.linalg.norm(difference) / np.linalg.norm(full - full.mean(axis=0))),
    }


@dataclass
class Found:
    """What one decoder gave for all utterances of a length."""

    deviations: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def run(self, decode: Callable[[np.ndarray, int], np.ndarray], codes: np.ndarray, seed: int) -> np.ndarray:
        started = time.perf_counter()
        mel = decode(codes, seed)
        self.seconds.append(time.perf_counter() - started)
        return mel

    def summary(self) -> dict[str, float]:
        means = {key: float(np.mean([one[key] for one in self.deviations])) for key in self.deviations[0]}
        return means | {"max_abs": max(one["max_abs"] for one in self.deviations)}


def measure(decoders: Decoders, utterances: list[np.ndarray], log: TextIO) -> list[dict]:
    """Rows of one length; prints a table. The programs are compiled."""
    config, evaluations = decoders.config, decoders.options.evaluations
    ways = {"window": decoders.window, "carried": decoders.carried}
    work = {"window": dit_block.window_blocks(config), "carried": dit_carried.carried_blocks(config)}
    full, noise, found = Found(), Found(), {name: Found() for name in ways}
    for seed, codes in enumerate(utterances):
        want = full.run(decoders.full, codes, seed)
        noise.deviations.append(deviation(noise.run(decoders.full, codes, seed + 1000), want))
        for name, way in ways.items():
            found[name].deviations.append(deviation(found[name].run(way, codes, seed), want))

    print(f"  {'':12} {'max abs':>9} {'mean abs':>9} {'relative':>9} {'work':>5} {'seconds':>8}", file=log)
    rows, reference = [], min(full.seconds)
    for name, one in {"other noise": noise, **found}.items():
        summary, ours, solved = one.summary(), min(one.seconds), work.get(name, 1) * evaluations
        numbers = " ".join(f"{summary[key]:9.2e}" for key in ("max_abs", "mean_abs", "relative"))
        print(f"  {name:12} {numbers} {solved:5d} {ours:8.3f}", file=log)
        if name in ways:
            seconds = {"ours_seconds": ours, "reference_seconds": reference, "ratio": reference / ours}
            label = f"{name}, {len(utterances[0]) // decoders.size} blocks"
            rows.append({"name": label, **seconds, "evaluations_per_block": solved, **summary})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="width of the network (default: tiny)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 20], help="lengths, in blocks of 240 ms")
    parser.add_argument("--seeds", type=int, default=3, help="utterances of each length")
    parser.add_argument("--solver", choices=("rk4", "euler"), default="rk4")
    parser.add_argument("--steps", type=int, default=10, help="time points of the solver")
    parser.add_argument("--gain", type=float, default=1.0, help="strength of the random weights")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object")
    args = parser.parse_args()
    config, options = SIZES[args.size], FlowOptions(args.solver, args.steps)
    log = sys.stderr if args.json else sys.stdout
    decoders = Decoders(config, options, args.gain)
    rng = np.random.default_rng(1)

    rows = []
    print(f"{args.size}: {options.evaluations} evaluations ({options.solver}), gain {args.gain}", file=log)
    for blocks in args.blocks:
        utterances = [rng.integers(1, config.num_embeds, blocks * decoders.size) for _ in range(args.seeds)]
        shares = influence(decoders, utterances[0])  # compiles `full` for this length, too
        near = ", ".join(f"{distance:+d} {share:.1e}" for distance, share in shares.items())
        print(f"{blocks} blocks; influence by distance: {near}", file=log)
        for way in (decoders.window, decoders.carried):
            way(utterances[0][: 2 * decoders.size], 0)  # compiles
        rows += measure(decoders, utterances, log)
    if args.json:
        print(json.dumps({"size": args.size, "rows": rows}))


if __name__ == "__main__":
    main()
