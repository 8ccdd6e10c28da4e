"""Batches of training examples, decoded and packed ahead of the device, in an order that nothing but the plan decides.

    plan       row 0 1 2 3 │ 4 5 6 7 │ 8 …     each step takes the next rows, 4 here
    hosts          a a b b   a a b b           each makes its own rows only
    workers        0 1       0 1     0 …       its processes take turns: decode, features, pack (Grain)
    thread         ─► stacks the rows of a step, some steps ahead ─► training loop

Corrupt examples leave their place as padding, so that nothing else moves.
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import grain
from absl import flags

from input_pipeline.loader_rows import RowMaker, Skipped, begin_worker, stacked
from input_pipeline.plan import Plan
from input_pipeline.sources import Source
from input_pipeline.training_batch import OmniBatch, RowShape
from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError, DataError

_ENDLESS = 1 << 62
_SMALLEST_SHARED = 1 << 16  # bytes; smaller arrays are pickled

log = logging.getLogger(__name__)


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


@dataclass
class Totals:
    """Of all steps that a loader has handed out. waits: batches that were not ready; the first one never is."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    skipped: int = 0
    waits: int = 0
    seconds_waited: float = 0.0

    def add(self, report: Report) -> None:
        self.steps += 1
        self.examples += report.examples
        self.tokens += report.tokens
        self.skipped += len(report.skipped)
        self.waits += report.waited is not None
        self.seconds_waited += report.waited or 0.0


