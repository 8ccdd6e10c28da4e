"""Pictures of captions in memory, and what a probe can be asked about them.

56 pixels high; those with several digits 112 wide, all others 56.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from examples.omni_tiny.pictures import INKS, SIDE
from examples.omni_tiny.sentences import COUNTS, DIGITS, SHAPES
from input_pipeline.media_image import load_image
from omni_jax.errors import DataError

# how many answers each question has, of which 0 is "none": four digits from the left and their colour; of a square
# picture its digit, colour, shape and count
WIDE = (len(DIGITS) + 1,) * 4 + (len(INKS) + 1,)
SQUARE = (len(DIGITS) + 1, len(INKS) + 1, len(SHAPES) + 1, len(COUNTS) + 1)
MOVED = 3  # pixels
_PLURALS = {plural: name for name, plural in SHAPES.items()}


def answers(caption: str) -> tuple[int, ...]:
    """Of a wide picture, `WIDE`, or of a square one, `SQUARE`.

    "The number eight zero seven in white." -> (9, 1, 8, 0, 7)

    Raises:
        DataError: no such caption.
    """
    words = caption.rstrip(".").lower().split()
    singular = [_PLURALS.get(word, word) for word in words]

    def places(names: Sequence[str], among: Sequence[str]) -> list[int]:
        return [names.index(word) + 1 for word in among if word in names]

    ink, digits = places(INKS, words), places(DIGITS, words)
    if words[:2] == ["the", "number"] and len(ink) == 1 and 1 <= len(digits) <= 4:
        return (digits[0], *ink, 0, 0) if len(digits) == 1 else (*digits, *[0] * (4 - len(digits)), *ink)
    shape, count = places(list(SHAPES), singular), places(COUNTS, words)
    if (len(ink), len(shape), len(count)) != (1, 1, 1):
        raise DataError(f"{caption!r} is no caption of digits or shapes. Give lines of image_text.jsonl.")
    return (0, *ink, *shape, *count)


@dataclass(frozen=True)
class Shown:
    """Pictures of one size, and their answers."""

    pixels: UInt8[np.ndarray, "N 56 W 3"]
    answers: Int32[np.ndarray, "N Q"]

    def at(self, step: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` of them for a step, each moved a little: all in one order, then all in another, and so on."""
        first, rng = step * count, np.random.default_rng([seed, step])
        chosen = [_order(len(self.pixels), place // len(self.pixels), seed)[place % len(self.pixels)]
                  for place in range(first, first + count)]  # fmt: skip
        return moved(self.pixels[chosen], rng), self.answers[chosen]


@lru_cache(maxsize=8)
def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 1]).permutation(count)


@dataclass(frozen=True)
class Album:
    """All pictures of a file of captions: wide ones and square ones."""

    wide: Shown
    square: Shown

    @classmethod
    def read(cls, path: Path, progress: Callable[[str, int, int], None] | None = None) -> "Album":
        """Of image_text.jsonl, whose pictures lie beside it.

        Args:
            progress: called with stage, done, total.

        Raises:
            DataError: the file, a caption or a picture is missing or none, or all pictures are of one kind.
        """
        told = [_told(path, number, line) for number, line in enumerate(_lines(path), start=1)]
        shown = []
        for questions, width in ((WIDE, 2 * SIDE), (SQUARE, SIDE)):
            own = [each for each in told if len(each[2]) == len(questions)]
            if not own:
                raise DataError(f"{path}: there must be pictures of several digits and others. Give image_text.jsonl.")
            pixels = np.empty((len(own), SIDE, width, 3), np.uint8)
            for place, (number, file, _) in enumerate(own):
                picture = load_image(path.parent / file)
                if picture.shape != pixels.shape[1:]:
                    raise DataError(
                        f"{path}:{number}: {file} is {picture.shape}, its caption is of {pixels.shape[1:]}. Make the "
                        "data anew."
                    )
                pixels[place] = picture
                if progress is not None and place % 500 == 0:
                    progress("pictures", sum(len(each.pixels) for each in shown) + place, len(told))
            shown.append(Shown(pixels, np.array([each[2] for each in own], np.int32)))
        return cls(*shown)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: the album cannot be read ({error}). Start in the folder of the data.") from error


def _told(path: Path, number: int, line: str) -> tuple[int, str, tuple[int, ...]]:
    """Number of the line, picture, answers."""
    try:
        user, caption = json.loads(line)["messages"]
        (picture,) = user["content"]
        return number, picture["image"], answers(caption["content"])
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{path}:{number}: not a picture and its caption ({error}). Give image_text.jsonl.") from error


def moved(pictures: UInt8[np.ndarray, "N H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "N H W 3"]:
    """Each by up to three pixels up or down and left or right; its edge goes on where it leaves."""
    height, width = pictures.shape[1:3]
    padded = np.pad(pictures, ((0, 0), (MOVED, MOVED), (MOVED, MOVED), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * MOVED + 1, (len(pictures), 2))
    return np.stack([each[y : y + height, x : x + width] for each, (y, x) in zip(padded, corners)])
