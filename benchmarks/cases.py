"""What a comparison is made of: a name, both sides, and how they are timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Does its work and returns when it is done, or returns its own seconds.
Work = Callable[[], float | None]


@dataclass(frozen=True)
class Sides:
    """The same work twice.

    slow: one run of each is timed, the reference's without warm-up (it compiles nothing). Its `reference` may keep its
        figure for another case with the same work.
    details: more for the row, asked for after the runs.
    """

    ours: Work
    reference: Work
    slow: bool = False
    details: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass(frozen=True)
class Case:
    """A row of the table. `build` loads what it needs, so that a case that is not asked for costs nothing."""

    name: str
    build: Callable[[], Sides]


def measure(case: Case, runs: int) -> dict[str, Any]:
    """Alternates both sides after one warm-up each; the figures are the minima."""
    sides = case.build()
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for run in range(2 if sides.slow else runs + 1):
        for side, work in (("ours", sides.ours), ("reference", sides.reference)):
            if sides.slow and side == "reference" and not run:
                continue
            started = time.perf_counter()
            own = work()
            spent = time.perf_counter() - started if own is None else own
            if run:
                times[side].append(spent)
    ours, theirs = min(times["ours"]), min(times["reference"])
    row = {"name": case.name, "ours_seconds": ours, "reference_seconds": theirs, "ratio": theirs / ours}
    return row | sides.details()


def none(_: object) -> None:
    return None
