"""Pictures of captions in memory, and what a probe can be asked about them.

56 pixels high; those with several digits 112 wide, all others 56.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from examples.omni_tiny.pictures import INKS, SIDE
from examples.omni_tiny.sentences import COUNTS, DIGITS, SHAPES
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
        return [list(names).index(word) + 1 for word in among if word in names]

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


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    key = count, epoch, seed
    if key not in _orders:
        if len(_orders) > 8:
            _orders.clear()
        _orders[key] = np.random.default_rng([seed, epoch, 1]).permutation(count)
    return _orders[key]


@dataclass(frozen=True)
class Album:
    """All pictures of a file of captions: wide ones and square ones."""

    wide: Shown
    square: Shown

    @classmethod
    def read(cls, path: Path) -> "Album":
        """Of image_text.jsonl, whose pictures lie beside it.

        Raises:
            DataError: a caption or a picture that is none, or only one kind of them.
        """
        found: dict[int, tuple[list, list]] = {2 * SIDE: ([], []), SIDE: ([], [])}
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                user, caption = json.loads(line)["messages"]
                picture = np.asarray(Image.open(path.parent / user["content"][0]["image"]))
                told = answers(caption["content"])
                expected = (SIDE, 2 * SIDE if len(told) == len(WIDE) else SIDE, 3)
                if picture.shape != expected:
                    raise DataError(f"{path}:{number}: {caption['content']!r} is {picture.shape}, not {expected}.")
                pixels, all_told = found[picture.shape[1]]
                pixels.append(picture)
                all_told.append(told)
        if not all(pixels for pixels, _ in found.values()):
            raise DataError(f"{path}: pictures of several digits and others are needed, and one kind is missing.")
        return cls(*(Shown(np.stack(pixels), np.array(told, np.int32)) for pixels, told in found.values()))


def moved(pictures: UInt8[np.ndarray, "N H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "N H W 3"]:
    """Each by up to three pixels up or down and left or right; its edge goes on where it leaves."""
    height, width = pictures.shape[1:3]
    padded = np.pad(pictures, ((0, 0), (MOVED, MOVED), (MOVED, MOVED), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * MOVED + 1, (len(pictures), 2))
    return np.stack([each[y : y + height, x : x + width] for each, (y, x) in zip(padded, corners)])


def steps_of(album: Album, rows: int, seed: int, first: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each step from `first`: `rows` wide pictures and twice as many square ones, each with their answers."""
    while True:
        yield (*album.wide.at(first, rows, seed), *album.square.at(first, 2 * rows, seed))
        first += 1
