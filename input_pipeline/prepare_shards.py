"""JSON lines and their media into ArrayRecord shards, in parallel, from where it stopped.

Shard i holds the i-th stretch of the lines, whoever makes it: any number of workers or machines gives the same files.
A shard and its marker appear by rename, the marker last, so that a kill at any moment loses unfinished shards only.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from input_pipeline.example_context import ExampleContext, fingerprint
from input_pipeline.examples import Rejection, Sample
from input_pipeline.jsonl import JsonLines
from input_pipeline.processes import spawned
from input_pipeline.records import (
    INDEX,
    SETTINGS,
    WRITER_OPTIONS,
    half_of,
    pack_record,
    read_json,
    settings_of,
    write_index,
    write_json,
)
from input_pipeline.source_index import Progress, sample_of
from input_pipeline.training_batch import RowShape
from omni_jax.errors import DataError

Marker = Mapping[str, Any]  # of a whole shard: file, lines, count, bytes, sha256, sizes, rejected, rejected_lines


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is to be made: `shards` files in `folder`, of the examples of `lines` within `limit`."""

    lines: JsonLines
    context: ExampleContext
    limit: RowShape
    folder: Path
    shards: int

    @cached_property
    def settings(self) -> dict[str, Any]:
        source = {"file": self.lines.path.name, "sha256": self.lines.digest, "shards": self.shards}
        return settings_of(self.context, self.limit, **source)

    @cached_property
    def key(self) -> str:
        return fingerprint(**self.settings)

    def stretch(self, shard: int) -> range:
        """The lines of a shard."""
        total = len(self.lines)
        return range(shard * total // self.shards, (shard + 1) * total // self.shards)

    def file(self, shard: int) -> Path:
        return self.folder / f"data-{shard:05d}-of-{self.shards:05d}.array_record"

    def marker(self, shard: int) -> Marker | None:
        """What is known of a shard that is whole, else None."""
        path = self.file(shard)
        try:
            marker = read_json(path.with_suffix(".json"), "")
            whole = marker["key"] == self.key and path.stat().st_size == marker["bytes"]
        except (DataError, KeyError, TypeError, OSError):
            return None
        return marker if whole else None


def begin(preparation: Preparation, *, overwrite: bool = False) -> None:
    """Makes the folder, or finds out that what it holds was made in the same way.

    Raises:
        DataError: it holds something else, or shards that were made from other data or with other options and are not
            to be overwritten.
    """
    folder, settings = preparation.folder, preparation.settings
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # listed first: another machine may begin the folder meanwhile
        others = [path for path in folder.iterdir() if path.name != SETTINGS and not path.name.startswith(".")]
        before = read_json(folder / SETTINGS, "") if (folder / SETTINGS).exists() else None
        if before is None and others:
            raise DataError(f"{folder} is not empty, and omni-jax prepare did not make it. Choose another folder.")
        differing = [] if before is None else list(_differences(before, settings))
        if differing and overwrite:  # not where nothing differs: other machines may be at work on their parts
            for old in [*folder.glob("data-*-of-*"), *folder.glob(".data-*"), folder / INDEX]:
                old.unlink(missing_ok=True)
        if before is None or (differing and overwrite):
            write_json(folder / SETTINGS, settings)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}. Choose another folder.") from error
    if differing and not overwrite:
        raise DataError(
            f"{folder} holds shards that were made with another {', '.join(differing)}.\n"
            "Choose another folder, or make them anew with --overwrite."
        )


def make_shard(preparation: Preparation, shard: int) -> Marker:
    """Writes one shard and its marker, unless it is whole already. Can be run by anybody, in any order.

    Raises:
        DataError: the folder cannot be written.
    """
    done = preparation.marker(shard)
    if done is not None:
        return done
    path = preparation.file(shard)
    half = half_of(path)
    try:
        try:
            facts = _write(preparation, preparation.stretch(shard), half)
            with open(half, "rb") as stream:
                os.fsync(stream.fileno())
            marker = {"key": preparation.key, "file": path.name, "bytes": half.stat().st_size, **facts}
            os.replace(half, path)
        finally:
            half.unlink(missing_ok=True)
        write_json(path.with_suffix(".json"), marker)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path} cannot be written: {reason}. Make room; then the same command goes on.") from error
    return marker


