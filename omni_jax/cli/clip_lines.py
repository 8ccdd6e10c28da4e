"""What the commands about speech codes share: lines of recordings in, lines out, and what could not be used."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_jax.errors import DataError

_PATHS = ("audio", "reference", "speaker")
_SHOWN = 20


@dataclass
class LeftOut:
    """Lines that could not be used, and why."""

    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.reasons.append(reason)

    def as_json(self) -> dict[str, Any]:
        return {"left_out": self.count, "reasons": self.reasons}

    def tell(self, out: Any) -> None:
        if self.count:
            out.write(f"left out: {self.count}")
            for reason in self.reasons[:5]:
                out.write(f"  {reason}")


def check_new_file(target: Path, source: Path, *, overwrite: bool) -> None:
    """Whether a file of lines made from `source` may be written.

    Raises:
        DataError: the source is missing; the target exists, is the source, or cannot be written.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file. Check the path.")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise DataError(f"{target} cannot be written: its folder is missing, or it is one itself. Choose another file.")
    if target.exists() and target.samefile(source):
        raise DataError(f"{target} is what is read. Give the result another name.")
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists. Give another name, or --overwrite to replace it.")


def write_lines(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines in a file that appears whole or not at all. Raises DataError where the disk is full, or the like."""
    half = target.with_name(f".{target.name}.part")
    try:
        with open(half, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(half, target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        half.unlink(missing_ok=True)


def moved(clip: Mapping[str, Any], source: Path, target: Path) -> dict[str, Any]:
    """A recording's line of `source` for the file `target`: in another folder its paths are absolute."""
    if source.resolve().parent == target.resolve().parent:
        return dict(clip)
    folder = source.resolve().parent
    return {key: str(folder / value) if key in _PATHS and isinstance(value, str) else value
            for key, value in clip.items()}  # fmt: skip


def groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Pieces of `size`, the last perhaps shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
