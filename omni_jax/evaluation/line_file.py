"""JSON lines that are added as they are made, so that a stopped run goes on; the first line says how they are made."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_jax.errors import DataError


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
