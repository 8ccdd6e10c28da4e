"""A worker's part of loading recordings: which one a row holds, and the row itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from input_pipeline.clip_kinds import ClipKind
from input_pipeline.jsonl import JsonLines
from input_pipeline.loader_ahead import Report
from input_pipeline.loader_rows import Skipped
from input_pipeline.speech_batch import stacked
from omni_jax.errors import DataError, OmniError

TOO_LONG = "too long"


@dataclass(frozen=True)
class ClipRows:
    """Makes the rows of one host. It is sent to each worker once.

        row 0 1 2 3 │ 4 5 6 7 │ …      step by step; recordings of the first epoch, then of the second, …
        each row has one recording and chance of its own, both by its number

    rows: of a step, over all hosts. places: of these, those of this host, in the order in which they are wanted.
    epochs: rows after them are empty; None never ends.
    in_order: recordings come as the files have them, and nothing is left to chance; else in a new order each epoch.
    """

    files: tuple[JsonLines, ...]
    kind: ClipKind
    rows: int
    places: tuple[int, ...]
    seed: int = 0
    epochs: int | None = None
    in_order: bool = False

    @property
    def recordings(self) -> int:
        return sum(map(len, self.files))

    def __call__(self, number: int) -> dict[str, Any]:
        """The row of this host with this number, counted from 0 on without end; see `joined`."""
        step, place = divmod(number, len(self.places))
        row = step * self.rows + self.places[place]
        epoch, index = divmod(row, self.recordings)
        if self.epochs is not None and epoch >= self.epochs:
            return _made(self.kind.empty())
        chosen = index if self.in_order else int(_order(self.recordings, self.seed, epoch)[index])
        lines, line = self._at(chosen)
        name = lines.where(line)
        try:
            rng = None if self.in_order else np.random.default_rng((self.seed, row))
            return _made(self.kind.read(line_of(lines, line), lines.path.parent, rng), name)
        except (OmniError, OSError) as error:
            fault = str(error), getattr(error, "kind", "corrupt media")
            return _made(self.kind.empty(), name, fault)

    def row_bytes(self) -> int:
        """What the arrays of one row take."""
        return sum(np.asarray(array).nbytes for array in _made(self.kind.empty())["arrays"].values())

    def _at(self, recording: int) -> tuple[JsonLines, int]:
        for file in self.files:
            if recording < len(file):
                return file, recording
            recording -= len(file)
        raise IndexError(recording)


@dataclass(frozen=True)
class Met:
    """A recording that a row was to hold, and why it does not."""

    skipped: Skipped | None = None
    kind: str = ""


def joined(rows: Sequence[dict[str, Any]], kind: type) -> tuple[tuple[Any, tuple[Met, ...]], Report]:
    """What `ClipRows` has made of some rows, of a class of `speech_batch`: (batch, recordings), report."""
    batch = stacked([kind(**{name: np.asarray(array) for name, array in row["arrays"].items()}) for row in rows])
    met = tuple(_met(row) for row in rows if row["name"])
    names = tuple(row["name"] for row in rows if row["name"] and not row["fault"])
    skipped = tuple(each.skipped for each in met if each.skipped is not None)
    return (batch, met), Report(len(names), batch.num_codes, names, skipped)


def line_of(lines: JsonLines, index: int) -> Mapping[str, Any]:
    """One recording as its line tells it. Raises DataError where it is none; without the name of the line."""
    line = lines.value(index)
    if not isinstance(line, dict) or not isinstance(line.get("audio"), str):
        raise DataError('not a recording, which is an object with "audio", the path of a sound file.')
    return line


def _met(row: dict[str, Any]) -> Met:
    if not row["fault"]:
        return Met()
    reason, kind = row["fault"]
    return Met(Skipped(row["name"], reason), kind)


def _made(row: Any, name: str = "", fault: tuple[str, ...] = ()) -> dict[str, Any]:
    """A tree that Grain knows, so that it can hand arrays over in shared memory.

    name: of the recording, empty where the row was to hold none. fault: reason and kind.
    """
    arrays = {field.name: getattr(row, field.name) for field in fields(row)}
    return {"arrays": arrays, "name": name, "fault": fault}


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation from a stream that numpy promises never to change, unlike that of its own `permutation`."""
    return np.argsort(np.random.Philox(np.random.SeedSequence((count, seed, epoch))).random_raw(count), kind="stable")
