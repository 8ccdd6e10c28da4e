"""Prepared shards: conversations with the bytes of their media, in ArrayRecord files that can be read at random.

    shards/
      prepare.json                              what the shards are made from, and how
      data-00000-of-00016.array_record          records: name, conversation, sizes (msgpack)
      data-00000-of-00016.json                  count, sizes, rejected samples; there once the shard is whole
      index.json, sizes.npy                     all shards together; there once the last shard is whole

Each record is one example of `make_examples`. Media keep their encoded bytes: features would be a hundred times larger.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from input_pipeline.example_context import KINDS, ExampleContext, fingerprint
from input_pipeline.examples import Rejection, Sample
from input_pipeline.media_source import media_file
from input_pipeline.messages import with_sources
from input_pipeline.training_batch import Example, RowShape, Sizes
from omni_jax.errors import DataError, MediaError

INDEX, SIZES, SETTINGS = "index.json", "sizes.npy", "prepare.json"
# What may differ between preparing and training: it changes neither tokens nor sizes.
_FREE = ("train_on", "voices")
# One record a group: any can be read without its neighbours. Media are compressed already.
WRITER_OPTIONS = "group_size:1,zstd:1"


class RecordSource:
    """Examples from a folder that `omni-jax prepare` wrote; a `Source`."""

    def __init__(
        self,
        folder: str | Path,
        context: ExampleContext,
        limit: RowShape | None = None,
        *,
        name: str | None = None,
    ):
        """
        Args:
            context: as in preparing, but for `train_on` and the rows of voices; and speech may be left out now.
            limit: records that are longer are left out, and listed in `rejected`.

        Raises:
            DataError: no index, shards missing or cut short, made with another context, or all records too long.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        folder = Path(os.path.abspath(folder))
        index = read_json(folder / INDEX, "Run omni-jax prepare, all of its parts, to the end.")
        _check_context(folder, index, context)
        self.name, self._folder, self._context = name or folder.name, folder, context
        shards = [shard for shard in index["shards"] if shard["count"]]
        for shard in shards:
            path = folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, not {shard['bytes']}"
                raise DataError(f"{path} {found}. Copy it again, or run omni-jax prepare again.")
        sizes = np.load(folder / SIZES, allow_pickle=False)
        if sizes.shape != (sum(shard["count"] for shard in shards), len(KINDS)):
            raise DataError(f"{folder / SIZES} and {INDEX} disagree. Run omni-jax prepare again.")
        room = np.iinfo(np.int32).max if limit is None else np.array([getattr(limit, kind) for kind in KINDS])
        if not context.with_speech:
            sizes[:, [KINDS.index("speech"), KINDS.index("pairs")]] = 0
        fits = (sizes <= room).all(1)
        self.sizes, self._records = sizes[fits], np.flatnonzero(fits)
        self.total = len(sizes)
        self.rejected = tuple(
            Rejection(f"{folder.name}, record {i}", "too long", f"sizes {sizes[i].tolist()} of {', '.join(KINDS)}")
            for i in np.flatnonzero(~fits)
        )
        if not len(self.sizes):
            raise DataError(f"{folder}: none of {self.total} records fits {limit}. Prepare it for smaller rows.")
        kept = hashlib.sha256(self._records.astype("<i8").tobytes()).hexdigest()
        shas = [shard["sha256"] for shard in shards]
        self.fingerprint = fingerprint(shards=shas, kept=kept, context=context.facts)
        self._source = ArrayRecordDataSource(
            [f"{folder / shard['file']}[0:{shard['count']}]" for shard in shards],  # so that no file is opened yet
            reader_options={"max_parallelism": "0"},  # read ahead is off anyway
        )

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int) -> Example:
        """Raises `DataError` where the record or its media are damaged."""
        name, conversation = self._record(index)
        sample = Sample(conversation, self._context, name=name)
        return sample.example(0, len(sample))

    def conversation(self, index: int) -> Mapping[str, Any]:
        """Raises `DataError` where the record is damaged."""
        return self._record(index)[1]

    def _record(self, index: int) -> tuple[str, Mapping[str, Any]]:
        record = int(self._records[index])
        try:
            content = msgpack.unpackb(self._source[record])
            return content["name"], content["conversation"]
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{self._folder}, record {record}: damaged ({error}).", "corrupt media") from error


def pack_record(sample: Sample, start: int, stop: int, sizes: Sizes) -> bytes:
    """One piece of a sample with the bytes of its media.

    Raises:
        DataError: a medium is gone since it was measured.
    """
    name, conversation = sample.part_name(start, stop), sample.cut(start, stop)
    if "messages" in conversation:
        try:
            conversation = {"messages": with_sources(conversation["messages"], _content)}
        except MediaError as error:
            raise DataError(f"{name}: {error}", "missing media") from error
    return msgpack.packb({"name": name, "conversation": conversation, "sizes": list(astuple(sizes))})


def _content(source: Any) -> bytes:
    content = media_file(source).content
    try:
        return content if isinstance(content, bytes) else content.read_bytes()
    except OSError as error:
        raise MediaError(f"{content}: cannot be read ({error.strerror}).") from error


def write_index(folder: Path, shards: list[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Joins the markers of all shards."""
    sizes = np.array([row for shard in shards for row in shard["sizes"]], np.int32).reshape(-1, len(KINDS))
    half = half_of(folder / SIZES)
    with open(half, "wb") as stream:
        np.save(stream, sizes)
    os.replace(half, folder / SIZES)
    kept = [{key: shard[key] for key in ("file", "count", "bytes", "sha256")} for shard in shards]
    write_json(folder / INDEX, {**settings, "shards": kept})


def half_of(file: Path) -> Path:
    """Where a file is written before it gets its name: hidden, and of this process alone."""
    return file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that appears whole or not at all."""
    half = half_of(file)
    half.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(half, file)


def settings_of(context: ExampleContext, limit: RowShape, **source: Any) -> dict[str, Any]:
    """What shards are made from, and how."""
    return {"source": source, "context": context.facts, "limit": asdict(limit)}


def _check_context(folder: Path, index: Mapping[str, Any], context: ExampleContext) -> None:
    free = _FREE if context.with_speech else (*_FREE, "with_speech", "num_codes")
    wanted = {key: value for key, value in context.facts.items() if key not in free}
    differing = [key for key, value in wanted.items() if index["context"].get(key) != value]
    if differing:
        raise DataError(
            f"{folder} was prepared with another {', '.join(differing)}, so its tokens and sizes would be wrong.\n"
            "Run omni-jax prepare with the checkpoint and the options of this run, into another folder."
        )


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Raises `DataError`, which ends with `remedy`, where there is no such file or it is no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file} is missing. {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}. {remedy}") from error
