"""JSON lines: one conversation a line, each read without the others.

A line is a conversation as `messages.one_form` takes it; paths in it start from the file's folder.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.messages import one_form
from omni_jax.errors import DataError

_BLOCK = 1 << 22


class JsonLines:
    """The lines of a file that are not blank, by number. It travels between processes and opens the file in each."""

    def __init__(self, path: str | Path):
        """Reads the file once, to find its lines.

        Raises:
            DataError: it is missing, unreadable, or has no line.
        """
        self.path = Path(os.path.abspath(path))
        self._file: int | None = None
        try:
            self._offsets, self._numbers, self.digest = _lines(self.path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path of the data.") from error
        if not len(self):
            raise DataError(f"{path}: no lines. Write one conversation in JSON a line.")

    def __len__(self) -> int:
        return len(self._numbers)

    def where(self, index: int) -> str:
        """train.jsonl:12"""
        return f"{self.path.name}:{self._numbers[index]}"

    def read(self, index: int) -> dict[str, Any]:
        """The conversation of one line in the one form, with absolute paths.

        Raises:
            DataError: not JSON, or malformed; without the name of the line, which is `where(index)`.
        """
        return one_form(self.value(index), self.path.parent)

    def text(self, index: int) -> str:
        """One line of a file that is not JSON. Raises DataError where it is not UTF-8."""
        try:
            return self._line(index).decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error}. Save the file as UTF-8.") from error

    def value(self, index: int) -> Any:
        """What one line says, as it stands there. Raises DataError where it is not JSON."""
        try:
            return json.loads(self._line(index))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}. Each line must be one whole object.") from error

    def _line(self, index: int) -> bytes:
        start, stop = (int(offset) for offset in self._offsets[index])
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        line = os.pread(self._file, stop - start, start)  # at a place, so that threads may share the file
        while len(line) < stop - start:
            more = os.pread(self._file, stop - start - len(line), start + len(line))
            if not more:
                raise DataError(f"{self.path} has become shorter since it was opened. Start again.")
            line += more
        return line

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self, close=os.close):  # `os` may be gone when the interpreter ends
        if getattr(self, "_file", None) is not None:
            close(self._file)


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Start and stop of each line [N, 2] that is not blank, its number in the file counted from 1, and the SHA-256."""
    digest, offsets, numbers = hashlib.sha256(), [], []
    start = 0
    with open(path, "rb", buffering=_BLOCK) as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if line.strip():
                mark = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # of editors under Windows
                offsets.append((start + mark, start + len(line)))
                numbers.append(number)
            start += len(line)
    return np.array(offsets, np.int64).reshape(-1, 2), np.array(numbers, np.int64), digest.hexdigest()
