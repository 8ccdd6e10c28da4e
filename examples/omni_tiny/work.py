"""Makes files by recipe in several processes. What is there already is not made again."""

import multiprocessing
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.omni_tiny.media import Medium
from omni_jax.errors import DataError

_CHUNK = 24  # files that a process makes before it asks for more


@dataclass(frozen=True)
class Places:
    """Where things are. data: what is made. tools: Kokoro, handwriting. human: the recordings of digits, if any."""

    data: Path
    tools: Path
    human: Path | None


def missing(media: Sequence[Medium], folder: Path) -> list[Medium]:
    """Those whose file is not there yet, each once."""
    found = {medium.path: medium for medium in media}
    return [medium for path, medium in found.items() if not (folder / path).exists()]


def make(media: Sequence[Medium], places: Places, processes: int, progress) -> dict[str, tuple[int, float]]:
    """Makes what is missing, slow voices first, so that no process waits for another at the end; films after sounds.

    Args:
        progress: called with the number of files that have been made.

    Returns:
        By voice or kind, how many files were made and the seconds of processor time that they took.

    Raises:
        DataError: a recipe gave nothing.
    """
    todo = missing(media, places.data)
    films = [medium for medium in todo if medium.path.startswith("films/")]
    others = [medium for medium in todo if not medium.path.startswith("films/")]
    spent: dict[str, tuple[int, float]] = {}
    for group in (others, films):  # films have sounds, which must be there
        for kind, count, seconds in _results(_chunks(group), places, processes):
            before = spent.get(kind, (0, 0.0))
            spent[kind] = (before[0] + count, before[1] + seconds)
            progress(count)
    return spent


def _chunks(media: Sequence[Medium]) -> list[tuple[str, list[Medium]]]:
    by_kind = defaultdict(list)
    for medium in media:
        by_kind[_kind(medium)].append(medium)
    chunks = []
    for kind in sorted(by_kind, key=lambda kind: (_ORDER.get(kind.partition(":")[0], len(_ORDER)), kind)):
        group = by_kind[kind]
        chunks += [(kind, group[i : i + _CHUNK]) for i in range(0, len(group), _CHUNK)]
    return chunks


_ORDER = {"kokoro": 0, "joe": 1}


def _kind(medium: Medium) -> str:
    recipe = medium.recipe
    if "voice" in recipe:
        return "kokoro" if recipe["voice"].startswith("kokoro") else recipe["voice"]
    return next(name for name in ("human", "prompts", "digits", "shape", "digit") if name in recipe)


def _results(chunks, places: Places, processes: int) -> Iterator[tuple[str, int, float]]:
    if processes == 1 or len(chunks) < 2:
        _begin(places)
        yield from map(_make_chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # each process computes with one thread
    with context.Pool(min(processes, len(chunks)), _begin, (places,)) as pool:
        yield from pool.imap_unordered(_make_chunk, chunks)


_places: Places
_handwriting = None


def _begin(places: Places) -> None:
    global _places
    _places = places


def _make_chunk(chunk: tuple[str, list[Medium]]) -> tuple[str, int, float]:
    kind, media = chunk
    start = _processor_seconds()
    for medium in media:
        try:
            _make(medium)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # of voices, and of reading what they made
            raise DataError(f"{medium.path} could not be made of {medium.recipe}: {error}") from error
    return kind, len(media), _processor_seconds() - start


def _processor_seconds() -> float:
    """Of this process and of the programs that it has called."""
    return sum(os.times()[:4])


def _make(medium: Medium) -> None:
    recipe = medium.recipe
    if medium.path.startswith("sound/"):
        from examples.omni_tiny.speech import make_speech

        make_speech(recipe, _places.data, _places.tools, _places.human)
    elif medium.path.startswith("films/"):
        from examples.omni_tiny.films import make_film

        make_film(recipe, _places.data, _digits())
    else:
        from examples.omni_tiny.pictures import make_picture

        make_picture(recipe, _places.data, _digits())


def _digits():
    global _handwriting
    if _handwriting is None:
        from examples.omni_tiny.packages import handwriting

        _handwriting = handwriting(_places.tools)[0]
    return _handwriting
