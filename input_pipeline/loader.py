"""Batches of training examples, decoded and packed ahead of the device, in an order that nothing but the plan decides.

    plan       row 0 1 2 3 │ 4 5 6 7 │ 8 …     each step takes the next rows, 4 here
    hosts          a a b b   a a b b           each makes its own rows only
    workers        0 1       0 1     0 …       its processes take turns: decode, features, pack (Grain)
    thread         ─► stacks the rows of a step, some steps ahead ─► training loop

Corrupt examples leave their place as padding, so that nothing else moves.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain

from input_pipeline.loader_ahead import Report, StepLoader, check_corrupt, check_unchanged, places_of
from input_pipeline.loader_rows import RowMaker, Skipped, stacked
from input_pipeline.plan import Plan
from input_pipeline.sources import Source
from input_pipeline.training_batch import OmniBatch, RowShape
from omni_jax.config import OmniConfig

log = logging.getLogger(__name__)


@dataclass
class Totals:
    """Of all steps that a loader has handed out. waits: batches that were not ready; the first one never is.

    examples, skipped: of the whole run, also before it was stopped and restored.
    """

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


class Loader(StepLoader):
    """An iterator over (`OmniBatch` of this host's rows, `Report`), see `StepLoader`."""

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
        places = places_of(rows, own, accumulate)
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
        maker = RowMaker(tuple(sources), self.plan, config, self._rows, places, allow_missing_reference)
        super().__init__(maker, _joined, first_step=first_step, workers=workers, prefetch=prefetch)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, None where it never ends."""
        return None if self.plan.rows is None else -(-self.plan.rows // self._rows)

    def state(self) -> dict[str, Any]:
        """The place after the last batch that was handed out, as JSON values.

        The same on all hosts but for "seen": examples that this host has read, and those it could not use. What share
        of them is corrupt is to be judged over the whole run, however often it is stopped.
        """
        seen = {"examples": self.totals.examples, "skipped": self.totals.skipped}
        about = {"step": self._step, "rows": self._rows, "epochs": self.plan.epochs, "plan": self.plan.describe()}
        return {**about, "seen": seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, which may come from another number of hosts or workers.

        Raises:
            DataError: the order of examples is another one now, also where the run is to end elsewhere and has reached
                what is packed otherwise for it; what has changed is named.
        """
        changed = self.plan.difference(state["plan"])
        if state["rows"] != self._rows:
            changed.append(f"rows of a step: were {state['rows']}, are {self._rows}")
        check_unchanged(changed or self._other_end(state))
        self.seek(int(state["step"]))
        self.totals.examples, self.totals.skipped = state["seen"]["examples"], state["seen"]["skipped"]

    def seek(self, step: int) -> None:
        super().seek(step)
        self.totals, self._first_skipped = Totals(), []

    def _other_end(self, state: Mapping[str, Any]) -> list[str]:
        """Why a run cannot go on to another number of epochs: it has begun rows that are others then."""
        shared = self.plan.rows_shared_with(state["epochs"])
        if shared is None or state["step"] * self._rows <= shared:
            return []
        last = shared // self._rows
        return [
            f"epochs: were {state['epochs']}, are {self.plan.epochs}. Examples at the end are packed otherwise then: "
            f"after step {last} some would come twice, some not at all, and this run is at step {state['step']}. To go "
            f"on in order, go back to a checkpoint of step {last} or before (remove the later ones). To accept it: "
            "--allow-change data"
        ]

    def _started(self) -> grain.DatasetIterator:
        if self._workers and self.steps is None:
            self.plan.row(self._step * self._rows)  # windows before it are counted here, not by every worker
        return super()._started()

    def _counted(self, made: OmniBatch, report: Report) -> OmniBatch:
        for each in report.skipped:
            log.warning("skipped %s: %s", each.name, each.reason)
        self._first_skipped += report.skipped[: 5 - len(self._first_skipped)]
        self.totals.add(report)
        skipped, seen = self.totals.skipped, self.totals.examples + self.totals.skipped
        check_corrupt(skipped, seen, self._max_corrupt_share, self._first_skipped)
        return made


def _joined(rows: Sequence[dict[str, Any]]) -> tuple[OmniBatch, Report]:
    batch, names, tokens, skipped = stacked(rows)
    return batch, Report(len(names), tokens, names, skipped)
