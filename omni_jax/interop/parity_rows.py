"""Rows of the parity table: how far two walks through the same tensors lie apart, and where they part.

A row compares the tensors of one component in data flow order. It passes when every tensor's

    max_rel = max|ours - PyTorch| / max|PyTorch|

is within the row's tolerance. A row that fails names the first tensor on the walk that is not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Index of one value in a tensor -> how a reader finds it: "block 2, position 17, channel 5".
Where = Callable[[tuple[int, ...]], str]


@dataclass(frozen=True)
class Step:
    """One tensor of the walk, from both sides in the same layout."""

    name: str
    ours: np.ndarray
    theirs: np.ndarray
    where: Where


@dataclass(frozen=True)
class StepError:
    """How far one tensor lies apart. Infinite when shapes differ or a value is not finite."""

    name: str
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Row:
    """One line of the table. `max_abs` and `max_rel` are the largest of its steps."""

    name: str
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    diverges_at: str | None = None
    steps: tuple[StepError, ...] = ()

    @property
    def worst(self) -> StepError | None:
        return max(self.steps, key=lambda step: step.max_rel, default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite become null, because JSON has none."""
        out = {
            "name": self.name,
            "max_abs": _finite(self.max_abs),
            "max_rel": _finite(self.max_rel),
            "tolerance": self.tolerance,
            "pass": self.passed,
        }
        if self.diverges_at is not None:
            out["diverges_at"] = self.diverges_at
        if len(self.steps) > 1:
            out["steps"] = [
                {"name": step.name, "max_abs": _finite(step.max_abs), "max_rel": _finite(step.max_rel)}
                for step in self.steps
            ]
        return out


def compare(name: str, steps: Iterable[Step], *, tolerance: float) -> Row:
    """Compares the tensors of one walk; takes one from `steps` at a time, so a generator bounds the memory."""
    errors: list[StepError] = []
    diverges_at = None
    for step in steps:
        error, place = _distance(step)
        errors.append(error)
        if diverges_at is None and not error.max_rel <= tolerance:
            diverges_at = f"{step.name}, {place}"
    max_abs = max((error.max_abs for error in errors), default=0.0)
    max_rel = max((error.max_rel for error in errors), default=0.0)
    return Row(name, max_abs, max_rel, tolerance, diverges_at is None, diverges_at, tuple(errors))


def named_axes(*names: str) -> Where:
    """("frame", "bin") with index (3, 7)  ->  "frame 3, bin 7"."""
    return lambda index: ", ".join(f"{name} {place}" for name, place in zip(names, index))


def _distance(step: Step) -> tuple[StepError, str]:
    ours, theirs = np.asarray(step.ours), np.asarray(step.theirs)
    if ours.shape != theirs.shape:
        return StepError(step.name, np.inf, np.inf), f"shape: ours {ours.shape}, PyTorch {theirs.shape}"
    if ours.size == 0:
        return StepError(step.name, 0.0, 0.0), ""
    if ours.dtype.kind != "f":
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    apart = np.abs(ours - theirs)
    flat = int(np.argmax(apart))  # the first NaN where there is one
    index = tuple(int(i) for i in np.unravel_index(flat, apart.shape))
    max_abs = float(apart[index])
    if not np.isfinite(max_abs):
        max_abs = max_rel = np.inf
    else:
        scale = float(max(theirs.max(), -theirs.min()))
        max_rel = 0.0 if max_abs == 0 else max_abs / scale if scale else np.inf
    values = f"ours {ours[index]:.6g}, PyTorch {theirs[index]:.6g}"
    return StepError(step.name, max_abs, max_rel), f"{step.where(index)}: {values}"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Report:
    """All rows, in the order of the walk."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"pass": self.passed, "rows": [row.to_json() for row in self.rows]}

    def to_text(self) -> str:
        """The table, then what diverges, then the notes."""
        lines = _table(self.rows)
        failed = [row for row in self.rows if not row.passed]
        if failed:
            lines += ["", f"{len(failed)} of {len(self.rows)} rows fail. First differences:"]
            lines += [f"  {row.name}: {row.diverges_at}" for row in failed]
        else:
            lines += ["", f"All {len(self.rows)} rows pass."]
        return "\n".join([*lines, *self.notes])


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [("component", "max_abs", "max_rel", "tolerance", "", "largest at")]
    for row in rows:
        worst = row.worst.name if len(row.steps) > 1 and row.max_rel > 0 else ""
        numbers = (f"{value:.2e}" for value in (row.max_abs, row.max_rel, row.tolerance))
        cells.append((row.name, *numbers, "pass" if row.passed else "FAIL", worst))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in cells
    ]