def make_shards(
    preparation: Preparation, shards: Sequence[int], *, workers: int = 1, progress: Progress | None = None
) -> list[Marker]:
    """Makes those of `shards` that are not whole yet, and the index once all of the folder are; markers in order.

    Args:
        workers: processes; 1 makes the shards in this one.
        progress: called with stage, lines done, lines in all.

    Raises:
        DataError: the folder cannot be written, or a worker died.
    """
    found = {shard: preparation.marker(shard) for shard in shards}
    missing = [shard for shard in shards if found[shard] is None]
    total = sum(len(preparation.stretch(shard)) for shard in shards)
    done = total - sum(len(preparation.stretch(shard)) for shard in missing)

    def finished(shard: int, marker: Marker) -> None:
        nonlocal done
        found[shard] = marker
        done += len(preparation.stretch(shard))
        if progress is not None:
            progress("preparing", done, total)

    if progress is not None:
        progress("preparing", done, total)
    _make(preparation, missing, min(workers, len(missing)), finished)
    everything = [preparation.marker(shard) for shard in range(preparation.shards)]
    if None not in everything:
        write_index(preparation.folder, everything, preparation.settings)
        for old in preparation.folder.glob(".data-*"):  # of makers that were killed
            old.unlink(missing_ok=True)
    return [found[shard] for shard in shards]


def report_of(preparation: Preparation, markers: Sequence[Marker]) -> dict[str, Any]:
    """How many samples came through, and every one that did not, with the reason."""
    rejected = [Rejection(*each) for marker in markers for each in marker["rejected"]]
    lines = sum(marker["lines"] for marker in markers)
    lost = sum(marker["rejected_lines"] for marker in markers)
    sizes = [row for marker in markers for row in marker["sizes"]]
    return {
        "data": str(preparation.lines.path),
        "shards": len(markers),
        "lines": lines,
        "examples": len(sizes),
        "bytes": sum(marker["bytes"] for marker in markers),
        "totals": dict(zip(asdict(preparation.limit), map(sum, zip(*sizes)), strict=bool(sizes))),
        "rejected_lines": lost,
        "rejected_share": lost / lines if lines else 0.0,
        "rejected_kinds": dict(Counter(each.kind for each in rejected)),
        "rejected": [asdict(each) for each in rejected],
    }


def _make(
    preparation: Preparation, shards: Sequence[int], workers: int, finished: Callable[[int, Marker], None]
) -> None:
    if workers < 2:
        for shard in shards:
            finished(shard, make_shard(preparation, shard))
        return
    with spawned(workers, _start, preparation) as pool:
        futures = {pool.submit(_make_here, shard): shard for shard in shards}
        try:
            for future in as_completed(futures):
                finished(futures[future], future.result())
        except BrokenProcessPool as error:
            raise DataError(
                "A worker died; the memory may be too small for its media. Run the same command again, with fewer "
                "--workers: finished shards are kept."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_here: Preparation


def _start(preparation: Preparation) -> None:
    global _here
    _here = preparation


def _make_here(shard: int) -> Marker:
    return make_shard(_here, shard)


def _write(preparation: Preparation, stretch: range, path: Path) -> dict[str, Any]:
    """Writes the records of some lines; the rest of the marker."""
    from array_record.python.array_record_module import ArrayRecordWriter

    digest = hashlib.sha256()
    sizes: list[list[int]] = []
    rejected: list[Rejection] = []
    rejected_lines = 0
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    try:
        for line in stretch:
            records, refused = _records(preparation, line)
            rejected_lines += bool(refused)
            rejected += refused
            for record, size in records:
                digest.update(len(record).to_bytes(8, "little") + record)
                sizes.append(size)
                _written(writer.write, record)
    finally:
        _written(writer.close)
    return {
        "lines": len(stretch),
        "count": len(sizes),
        "sha256": digest.hexdigest(),
        "sizes": sizes,
        "rejected": [list(astuple(each)) for each in rejected],
        "rejected_lines": rejected_lines,
    }


def _records(preparation: Preparation, line: int) -> tuple[list[tuple[bytes, list[int]]], list[Rejection]]:
    where = preparation.lines.where(line)
    try:
        sample: Sample = sample_of(preparation.lines, line, preparation.context)
        pieces, refused = sample.pieces(preparation.limit)
        records = [(pack_record(sample, p.start, p.stop, p.sizes), list(astuple(p.sizes))) for p in pieces]
        return records, refused
    except DataError as error:
        return [], [Rejection(where, error.kind, str(error).removeprefix(f"{where}: "))]


def _written(call: Callable[..., Any], *args: Any) -> None:
    """The writer reports a full disk as an error of its own kind."""
    try:
        call(*args)
    except (RuntimeError, ValueError) as error:
        raise OSError(str(error).splitlines()[0]) from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """["limit.tokens", "source.shards"]"""
    names = []
    for group in now:
        old = before.get(group)
        old = old if isinstance(old, Mapping) else {}
        names += [f"{group}.{key}" for key in now[group] if old.get(key) != now[group][key]]
    return names
