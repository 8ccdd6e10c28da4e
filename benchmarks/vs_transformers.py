"""Ours against `transformers`, in one process: same weights, same inputs, same threads, float32 on the CPU.

    python benchmarks/vs_transformers.py --json
    python benchmarks/vs_transformers.py --only token2wav

The reference runs at its best: SDPA attention, all cores, inference mode, and a bare loop of forward passes for
decoding (its `generate` is slower). Runs alternate, so that a noisy machine disturbs both alike; each figure is the
minimum of its runs, of which the rows of sound have one. Compilation is not timed. Sizes: the random "bench" model,
267 M parameters without speech; rows of speech are described in `speech_rows.py`.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from cases import Case, Sides, measure, none
from speech_rows import SpeakingModel, speech_cases

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


def audio_sides(sampler, model) -> Sides:
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

    return Sides(ours, lambda: none(model.get_audio_features(features, mask)))


def vision_sides(sampler, model) -> Sides:
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

    return Sides(ours, lambda: none(model.get_image_features(pixels, grid)))


def prefill_sides(sampler, model, ids: np.ndarray) -> Sides:
    """A text prompt through the Thinker, up to its cache."""
    inputs = pack_batch([assemble(list(ids), sampler.config)], sampler.config, chunk=sampler.chunk)
    tokens = torch.from_numpy(ids)[None]
    mask = torch.ones_like(tokens)
    return Sides(
        lambda: none(sampler.prefill(inputs, 2048)),
        lambda: none(model.model(input_ids=tokens, attention_mask=mask, use_cache=True)),
    )


def decode_sides(sampler, model, ids: np.ndarray) -> Sides:
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

    return Sides(ours, theirs)


class Model:
    """Both sides of the checkpoint that answers in text, loaded when first asked for."""

    def __init__(self, folder: Callable[[], Path]):
        self._folder = folder
        self.ids = np.random.default_rng(1).integers(0, 900, PROMPT_TOKENS)

    @cached_property
    def both(self):
        folder = self._folder()
        return load_sampler(folder / "imported", stop_ids=()), reference.load_thinker(folder / "published")


def text_cases(model: Model) -> Iterator[Case]:
    """All rows of understanding and answering in text."""
    yield Case("audio encoder, 30 s", lambda: audio_sides(*model.both))
    yield Case("vision encoder, 1 megapixel", lambda: vision_sides(*model.both))
    yield Case(f"Thinker prefill, {PROMPT_TOKENS} tokens", lambda: prefill_sides(*model.both, model.ids))
    yield Case(f"Thinker decode, {NEW_TOKENS} tokens", lambda: decode_sides(*model.both, model.ids))


def checkpoint(base: Path, size: str) -> Path:
    """The folder of a random checkpoint, published and imported; made at first use."""
    folder = base / size
    if not (folder / "published").exists():
        make_random_checkpoint(folder / "published", size)
    if not (folder / "imported").exists():
        import_checkpoint(folder / "published", folder / "imported")
    return folder


def cases(base: Path, size: str, speech_size: str) -> Iterator[Case]:
    """All rows."""
    yield from text_cases(Model(partial(checkpoint, base, size)))
    yield from speech_cases(SpeakingModel(partial(checkpoint, base, speech_size)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object as the last line of standard output")
    parser.add_argument("--size", default="bench", help="tiny, small or bench")
    parser.add_argument("--speech-size", default="speech", help="tiny, small, bench or speech: of the rows of speech")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--only", default="", help="measure only the cases whose name holds this")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "omni_jax_bench"), help="for the weights")
    options = parser.parse_args()

    base = Path(options.folder)
    with contextlib.redirect_stdout(sys.stderr):
        torch.set_num_threads(options.threads)
        rows = []
        with torch.inference_mode():
            for case in cases(base, options.size, options.speech_size):
                if options.only not in case.name:
                    continue
                rows.append(measure(case, options.runs))
                line = (
                    "{name:42s} ours {ours_seconds:8.3f} s   reference {reference_seconds:8.3f} s   ratio {ratio:.2f}"
                )
                print(line.format(**rows[-1]), flush=True)
                for stage, factor in rows[-1].get("real_time_factor", {}).items():
                    print(f"    {stage}: {factor:.3f} s of compute for a second of speech", flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "devices": str(jax.devices()), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
