"""Examples of every kind made up from their number, as a source of which some examples may be corrupt or deadly."""

import multiprocessing
import os
import signal
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from input_pipeline.example_context import KINDS, sizes_of
from input_pipeline.patches import Patches
from input_pipeline.request import VideoFeatures, assemble
from input_pipeline.training_batch import Example, SpeechExample
from omni_jax.errors import DataError
from omni_jax.presets import preset

CONFIG = preset("tiny")
THINKER, TALKER = CONFIG.thinker_config, CONFIG.talker_config
VOICE = 1110
_MARKED = {
    "audio": (THINKER.audio_start_token_id, THINKER.audio_token_id, THINKER.audio_end_token_id),
    "image": (THINKER.vision_start_token_id, THINKER.image_token_id, THINKER.vision_end_token_id),
    "video": (THINKER.vision_start_token_id, THINKER.video_token_id, THINKER.vision_end_token_id),
}


def make_example(
    number: int,
    *media: str,
    prompt: int = 5,
    reply: int = 4,
    codes: tuple[int, ...] = (),
    reference: tuple[float, float] | None = None,
) -> Example:
    """Text, the media ("audio", "image", "video", "film" with its sound), text, a reply and its end.

    codes: how many of each spoken answer. Every value is drawn anew for another `number`.
    """
    draw = np.random.default_rng(number)
    audio, images, videos, ids = [], [], [], list(draw.integers(1, 900, prompt))
    for medium in media:
        if medium == "audio":
            audio.append(_mel(draw, int(draw.integers(20, 450))))
        else:
            side = 2 * draw.integers(1, 6, 2)
            patches = _patches(draw, (1 if medium == "image" else 2, *side.tolist()))
            sound = _mel(draw, 210) if medium == "film" else None
            images += [patches] if medium == "image" else []
            videos += [] if medium == "image" else [VideoFeatures(patches, 1.0, sound)]
        ids += [*_MARKED["video" if medium == "film" else medium], int(draw.integers(1, 900))]
    ids += [int(each) for each in draw.integers(1, 900, reply + 1)]
    request = assemble(ids, CONFIG, audio=audio, images=images, videos=videos)
    total = len(request.token_ids)
    weights = np.zeros(total, np.float32)
    weights[total - reply - 1 :] = 1
    answers = tuple(SpeechExample(VOICE, draw.integers(0, 8, count).astype(np.int32)) for count in codes)
    return Example(
        name=f"memory:{number}",
        token_ids=request.token_ids,
        position_ids=request.position_ids,
        weights=weights,
        audio=request.audio,
        vision=request.vision,
        audio_row=request.audio_row,
        vision_row=request.vision_row,
        reply=(total - reply - 1, total - 1) if answers else None,
        speech=answers,
        reference=reference,
    )


def _mel(draw: np.random.Generator, frames: int) -> np.ndarray:
    return draw.normal(size=(THINKER.audio_config.num_mel_bins, frames)).astype(np.float32)


def _patches(draw: np.random.Generator, grid: tuple[int, int, int]) -> Patches:
    pixels = np.zeros((int(np.prod(grid)), THINKER.vision_config.patch_dim), np.float32)
    pixels[:, :4] = draw.normal(size=(len(pixels), 4))  # enough to tell patches apart
    return Patches(pixels, grid)


@dataclass
class MemorySource:
    """`count` examples that take turns in having the `kinds`: media, or "speech", "pair", "text"."""

    name: str
    count: int
    kinds: tuple[str, ...] = ("text", "image", "audio", "film", "speech", "pair")
    fingerprint: str = "1"
    first: int = 0
    corrupt: frozenset[int] = frozenset()
    swollen: frozenset[int] = frozenset()  # longer than they were when measured
    deadly: frozenset[int] = frozenset()  # end the worker process that reads them
    broken: frozenset[int] = frozenset()  # a mistake of the program
    rejected: tuple = ()
    sizes: np.ndarray = field(init=False)

    def __post_init__(self):
        rows = [sizes_of(self._made(i), CONFIG) for i in range(self.count)]
        self.sizes = np.array([[getattr(row, kind) for kind in KINDS] for row in rows], np.int32)

    @property
    def total(self) -> int:
        return self.count

    @cached_property
    def names(self) -> list[str]:
        return [self._made(i).name for i in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def example(self, index: int) -> Example:
        if index in self.deadly and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.corrupt:
            raise DataError(f"{self.name}:{index}: the file is cut short.", "corrupt media")
        if index in self.broken:
            raise KeyError("a mistake")
        made = self._made(index)
        if index in self.swollen:
            longer = make_example(self.first + index, prompt=70)
            return replace(longer, name=made.name)
        return made

    def _made(self, index: int) -> Example:
        kind, number = self.kinds[index % len(self.kinds)], self.first + index
        prompt = 3 + number % 11
        if kind == "text":
            made = make_example(number, prompt=prompt)
        elif kind == "speech":
            made = make_example(number, prompt=prompt, codes=(5 + number % 7,))
        elif kind == "pair":
            made = make_example(number, prompt=prompt, codes=(4, 6), reference=(-1.5, -2.5))
        else:
            made = make_example(number, kind, prompt=prompt)
        return replace(made, name=f"{self.name}:{index}")
