"""What the commands that write a checkpoint share: where to, in which dtype, and how far they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import arg

from omni_jax.cli import console

Result = TypeVar("Result")


@dataclass(frozen=True)
class Target:
    destination: Annotated[Path, arg(name="to", metavar="DIR")]
    """The folder to write."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of everything that is written. None keeps each tensor as it was published."""
    overwrite: bool = False
    """Replace the folder if it holds a checkpoint."""
    json: bool = False
    """End standard output with one JSON object: counts of what was written, bytes, seconds."""


def write_watched(stage: str, write: Callable[..., Result], target: Target, *args, **options) -> tuple[Result, dict]:
    """Calls write(*args, destination, ...) under a progress bar.

    Returns:
        What it returned, and {"bytes", "seconds"}.
    """
    started, size = time.perf_counter(), 0
    with console.Progress(stage, unit="B") as bar:

        def report(done: int, total: int) -> None:
            nonlocal size
            size = total
            bar(stage, done, total)

        result = write(
            *args, target.destination, dtype=target.dtype, overwrite=target.overwrite, progress=report, **options
        )
    return result, {"bytes": size, "seconds": time.perf_counter() - started}


def tell(target: Target, done: str, counts: dict, written: dict) -> None:
    """Says what is done, how large it is and how long it took; all figures as JSON where that is asked for."""
    out = console.Output(target.json)
    out.write(f"{done}, {written['bytes'] / 1e6:.1f} MB, in {written['seconds']:.1f} s into {target.destination}")
    out.result(counts | written)
