"""The file of a task's answers and their statistics: a stopped run goes on with it, and figures come from it alone."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_jax.errors import DataError


class ResultsFile:
    """A line for each answer, added as they are made; the first line says how.

    A last line that was cut short by a crash is cut off, and asked again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """Opens or begins it.

        Raises:
            DataError: it was begun with other settings, is damaged, or cannot be read or written.
        """
        self.path, self.rows = path, {}
        try:
            if path.exists():
                self._go_on(settings)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                half = path.with_name(f".{path.name}.part")
                half.write_text(json.dumps({"settings": settings}, ensure_ascii=False) + "\n", encoding="utf-8")
                os.replace(half, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be used: {error.strerror}. Choose another --to.") from error

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raises DataError where the disk is full, or the like."""
        try:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}.") from error
        self.rows.update((row["index"], dict(row)) for row in rows)

    def _go_on(self, settings: Mapping[str, Any]) -> None:
        old, self.rows, whole = _read(self.path)
        # both through JSON, where a tuple is a list
        new = json.loads(json.dumps(settings))
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if names:
            what = ", ".join(f"{name} ({old.get(name)!r:.60}, now {new.get(name)!r:.60})" for name in names)
            raise DataError(
                f"{self.path} was begun with another {what}.\nGive another --to, or --overwrite to begin anew."
            )
        os.truncate(self.path, whole)


def read_results(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Settings and rows by index of an earlier run. Raises DataError where there is none."""
    try:
        settings, rows, _ = _read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give a folder that omni-jax eval wrote.") from error
    return settings, rows


def _read(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]], int]:
    """Settings, rows, and the bytes of whole lines."""
    settings, rows, whole = None, {}, 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream):
            if number and not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                if number == 0:
                    settings = dict(row["settings"])
                else:
                    rows[int(row["index"])] = row
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}:{number + 1}: is damaged. Delete the file, or give --overwrite.") from error
            whole += len(line)
    if settings is None:
        raise DataError(f"{path}: is empty. Delete the file, or give --overwrite.")
    return settings, rows, whole
