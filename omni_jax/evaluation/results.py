"""The file of a task's answers and their statistics: a stopped run goes on with it, and figures come from it alone."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omni_jax.errors import DataError
from omni_jax.evaluation.line_file import LineFile, read_whole_lines


class ResultsFile(LineFile):
    """A line for each answer. A last line that was cut short by a crash is cut off, and asked again."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """See `LineFile`."""
        self.rows: dict[int, dict[str, Any]] = {}
        super().__init__(path, settings)

    def _added(self, row: Mapping[str, Any]) -> None:
        self.rows[row["index"]] = dict(row)

    def _begin(self, settings: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        super()._begin(settings)

    def _go_on(self, settings: Mapping[str, Any]) -> None:
        old, self.rows, whole = _read(self.path)
        what = differences(old, settings)
        if what:
            raise DataError(
                f"{self.path} was begun with another {what}.\nGive another --to, or --overwrite to begin anew."
            )
        os.truncate(self.path, whole)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, but: Collection[str] = ()) -> str:
    """What differs between settings, except those named in `but`: "seed (0, now 1), decoding.top_k (1, now 2)"."""
    # both through JSON, where a tuple is a list
    old, new = (_flat(json.loads(json.dumps(settings))) for settings in (old, new))
    names = [name for name in sorted({*old, *new} - set(but)) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} ({old.get(name)!r:.60}, now {new.get(name)!r:.60})" for name in names)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings within settings by "outer.inner", so that a long one does not hide what differs."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read_results(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Settings and rows by index of an earlier run. Raises DataError where there is none."""
    try:
        settings, rows, _ = _read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give a folder that omni-jax eval wrote.") from error
    return settings, rows


def _read(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]], int]:
    """Settings, rows, and the bytes of whole lines."""
    settings, rows = [], {}

    def take(number: int, row: dict[str, Any]) -> None:
        if number == 0:
            settings.append(dict(row["settings"]))
        else:
            rows[int(row["index"])] = row

    whole = read_whole_lines(path, take, "{path}:{number}: is damaged. Delete the file, or give --overwrite.")
    if not settings:
        raise DataError(f"{path}: is empty. Delete the file, or give --overwrite.")
    return settings[0], rows, whole
