"""What all loaders share: rows made ahead by processes or threads, joined to batches, from any step on.

    workers        0 1       0 1     0 …       processes take turns at the rows of a host (Grain)
    thread         ─► joins the rows of a step, some steps ahead ─► training loop

A row depends on its number alone, so neither the number of workers nor where a run goes on changes any.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grain
from absl import flags

from input_pipeline.loader_rows import Skipped, begin_worker
from omni_jax.errors import ConfigError, DataError

_ENDLESS = 1 << 62
_SMALLEST_SHARED = 1 << 16  # bytes; smaller arrays are pickled


@dataclass(frozen=True)
class Report:
    """Of one step on this host.

    examples, tokens: how many its rows hold, padding not counted. names: of the examples.
    skipped: examples that should have been there too.
    waited: seconds that the training loop stood still for the batch, None when it was ready.
    """

    examples: int
    tokens: int
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    waited: float | None = None


class Maker(Protocol):
    """Makes the rows of one host. It is pickled into worker processes.

    places: of the rows of a step, those of this host, in the order in which they are wanted.
    """

    places: tuple[int, ...]

    def __call__(self, number: int) -> dict[str, Any]:
        """The row of this host with this number, counted from 0 on, as a tree that Grain knows."""
        ...

    def row_bytes(self) -> int:
        """What the arrays of one row take."""
        ...


class StepLoader(ABC):
    """An iterator over (batch of this host's rows, `Report`). Close it after use; as a context manager it does so."""

    def __init__(
        self,
        maker: Maker,
        join: Callable[[Sequence[dict[str, Any]]], tuple[Any, Report]],
        *,
        first_step: int,
        workers: int,
        prefetch: int,
    ):
        """
        Args:
            join: the rows of a step to what `_counted` takes; runs in a thread.
            workers: processes that make rows; 0 does it in threads of this process.
            prefetch: steps that are made ahead.
        """
        self._maker, self._join = maker, join
        self._workers, self._prefetch = workers, max(1, prefetch)
        self._step = first_step
        self._ahead: _Ahead | None = None

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """Steps of the whole run, None where it never ends."""

    @abstractmethod
    def _counted(self, made: Any, report: Report) -> Any:
        """The batch of what `join` has made, counted; raises DataError when too much could not be used."""

    def seek(self, step: int) -> None:
        """Goes to the beginning of any step, counted from 0."""
        self.close()
        self._step = step

    def __iter__(self) -> "StepLoader":
        return self

    def __next__(self) -> tuple[Any, Report]:
        """
        Raises:
            DataError: too many examples are corrupt, or a worker process died.
        """
        if self.steps is not None and self._step >= self.steps:
            self.close()
            raise StopIteration
        if self._ahead is None:
            self._ahead = _Ahead(self._started(), len(self._maker.places), self._prefetch, self._join)
        try:
            made, report = self._ahead.take()
            batch = self._counted(made, report)
        except BaseException:
            self.close()
            raise
        self._step += 1
        return batch, report

    def close(self) -> None:
        """Ends threads and processes. Asking for a batch starts them again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> "StepLoader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _started(self) -> grain.DatasetIterator:
        """Rows of this host from the next step on, made ahead."""
        own, workers = len(self._maker.places), self._workers
        stop = _ENDLESS if self.steps is None else self.steps * own
        rows = grain.MapDataset.range(self._step * own, stop).map(self._maker)
        if not workers:
            ahead = self._prefetch * own
            return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=min(2, ahead), prefetch_buffer_size=ahead)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain passes its flags on to the workers
        buffer = -(-own // workers)  # in rows: a step is under way while the next is taken
        waiting = (2 * buffer + 1) * workers * self._maker.row_bytes()
        options = grain.experimental.DatasetOptions(
            min_shm_size=_SMALLEST_SHARED if _shared_memory_holds(waiting) else sys.maxsize
        )
        one_by_one = rows.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        dataset = grain.experimental.WithOptionsIterDataset(one_by_one, options)
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
        return iter(dataset.mp_prefetch(processes, worker_init_fn=begin_worker))


def places_of(rows: int, own: slice | None, accumulate: int) -> tuple[int, ...]:
    """Of the rows of a step, those of this host: of the first micro-batch, then of the second, ….

    Args:
        rows: of a micro-batch over all hosts. own: of these, the rows of this host; None for all.

    Raises:
        ConfigError: `own` is no part of the rows.
    """
    own = slice(0, rows) if own is None else own
    if not 0 <= own.start < own.stop <= rows or accumulate < 1:
        raise ConfigError(f"Rows {own.start} to {own.stop} of this host, {accumulate} times, are no part of {rows}.")
    return tuple(part * rows + row for part in range(accumulate) for row in range(own.start, own.stop))


def check_unchanged(changed: Sequence[str]) -> None:
    """Raises DataError where the order of the data is another one than a state was taken in; `changed` says why."""
    if changed:
        raise DataError(
            "The data is not what this run was begun with, so it cannot go on with the same order:\n  "
            + "\n  ".join(changed)
            + "\nUndo the change, or begin a new run from the last checkpoint's parameters."
        )


def check_corrupt(skipped: int, seen: int, share: float, first: Sequence[Skipped], what: str = "examples") -> None:
    """That no more than `share` of what was seen could not be used, from the 100th on; before, from the 10th on, no
    more than half.

    Raises:
        DataError: more; it shows the `first` ones.
    """
    share = share if seen >= 100 else max(share, 0.5)
    if seen < 10 or skipped <= share * seen:
        return
    shown = "\n  ".join(f"{each.name}: {each.reason}" for each in first)
    raise DataError(
        f"{skipped} of {seen} {what} could not be used, more than a share of {share:g}. The first:\n  {shown}\n"
        "Mend or remove them, or allow a larger share."
    )


class _Ahead:
    """Batches made by a thread, so many ahead. It knows for each whether it was there when it was asked for."""

    def __init__(self, rows: grain.DatasetIterator, rows_per_batch: int, batches: int, join: Callable):
        self._rows, self._count, self._join = rows, rows_per_batch, join
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._over = False  # nothing is to be asked of the rows any more
        self._made: deque[Future] = deque(self._pool.submit(self._make) for _ in range(batches))

    def take(self) -> tuple[Any, Report]:
        future = self._made.popleft()
        ready, started = future.done(), time.perf_counter()
        made, report = future.result()
        self._made.append(self._pool.submit(self._make))
        return made, report if ready else replace(report, waited=time.perf_counter() - started)

    def close(self) -> None:
        self._over = True
        self._pool.shutdown(cancel_futures=True)  # first: a thread that waits for rows would not notice their end
        self._rows.close()

    def _make(self) -> tuple[Any, Report] | None:
        """None after the end."""
        rows = []
        try:
            while len(rows) < self._count and not self._over:
                rows.append(next(self._rows))
        except StopIteration:
            pass
        except RuntimeError as error:
            if "Worker process" not in str(error):
                raise
            raise DataError(
                f"A process that prepares data has died. {error} If memory has run out, use fewer workers."
            ) from error
        finally:
            self._over = len(rows) < self._count
        return self._join(rows) if len(rows) == self._count else None


def _shared_memory_holds(size: int) -> bool:
    """Whether arrays of this many bytes can wait there; containers often have 64 MB, and a write beyond kills."""
    try:
        free = os.statvfs("/dev/shm")
    except OSError:
        return sys.platform != "linux"
    return size < 0.8 * free.f_bavail * free.f_frsize
