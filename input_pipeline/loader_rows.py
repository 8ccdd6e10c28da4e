"""A worker's part of loading: one row of the plan read, decoded, checked and packed."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from input_pipeline.example_context import KINDS, sizes_of
from input_pipeline.pack_rows import check_example, pack_row, stack_rows
from input_pipeline.plan import Plan
from input_pipeline.processes import end_with_parent
from input_pipeline.sources import Source
from input_pipeline.training_batch import AudioBlocks, Example, OmniBatch, Preferences, SpeechTrack, VisionPatches
from omni_jax.config import OmniConfig
from omni_jax.errors import DataError, OmniError

_PARTS = {"audio": AudioBlocks, "vision": VisionPatches, "speech": SpeechTrack, "preferences": Preferences}


@dataclass(frozen=True)
class Skipped:
    """An example that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one host. It is sent to each worker once.

    rows: of a step, over all hosts. places: of these, those of this host, in the order in which they are wanted.
    """

    sources: Sequence[Source]
    plan: Plan
    config: OmniConfig
    rows: int
    places: tuple[int, ...]
    allow_missing_reference: bool = False

    def __call__(self, number: int) -> dict[str, Any]:
        """The row of this host with this number, counted from 0 on without end; see `stacked`."""
        step, place = divmod(number, len(self.places))
        index = step * self.rows + self.places[place]
        examples, skipped = [], []
        for source, example in () if self._is_after_the_end(index) else self.plan.row(index):
            try:
                examples.append(self._example(source, example))
            except (OmniError, OSError) as error:
                skipped.append((f"{self.sources[source].name}, example {example}", str(error)))
        row = self._packed(examples)
        names = tuple(example.name for example in examples)
        tokens = sum(len(example.token_ids) for example in examples)
        return {"arrays": _flat(row), "names": names, "tokens": tokens, "skipped": tuple(skipped)}

    def row_bytes(self) -> int:
        """What the arrays of one row take."""
        return sum(array.nbytes for array in _flat(self._packed([])).values())

    def _is_after_the_end(self, index: int) -> bool:
        return self.plan.rows is not None and index >= self.plan.rows

    def _packed(self, examples: Sequence[Example]) -> OmniBatch:
        return pack_row(examples, self.plan.shape, self.config, allow_missing_reference=self.allow_missing_reference)

    def _example(self, source: int, number: int) -> Example:
        example = replace(self.sources[source].example(number), task=source)
        check_example(example, self.plan.shape, self.config, allow_missing_reference=self.allow_missing_reference)
        planned, sizes = self.sources[source].sizes[number], sizes_of(example, self.config)
        wrong = [f"{getattr(sizes, kind)} {kind} (not {have})" for kind, have in zip(KINDS, planned, strict=True)
                 if getattr(sizes, kind) != have]  # fmt: skip
        if wrong:
            raise DataError(f"{example.name}: it has changed since it was measured: {', '.join(wrong)}.")
        return example


def stacked(rows: Sequence[dict[str, Any]]) -> tuple[OmniBatch, tuple[str, ...], int, tuple[Skipped, ...]]:
    """What `RowMaker` has made of some rows: batch, names of its examples, tokens, skipped examples."""
    batch = stack_rows([_unflat(row["arrays"]) for row in rows])
    names = tuple(name for row in rows for name in row["names"])
    skipped = tuple(Skipped(*each) for row in rows for each in row["skipped"])
    return batch, names, sum(row["tokens"] for row in rows), skipped


def begin_worker(index: int, count: int) -> None:
    """First thing in a worker process: signals to all processes of a run are the main one's to answer.

    It may want batches until it has saved, so SIGTERM ends a worker after half a minute only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _later(30, os._exit, 1))
    threading.Thread(target=end_with_parent, daemon=True).start()
    if "jax" in sys.modules:  # accelerators belong to the main process
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _later(seconds: float, function: Callable[..., Any], *args: Any) -> None:
    timer = threading.Timer(seconds, function, args)
    timer.daemon = True
    timer.start()


def _flat(batch: OmniBatch) -> dict[str, np.ndarray]:
    """Arrays by name: a tree that Grain knows, so that it can hand arrays over in shared memory."""
    arrays = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if each.name in _PARTS and value is not None:
            arrays |= {f"{each.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
        elif value is not None:
            arrays[each.name] = value
    return arrays


def _unflat(arrays: dict[str, np.ndarray]) -> OmniBatch:
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        kind, _, part = name.partition(".")
        if part:
            parts.setdefault(kind, {})[part] = np.asarray(array)
        else:
            whole[kind] = np.asarray(array)
    return OmniBatch(**whole, **{kind: _PARTS[kind](**own) for kind, own in parts.items()})
