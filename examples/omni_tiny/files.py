"""Files that are there whole or not at all, named by what they are made from."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omni_jax.errors import DataError

COMPLETE = "complete.json"  # there once all groups of data have been made
_MARK = ".partial-"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which becomes `path` at the end of the block; after an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{_MARK}{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)


def remove_partial(folder: Path) -> None:
    """Removes what a killed run has left half written; not what another run is writing."""
    for path in list(folder.rglob(f"{_MARK}*")):
        process = path.name.removeprefix(_MARK).partition("-")[0]
        if not Path("/proc", process).exists():
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def recipe_name(recipe: Mapping[str, Any]) -> str:
    """Sixteen letters that stand for a recipe: equal ones have the same name, so a file is made once."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, sha256: str, remedy: str) -> Path:
    """`path`, if it is there and what it should be.

    Raises:
        DataError: missing, or with another SHA-256.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing. {remedy}", "missing media")
    found = file_sha256(path)
    if found != sha256:
        raise DataError(f"{path} has SHA-256 {found}, expected {sha256}: it is another version. {remedy}")
    return path


def folder_facts(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """What a manifest tells of a group: number of files, bytes, and one SHA-256 over names and contents."""
    total, files, size = hashlib.sha256(), 0, 0
    for name in sorted(set(names)):
        path = folder / name
        total.update(f"{name} {file_sha256(path)}\n".encode())
        files, size = files + 1, size + path.stat().st_size
    return {"files": files, "bytes": size, "sha256": total.hexdigest()}


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Writes JSON lines, and says how many."""
    count = 0
    with whole(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
