"""Published weight files: `model.safetensors`, or shards with `model.safetensors.index.json`.

A safetensors file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range) and the
values. Only headers are read up front; a tensor's bytes are read when it is asked for, into memory of its own. (A
memory map would do as well, but every page it touches counts as ours, so that nothing would bound a large import.)
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from omni_jax.errors import CheckpointError
from omni_jax.interop.weight_table import Shape

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4_500_000_000
_MAX_HEADER_BYTES = 100_000_000

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor stands. `offset` counts from the start of the file."""

    name: str
    file: Path
    dtype: np.dtype
    shape: Shape
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The values, in memory of their own.

        Raises:
            CheckpointError: the file has become unreadable or shorter since its header was read.
        """
        try:
            values = np.fromfile(self.file, np.uint8, self.nbytes, offset=self.offset)
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read at {self.name}: {error}.") from error
        if values.nbytes != self.nbytes:
            raise CheckpointError(f"{self.file} ends inside tensor {self.name}. Fetch the file again.")
        return values.view(self.dtype).reshape(self.shape)


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of a published folder, by name; headers only.

    Raises:
        CheckpointError: no weights, a missing, truncated or malformed shard, or an index that does not match its
            shards. All faults are listed at once.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return _read_indexed(folder)
    if (folder / SINGLE).is_file():
        return read_file(folder / SINGLE)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give a folder that holds {SINGLE} or {INDEX}.")
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".gguf"))
    raise CheckpointError(
        f"{folder} holds neither {SINGLE} nor {INDEX}"
        + (f" (found {', '.join(found[:5])})" if found else "")
        + ". Fetch the safetensors files of the checkpoint, with their index."
    )


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: the file is truncated, or not a safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{file} is truncated or not a safetensors file: {size} bytes, header of {length} bytes. "
                    "Fetch the file again."
                )
            rows = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{file} has a damaged header ({error}). Fetch the file again.") from error

    tensors, end = {}, 8 + length
    try:
        for name, row in rows.items():
            if name == "__metadata__":
                continue
            if row["dtype"] not in DTYPES:
                raise CheckpointError(f"{file}: tensor {name} has unsupported dtype {row['dtype']}.")
            first, last = row["data_offsets"]
            tensor = Tensor(name, file, DTYPES[row["dtype"]], tuple(row["shape"]), 8 + length + first)
            if last - first != tensor.nbytes:
                raise CheckpointError(
                    f"{file}: tensor {name} of {row['dtype']} {row['shape']} needs {tensor.nbytes} bytes, "
                    f"the header gives it {last - first}. Fetch the file again."
                )
            tensors[name], end = tensor, max(end, 8 + length + last)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{file} has a malformed header ({error!r}). Fetch the file again.") from error
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: its header promises {end} bytes, it has {size}. Fetch the file again."
        )
    return tensors


def _read_indexed(folder: Path) -> dict[str, Tensor]:
    index_file = folder / INDEX
    try:
        weight_map = json.loads(index_file.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index_file} is not a weight index ({error!r}). Fetch the file again.") from error

    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            count = sum(1 for file in weight_map.values() if file == shard)
            problems.append(f"shard {shard} is missing ({count} tensors)")
            continue
        try:
            found = read_file(folder / shard)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for name, tensor in found.items():
            if name in tensors:
                problems.append(f"tensor {name} stands in both {tensors[name].file.name} and {shard}")
            tensors[name] = tensor
        absent = [name for name, file in weight_map.items() if file == shard and name not in found]
        if absent:
            problems.append(f"{shard} lacks what the index places there: {', '.join(absent)}")
    if problems:
        raise CheckpointError(
            f"{folder}: the weight files are not whole:\n  " + "\n  ".join(problems) + "\nFetch these files again."
        )
    return tensors


@dataclass(frozen=True)
class Planned:
    """A tensor about to be written."""

    name: str
    dtype: np.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(tensors: Iterable[Planned], shard_bytes: int = SHARD_BYTES) -> list[list[Planned]]:
    """Tensors in order, cut into shards of at most `shard_bytes` (a tensor larger than that is alone in its own)."""
    shards: list[list[Planned]] = []
    room = -1
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_folder(folder: Path, shards: list[list[Planned]], values: Iterator[np.ndarray]) -> None:
    """Writes planned shards (and their index, if more than one) as `values` come, in the planned order."""
    folder = Path(folder)
    files = [
        SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file, shard in zip(files, shards):
        write_file(folder / file, shard, values)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for shard in shards for tensor in shard)},
            "weight_map": {tensor.name: file for file, shard in zip(files, shards) for tensor in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def header(tensors: list[Planned]) -> bytes:
    """What a file of these tensors starts with; their values follow without gaps."""
    rows: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        rows[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(rows).encode("utf-8")
    text += b" " * (-len(text) % 8)  # values start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def write_file(file: Path, tensors: list[Planned], values: Iterator[np.ndarray]) -> None:
    """Writes one safetensors file of the planned tensors, taking one array from `values` for each."""
    with file.open("wb") as stream:
        stream.write(header(tensors))
        for tensor in tensors:
            array = next(values)
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(
                    f"{tensor.name}: planned {tensor.dtype} {tensor.shape}, got {array.dtype} {array.shape}"
                )
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # its memory must be free before the next one is made
