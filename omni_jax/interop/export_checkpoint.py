"""Our checkpoint back into the published PyTorch form, a few hundred megabytes or one parameter in memory at a time.

What an import wrote comes back bit for bit: same names, values and dtypes, and the files that came along.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.import_checkpoint import CARRIED, DTYPES, EXTRA, Progress, all_finite
from omni_jax.interop.restore import CheckpointInfo, check_fit, load_checkpoint_info, restore_leaves
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import Table
from omni_jax.interop.write_aside import write_aside

_GROUP_BYTES = 256 * 2**20
_BY_NAME = {dtype.name: dtype for dtype in st.DTYPES.values()}


def export_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    config: OmniConfig | None = None,
    overwrite: bool = False,
    shard_bytes: int = st.SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Writes safetensors that transformers loads, with config.json and all that was carried along.

    Args:
        source: a checkpoint folder: `params/` beside config.json.
        dtype: "float32" or "bfloat16" for every tensor. None gives each tensor the dtype that it was published with
            (parameters that were trained in float32 are rounded to it), or the stored one where that is not known.
        config: instead of `source`'s config.json.
        overwrite: replace a non-empty `destination`.
        shard_bytes: largest shard; more than one are written with an index.
        progress: called as progress(bytes written, bytes in total).

    Returns:
        Number of tensors written.

    Raises:
        CheckpointError: `source` is damaged or does not fit its configuration; NaN or infinite values; an unwritable
            destination; a full disk. `destination` is then as it was before.
    """
    source, destination = Path(source), Path(destination)
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    info = load_checkpoint_info(source)
    config = config or read_config(source)
    check_fit(info, config, info.components)
    entries = [entry for entry in table(config) if entry.component in info.components]

    extra = st.read_file(source / EXTRA) if (source / EXTRA).is_file() else {}
    planned = [
        st.Planned(_published_name(name, info), DTYPES[dtype] if dtype else _dtype(name, entry.path, info), entry.shape)
        for entry in entries
        for name in entry.torch_names
    ]
    planned += [st.Planned(_published_name(name, info), tensor.dtype, tensor.shape) for name, tensor in extra.items()]
    carried = sorted({path for pattern in CARRIED for path in source.glob(pattern) if path.is_file()})
    total = sum(tensor.nbytes for tensor in planned)

    def values() -> Iterator[np.ndarray]:
        yield from _tensors(info, entries)
        for tensor in extra.values():
            yield tensor.read()

    def converted() -> Iterator[np.ndarray]:
        source_values, done = values(), 0
        for tensor in planned:
            array = next(source_values).astype(tensor.dtype, copy=False)
            if not all_finite(array):
                raise CheckpointError(f"{source}: {tensor.name} holds NaN or infinite values as {tensor.dtype.name}.")
            yield array
            del array  # or the next parameter would be read while this one is still held
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)

    needs = total + sum(path.stat().st_size for path in carried)
    with write_aside(destination, needs_bytes=needs, overwrite=overwrite, keep=source) as folder:
        st.write_folder(folder, st.plan_shards(planned, shard_bytes), converted())
        for path in carried:
            shutil.copyfile(path, folder / path.name)
    return len(planned)


def _tensors(info: CheckpointInfo, entries: Table) -> Iterator[np.ndarray]:
    """Published tensors in table order. Holds one group of our parameters at a time."""
    for group in _groups(info, entries):
        values = restore_leaves(info, [entry.path for entry in group])
        for entry in group:
            value = values.pop(entry.path)
            if entry.layers is None:
                yield entry.transform.to_torch(value)
            else:
                for number in range(entry.layers):
                    yield entry.transform.to_torch(value[number])
            del value


def _groups(info: CheckpointInfo, entries: Table) -> Iterator[Table]:
    """Consecutive entries of at most _GROUP_BYTES, or one larger entry: each read has a fixed cost."""
    group, room = [], _GROUP_BYTES
    for entry in entries:
        nbytes = entry.size * np.dtype(info.shapes[entry.path].dtype).itemsize
        if group and nbytes > room:
            yield group
            group, room = [], _GROUP_BYTES
        group.append(entry)
        room -= nbytes
    if group:
        yield group


def _published_name(name: str, info: CheckpointInfo) -> str:
    return name if info.prefixed else name.removeprefix("thinker.")


def _dtype(name: str, path: str, info: CheckpointInfo) -> np.dtype:
    if name in info.source_dtypes:
        return _BY_NAME[info.source_dtypes[name]]
    stored = np.dtype(info.shapes[path].dtype)
    return stored