class Loader:
    """An iterator over (batch of this host's rows, `Report`). Close it after use; as a context manager it does so."""

    def __init__(
        self,
        sources: Sequence[Source],
        shape: RowShape,
        config: OmniConfig,
        *,
        rows: int,
        own: slice | None = None,
        accumulate: int = 1,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        window: int | None = None,
        epochs: int | None = None,
        first_step: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        max_corrupt_share: float = 0.01,
        allow_missing_reference: bool = False,
    ):
        """Plans. Work begins when the first batch is asked for.

        Args:
            rows: of a micro-batch over all hosts. own: of these, the rows of this host
                (`omni_jax.sharding.hosts.own_rows`); None for all.
            accumulate: micro-batches in a step. A batch holds this host's rows of the first, then of the second, ….
            weights, seed, window, epochs: see `Plan`. With `epochs` the last step is filled up with rows of padding.
            workers: processes that decode and pack; 0 does it in threads of this process.
            prefetch: steps that are made ahead.
            max_corrupt_share: the run ends when more of this host's examples than this had to be skipped, from the
                100th example on; before, from the 10th on, when more than half had to.
            allow_missing_reference: see `pack_row`.

        Raises:
            CapacityError, ConfigError, DataError: see `Plan`; or `own` is no part of the rows.
        """
        own = slice(0, rows) if own is None else own
        if not 0 <= own.start < own.stop <= rows or accumulate < 1:
            raise ConfigError(
                f"Rows {own.start} to {own.stop} of this host, {accumulate} times, are no part of {rows}."
            )
        self.plan = Plan(
            [source.sizes for source in sources],
            weights,
            shape,
            seed,
            window=window,
            epochs=epochs,
            names=[source.name for source in sources],
            fingerprints=[source.fingerprint for source in sources],
        )
        self.totals = Totals()
        self._first_skipped: list[Skipped] = []
        self._rows, self._max_corrupt_share = rows * accumulate, max_corrupt_share
        self._workers, self._prefetch = workers, max(1, prefetch)
        places = tuple(part * rows + row for part in range(accumulate) for row in range(own.start, own.stop))
        self._maker = RowMaker(tuple(sources), self.plan, config, self._rows, places, allow_missing_reference)
        self._step = first_step
        self._ahead: _Ahead | None = None

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, None where it never ends."""
        return None if self.plan.rows is None else -(-self.plan.rows // self._rows)

    def state(self) -> dict[str, Any]:
        """The place after the last batch that was handed out, as JSON values; the same on all hosts."""
        return {"step": self._step, "rows": self._rows, "plan": self.plan.describe()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, which may come from another number of hosts or workers.

        Raises:
            DataError: the order of examples is another one now; what has changed is named.
        """
        changed = self.plan.difference(state["plan"])
        if state["rows"] != self._rows:
            changed.append(f"rows of a step: were {state['rows']}, are {self._rows}")
        if changed:
            raise DataError(
                "The data is not what this run was begun with, so it cannot go on with the same order:\n  "
                + "\n  ".join(changed)
                + "\nUndo the change, or begin a new run from the last checkpoint's parameters."
            )
        self.seek(int(state["step"]))

    def seek(self, step: int) -> None:
        """Goes to the beginning of any step, counted from 0."""
        self.close()
        self._step = step

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[OmniBatch, Report]:
        """
        Raises:
            DataError: too many examples are corrupt, or a worker process died.
        """
        if self.steps is not None and self._step >= self.steps:
            self.close()
            raise StopIteration
        if self._ahead is None:
            self._ahead = _Ahead(self._started(), len(self._maker.places), self._prefetch)
        try:
            batch, report = self._ahead.take()
        except BaseException:
            self.close()
            raise
        for each in report.skipped:
            log.warning("skipped %s: %s", each.name, each.reason)
        self._first_skipped += report.skipped[: 5 - len(self._first_skipped)]
        self.totals.add(report)
        self._check_corrupt()
        self._step += 1
        return batch, report

    def close(self) -> None:
        """Ends threads and processes. Asking for a batch starts them again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _check_corrupt(self) -> None:
        skipped, seen = self.totals.skipped, self.totals.examples + self.totals.skipped
        share = self._max_corrupt_share if seen >= 100 else max(self._max_corrupt_share, 0.5)
        if seen < 10 or skipped <= share * seen:
            return
        self.close()
        shown = "\n  ".join(f"{each.name}: {each.reason}" for each in self._first_skipped)
        raise DataError(
            f"{skipped} of {seen} examples could not be used, more than a share of {share:g}. The first:\n  {shown}\n"
            "Mend or remove them, or allow a larger share."
        )

    def _started(self) -> grain.DatasetIterator:
        """Rows of this host from the next step on, made ahead."""
        own, workers = len(self._maker.places), self._workers
        stop = _ENDLESS if self.steps is None else self.steps * own
        rows = grain.MapDataset.range(self._step * own, stop).map(self._maker)
        if not workers:
            ahead = self._prefetch * own
            return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=min(2, ahead), prefetch_buffer_size=ahead)))
        if self.steps is None:
            self.plan.row(self._step * self._rows)  # windows before it are counted here, not by every worker
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


class _Ahead:
    """Batches made by a thread, so many ahead. It knows for each whether it was there when it was asked for."""

    def __init__(self, rows: grain.DatasetIterator, rows_per_batch: int, batches: int):
        self._rows, self._count = rows, rows_per_batch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._over = False  # nothing is to be asked of the rows any more
        self._made: deque[Future] = deque(self._pool.submit(self._make) for _ in range(batches))

    def take(self) -> tuple[OmniBatch, Report]:
        future = self._made.popleft()
        ready, started = future.done(), time.perf_counter()
        batch, report = future.result()
        self._made.append(self._pool.submit(self._make))
        return batch, report if ready else replace(report, waited=time.perf_counter() - started)

    def close(self) -> None:
        self._over = True
        self._pool.shutdown(cancel_futures=True)  # first: a thread that waits for rows would not notice their end
        self._rows.close()

    def _make(self) -> tuple[OmniBatch, Report] | None:
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
        if len(rows) < self._count:
            return None
        batch, names, tokens, skipped = stacked(rows)
        return batch, Report(len(names), tokens, names, skipped)


def _shared_memory_holds(size: int) -> bool:
    """Whether arrays of this many bytes can wait there; containers often have 64 MB, and a write beyond kills."""
    try:
        free = os.statvfs("/dev/shm")
    except OSError:
        return sys.platform != "linux"
    return size < 0.8 * free.f_bavail * free.f_frsize
