"""What a run reports while it goes: OUTPUT/metrics.jsonl, TensorBoard, and a progress bar or a line on the terminal.

Only process 0 writes; every process may call.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

ROWS = "metrics.jsonl"
_SHOWN = ("loss", "learning_rate", "tokens_per_second", "utilisation", "goodput")


class Clock:
    """Where the wall time of a run went, by activity; what no activity claims is time of steps.

    Args:
        before: `record()` of the run that this one continues. Time between the two counts as lost, and so does the time
            of steps that are made again because no checkpoint held them.
    """

    def __init__(self, before: Mapping[str, float] | None = None):
        before = before or {}
        self._start = time.perf_counter()
        self._first = before.get("started", time.time())
        self._productive_before = before.get("productive", 0.0)
        self.seconds: dict[str, float] = {}
        self.skipped, self.steps = 0, 0

    @contextmanager
    def spent(self, activity: str) -> Iterator[None]:
        """Books the time inside; not to be nested."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - started

    @property
    def stepping(self) -> float:
        """Seconds in which steps ran."""
        return time.perf_counter() - self._start - sum(self.seconds.values())

    @property
    def productive(self) -> float:
        """Seconds of steps that changed the parameters, since the run first began."""
        kept = 1 - self.skipped / self.steps if self.steps else 0.0
        return self._productive_before + self.stepping * kept

    @property
    def goodput(self) -> float:
        """Share of the wall time since the run first began that was productive."""
        return self.productive / max(time.time() - self._first, 1e-9)

    def record(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"started": self._first, "productive": self.productive}


class Metrics:
    """Writes rows of numbers.

    Args:
        folder: OUTPUT; made where it is missing.
        total: steps of the whole run. first: the step that a resumed run goes on from: rows after it, which a killed
            run has left, are removed, so that each step stands there once.
    """

    def __init__(self, folder: str | Path, *, total: int, first: int = 0):
        self._on = jax.process_index() == 0
        if not self._on:
            return
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _cut(folder / ROWS, first)
        self._rows = (folder / ROWS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1, max_queue=100, flush_secs=30)
        # `disable=None`: no bar where standard error is not a terminal; there each row is a line
        self._bar = tqdm(total=total, initial=first, unit="step", file=sys.stderr, disable=None, dynamic_ncols=True)

    def advance(self) -> None:
        """One more step was handed to the devices."""
        if self._on:
            self._bar.update()

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """One row; numbers go to TensorBoard too, a name with a slash under its first part."""
        if not self._on:
            return
        self._rows.write(json.dumps({"step": step, **{name: _plain(value) for name, value in row.items()}}) + "\n")
        self._rows.flush()
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)
        shown = {name: f"{row[name]:.4g}" for name in _SHOWN if isinstance(row.get(name), (int, float))}
        if shown and self._bar.disable:
            self.say(f"step {step}  " + "  ".join(f"{name} {value}" for name, value in shown.items()))
        elif shown:
            self._bar.set_postfix(shown)

    def text(self, step: int, name: str, text: str) -> None:
        """A sample of what the model says."""
        if self._on:
            self._rows.write(json.dumps({"step": step, name: text}, ensure_ascii=False) + "\n")
            self._rows.flush()
            self._board.add_text(name, text, step)
            self.say(f"step {step}  {name}: {text}")

    def say(self, text: str) -> None:
        """A line for people, beside the bar."""
        if self._on:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._on:
            self._bar.close()
            self._board.close()
            self._rows.close()


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of OUTPUT/metrics.jsonl; a last line that was cut off by a crash is left out."""
    rows = []
    file = Path(folder) / ROWS
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _cut(file: Path, first: int) -> None:
    kept = [row for row in read_rows(file.parent) if row["step"] <= first]
    if file.is_file():
        aside = file.with_name(f".{file.name}.part")
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        aside.replace(file)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
