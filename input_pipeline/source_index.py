"""What a source holds, found out once: the size of every example, and every sample that cannot be used.

The pass opens all media, so it runs in worker processes, and its result is kept on disk under its fingerprint.
"""

import json
import os
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipeline.example_context import ExampleContext
from input_pipeline.examples import Rejection, Sample
from input_pipeline.processes import spawned
from input_pipeline.training_batch import RowShape
from omni_jax.errors import DataError

Progress = Callable[[str, int, int], None]  # stage, done, total
_CHUNK = 64  # samples that a worker is handed at a time


class Reader(Protocol):
    """Where samples come from. It is pickled into worker processes."""

    def __len__(self) -> int: ...

    def where(self, index: int) -> str: ...

    def read(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class Index:
    """sizes: int32 [N, 5], of each example. pieces: int64 [N, 3], the sample that it comes from, and its part of it
    (start, stop). total: samples, the rejected ones included."""

    sizes: np.ndarray
    pieces: np.ndarray
    rejected: tuple[Rejection, ...]
    total: int


def build_index(
    reader: Reader, context: ExampleContext, limit: RowShape, *, workers: int = 0, progress: Progress | None = None
) -> Index:
    """Reads and measures all samples; `workers` 0 does it in this process. The result is the same with any number.

    Raises:
        DataError: a worker process died.
    """
    total, rows, rejected = len(reader), [], []
    chunks = [range(i, min(i + _CHUNK, total)) for i in range(0, total, _CHUNK)]
    done = 0
    for chunk, (found, refused) in zip(chunks, _scanned(reader, context, limit, chunks, workers), strict=True):
        rows += found
        rejected += refused
        done += len(chunk)
        if progress is not None:
            progress("measuring samples", done, total)
    table = np.array(rows, np.int64).reshape(-1, 8)
    return Index(table[:, 3:].astype(np.int32), table[:, :3], tuple(rejected), total)


def read_index(file: Path, fingerprint: str) -> Index | None:
    """The index kept in `file`, or None where there is none with this fingerprint."""
    try:
        with np.load(file, allow_pickle=False) as content:
            about = json.loads(str(content["about"]))
            if about["fingerprint"] != fingerprint:
                return None
            rejected = tuple(Rejection(*each) for each in about["rejected"])
            return Index(content["sizes"], content["pieces"], rejected, about["total"])
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):
        return None  # damaged: what to do about it is to build it anew


def write_index(file: Path, fingerprint: str, index: Index) -> bool:
    """Keeps an index in `file`, which appears whole or not at all; False where the folder cannot be written."""
    rejected = [astuple(each) for each in index.rejected]
    about = json.dumps({"fingerprint": fingerprint, "rejected": rejected, "total": index.total})
    half = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(half, "wb") as stream:
            np.savez_compressed(stream, sizes=index.sizes, pieces=index.pieces, about=np.array(about))
        os.replace(half, file)
    except OSError:
        with suppress(OSError):
            half.unlink()
        return False
    return True


def _scanned(
    reader: Reader, context: ExampleContext, limit: RowShape, chunks: list[range], workers: int
) -> Iterator[tuple[list, list]]:
    if workers == 0 or len(chunks) < 2:
        for chunk in chunks:
            yield _scan(reader, context, limit, chunk)
        return
    try:
        with spawned(min(workers, len(chunks)), _start, reader, context, limit) as pool:
            yield from pool.map(_scan_here, chunks)
    except BrokenProcessPool as error:
        raise DataError("a process that reads samples died; the memory may be too small. Use fewer workers.") from error


_here: tuple[Reader, ExampleContext, RowShape]


def _start(*arguments: Any) -> None:
    global _here
    _here = arguments


def _scan_here(chunk: range) -> tuple[list, list]:
    return _scan(*_here, chunk)


def _scan(reader: Reader, context: ExampleContext, limit: RowShape, chunk: range) -> tuple[list, list]:
    """Rows (sample, start, stop, five sizes), and rejections."""
    rows: list[tuple[int, ...]] = []
    rejected: list[Rejection] = []
    for index in chunk:
        try:
            pieces, refused = sample_of(reader, index, context).pieces(limit)
        except DataError as error:
            where = reader.where(index)
            rejected.append(Rejection(where, error.kind, str(error).removeprefix(f"{where}: ")))
            continue
        rows += [(index, piece.start, piece.stop, *astuple(piece.sizes)) for piece in pieces]
        rejected += refused
    return rows, rejected


def sample_of(reader: Reader, index: int, context: ExampleContext) -> Sample:
    """One sample of a reader; errors begin with its name."""
    name = reader.where(index)
    try:
        conversation = reader.read(index)
    except DataError as error:
        raise DataError(f"{name}: {error}", error.kind) from error
    return Sample(conversation, context, name=name)
