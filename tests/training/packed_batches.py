"""Small conversations of every kind, packed into rows: what the training objectives are tested on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.pack_rows import pack_row, stack_rows
from input_pipeline.patches import Patches
from input_pipeline.request import Request, VideoFeatures, assemble
from input_pipeline.training_batch import Example, OmniBatch, RowShape, SpeechExample
from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config
from omni_jax.interop.restore import restore_params
from omni_jax.training.task import Losses, Task

VOICE = 1113
# One shape and one number of rows for all tests: programs are compiled once a task.
SHAPE = RowShape(tokens=160, audio_blocks=2, patches=192, speech=192, pairs=2)
LEARNERS = ("audio_encoder", "vision_encoder", "thinker", "talker")


@functools.cache
def model_of(folder: Path) -> tuple[OmniConfig, dict[str, Any]]:
    """Configuration and parameters of an imported checkpoint."""
    config = read_config(folder)
    return config, restore_params(folder, config, components=LEARNERS)


@functools.cache
def compiled(task: Task) -> Callable[..., tuple[Losses, dict[str, Any]]]:
    """(parameters, batch) -> losses, and gradients of the sum `total.loss`."""

    def loss(params, batch):
        losses = task.loss(params, batch, jax.random.key(0))
        return losses.total.loss, losses

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run(params, batch):
        (_, losses), gradients = both({name: params[name] for name in task.components}, batch)
        return losses, gradients

    return run


def alone(batches: list[OmniBatch], task: Task, params: dict[str, Any]) -> tuple[Losses, dict[str, Any]]:
    """Losses and gradients of several batches, added up."""
    runs = [compiled(task)(params, batch) for batch in batches]
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *runs)


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of the same arrays in both trees, relative to each array's largest value in `theirs`."""

    def one(a, b) -> float:
        difference, size = np.abs(np.asarray(a) - np.asarray(b)).max(), np.abs(np.asarray(b)).max()
        return float(difference / size) if size else float(difference)

    return max(jax.tree.leaves(jax.tree.map(one, ours, theirs)))


@dataclass(frozen=True)
class Case:
    """A conversation as the reference takes it, and as it is packed."""

    request: Request
    example: Example


def case(
    config: OmniConfig,
    kinds: str = "",
    *,
    seed: int = 0,
    words: int = 6,
    reply: int = 4,
    codes: tuple[int, ...] = (),
    task: int = 0,
    reference: tuple[float, float] | None = None,
) -> Case:
    """A prompt of the media in `kinds` (words of image, audio, film, talking), then text, then a reply that counts.

    The audio ends in a short second block; the picture has windows of unlike sizes; "talking" is a film with sound.

    Args:
        codes: lengths of the spoken answers.
    """
    rng = np.random.default_rng(seed)
    thinker = config.thinker_config
    audio, images, videos, ids = [], [], [], list(rng.integers(5, 900, 2))

    def patches(*grid):
        pixels = rng.normal(size=(np.prod(grid), thinker.vision_config.patch_dim))
        return Patches(pixels.astype(np.float32), grid)

    def mel(frames):
        return rng.normal(size=(thinker.audio_config.num_mel_bins, frames)).astype(np.float32)

    see = thinker.vision_start_token_id, thinker.vision_end_token_id
    for kind in kinds.split():
        if kind == "audio":
            audio.append(mel(210))
            ids += [thinker.audio_start_token_id, thinker.audio_token_id, thinker.audio_end_token_id]
        elif kind == "image":
            images.append(patches(1, 10, 12))
            ids += [see[0], thinker.image_token_id, see[1]]
        else:
            videos.append(VideoFeatures(patches(2, 4, 4), 1.0, mel(61) if kind == "talking" else None))
            ids += [see[0], thinker.video_token_id, see[1]]
    ids += list(rng.integers(5, 900, words + reply + 1))  # the last ends the turn
    request = assemble(ids, config, audio=audio, images=images, videos=videos)
    stop = len(request.token_ids) - 1
    weights = np.zeros(len(request.token_ids), np.float32)
    weights[stop - reply :] = rng.choice([0.5, 1.0], reply + 1)
    spoken = tuple(SpeechExample(VOICE, rng.integers(0, 128, count).astype(np.int32)) for count in codes)
    example = Example(
        name=f"{kinds or 'text'} {seed}",
        token_ids=request.token_ids,
        position_ids=request.position_ids,
        weights=weights,
        audio=request.audio,
        vision=request.vision,
        audio_row=request.audio_row,
        vision_row=request.vision_row,
        task=task,
        reply=(stop - reply, stop),
        speech=spoken,
        reference=reference,
    )
    return Case(request, example)


def pack(rows: list[list[Case]], config: OmniConfig, shape: RowShape = SHAPE) -> OmniBatch:
    """Rows of conversations as a batch."""
    packed = [pack_row([each.example for each in row], shape, config, allow_missing_reference=True) for row in rows]
    return stack_rows(packed)
