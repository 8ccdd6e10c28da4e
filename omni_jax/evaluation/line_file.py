"""JSON lines that are added as they are made, so that a stopped run goes on; the first line says how they are made."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_jax.errors import DataError


def read_whole_lines(path: Path, take: Callable[[int, dict[str, Any]], None], damaged: str) -> int:
    """Calls take(0, first line), take(1, second line), …; a last line that a crash has cut short is left out.

    Args:
        damaged: what is said of a line that is no JSON or lacks something, with `{path}` and `{number}` (from 1).

    Returns:
        The bytes of the lines that are whole.

    Raises:
        DataError: a line is damaged, or `take` refuses it. OSError: the file cannot be read.
    """
    whole = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream):
            if number and not line.endswith(b"\n"):
                break
            try:
                take(number, json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(damaged.format(path=path, number=number + 1)) from error
            whole += len(line)
    return whole


class LineFile(ABC):
    """Opens or begins such a file."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """
        Raises:
            DataError: it was begun with other settings, is damaged, or cannot be read or written.
        """
        self.path = path
        try:
            if path.exists():
                self._go_on(settings)
            else:
                self._begin(settings)
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
        for row in rows:
            self._added(row)

    def _begin(self, settings: Mapping[str, Any]) -> None:
        half = self.path.with_name(f".{self.path.name}.part")
        half.write_text(json.dumps({"settings": settings}, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(half, self.path)

    @abstractmethod
    def _go_on(self, settings: Mapping[str, Any]) -> None:
        """Takes up what is there, and cuts off a last line that a crash has cut short."""

    @abstractmethod
    def _added(self, row: Mapping[str, Any]) -> None:
        """Notes a line that is stored now."""
