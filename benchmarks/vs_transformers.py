"""Ours against `transformers`, in one process: same weights, same inputs, same threads, float32 on the CPU.

    python benchmarks/vs_transformers.py --json

The reference runs at its best: SDPA attention, all cores, inference mode, and a bare loop of forward passes for
decoding (its `generate` is slower). Runs alternate, so that a noisy machine disturbs both alike; each figure is the
minimum of its runs. Compilation is not timed. Sizes: the random "bench" model, 267 M parameters without speech.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from input_pipeline.packing import pack_audio, pack_batch, pack_vision
from input_pipeline.patches import Patches
from input_pipeline.request import assemble
from omni_jax.interop import reference
from omni_jax.interop.import_checkpoint import import_checkpoint
from omni_jax.interop.random_checkpoint import make_random_checkpoint
from omni_jax.sampling import programs
from omni_jax.sampling.generate import vision_layout
from omni_jax.sampling.load import load_sampler
from omni_jax.sampling.options import SamplingOptions

PROMPT_TOKENS, NEW_TOKENS = 1024, 64


@dataclass(frozen=True)
class Case:
    """A name, and two functions that do the same work and return when it is done, or return their own seconds."""

    name: str
    ours: Callable[[], float | None]
    reference: Callable[[], float | None]


def audio_case(sampler, model) -> Case:
    """30 s of sound through the audio encoder."""
    config = sampler.config.thinker_config.audio_config
    mel = np.random.default_rng(0).normal(size=(128, 3000)).astype(np.float32)
    batch = pack_audio([mel], config)
    blocks, frames = jnp.asarray(batch.mel), jnp.asarray(batch.frames)
    features, mask = torch.from_numpy(mel)[None], torch.ones(1, 3000, dtype=torch.long)

    def ours():
        programs.encode_audio(
            sampler.params["audio_encoder"], blocks, frames, config=config, dtype=sampler.dtype
        ).block_until_ready()

    return Case("audio encoder, 30 s", ours, lambda: none(model.get_audio_features(features, mask)))


def vision_case(sampler, model) -> Case:
    """An image of 1008 x 1008 pixels through the vision encoder."""
    config = sampler.config.thinker_config.vision_config
    pixels = np.random.default_rng(0).normal(size=(72 * 72, config.patch_dim)).astype(np.float32)
    batch = pack_vision([Patches(pixels, (1, 72, 72))], config)
    patches, layout = jnp.asarray(batch.patches), vision_layout(batch)
    pixels, grid = torch.from_numpy(pixels), torch.tensor([[1, 72, 72]])

    def ours():
        programs.encode_vision(
            sampler.params["vision_encoder"], patches, layout, config=config, dtype=sampler.dtype
        ).block_until_ready()

    return Case("vision encoder, 1 megapixel", ours, lambda: none(model.get_image_features(pixels, grid)))


def prefill_case(sampler, model, ids: np.ndarray) -> Case:
    """A text prompt through the Thinker, up to its cache."""
    inputs = pack_batch([assemble(list(ids), sampler.config)], sampler.config, chunk=sampler.chunk)
    tokens = torch.from_numpy(ids)[None]
    mask = torch.ones_like(tokens)
    return Case(
        f"Thinker prefill, {len(ids)} tokens",
        lambda: none(sampler.prefill(inputs, 2048)),
        lambda: none(model.model(input_ids=tokens, attention_mask=mask, use_cache=True)),
    )


def decode_case(sampler, model, ids: np.ndarray) -> Case:
    """Greedy tokens after that prompt; prefill is not timed."""
    request = assemble(list(ids), sampler.config)
    tokens = torch.from_numpy(ids)[None]

    def ours() -> float:
        answer = sampler.generate([request], SamplingOptions(max_new_tokens=NEW_TOKENS))[0]
        assert len(answer.token_ids) == NEW_TOKENS
        return answer.seconds["decode"]

    def theirs() -> float:
        out = model.model(input_ids=tokens, use_cache=True)
        started = time.perf_counter()
        token = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
        for step in range(NEW_TOKENS - 1):
            position_ids = torch.full((3, 1, 1), len(ids) + step)
            out = model.model(
                input_ids=token[:, None], position_ids=position_ids, past_key_values=out.past_key_values, use_cache=True
            )
            token = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
        return time.perf_counter() - started

    return Case(f"Thinker decode, {NEW_TOKENS} tokens", ours, theirs)


def none(_: object) -> None:
    return None


def measure(case: Case, runs: int) -> dict:
    """Alternates both sides after one warm-up each."""
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for run in range(runs + 1):
        for side, function in (("ours", case.ours), ("reference", case.reference)):
            started = time.perf_counter()
            own = function()
            spent = time.perf_counter() - started if own is None else own
            if run:
                times[side].append(spent)
    ours, theirs = min(times["ours"]), min(times["reference"])
    return {"name": case.name, "ours_seconds": ours, "reference_seconds": theirs, "ratio": theirs / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object as the last line of standard output")
    parser.add_argument("--size", default="bench", help="tiny, small or bench")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="measure only the cases whose name holds this")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "omni_jax_bench"), help="for the weights")
    options = parser.parse_args()

    folder = Path(options.folder) / options.size
    with contextlib.redirect_stdout(sys.stderr):
        if not (folder / "published").exists():
            make_random_checkpoint(folder / "published", options.size)
        if not (folder / "imported").exists():
            import_checkpoint(folder / "published", folder / "imported")
        torch.set_num_threads(os.cpu_count())
        sampler = load_sampler(folder / "imported", stop_ids=())
        model = reference.load_thinker(folder / "published")
        ids = np.random.default_rng(1).integers(0, 900, PROMPT_TOKENS)
        cases = [audio_case(sampler, model), vision_case(sampler, model)]
        cases += [prefill_case(sampler, model, ids), decode_case(sampler, model, ids)]
        rows = []
        with torch.inference_mode():
            for case in cases:
                if options.only not in case.name:
                    continue
                rows.append(measure(case, options.runs))
                line = (
                    "{name:32s} ours {ours_seconds:8.3f} s   reference {reference_seconds:8.3f} s   ratio {ratio:.2f}"
                )
                print(line.format(**rows[-1]), flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "devices": str(jax.devices()), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
