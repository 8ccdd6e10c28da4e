"""The end of a run as an ordinary checkpoint folder, which chat, export and the next stage read."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.config import OmniConfig
from omni_jax.config_json import config_to_dict, read_config, read_json_object
from omni_jax.errors import CheckpointError
from omni_jax.interop.import_checkpoint import CARRIED, EXTRA, PARAMS, RECORD
from omni_jax.interop.restore import load_checkpoint_info, restore_params
from omni_jax.interop.write_aside import write_aside
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sharding.rules import TRAINING, partition_spec, parts

RUN = "training.json"  # what a trained folder was made by
_ADDED = ("speech_tokenizer_config", "discriminator_config")  # what a stage may add to a published model


def save_model(
    destination: str | Path,
    params: Mapping[str, Any],
    model: OmniConfig,
    *,
    source: str | Path,
    mesh: Mesh,
    dtype: Any | None = None,
    untouched: Collection[str] = (),
    changes: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
    about: Mapping[str, Any],
) -> None:
    """Writes `params`, the components of `source` that were not trained, and all its other files. Whole or not at all.

    All processes call it; each writes its own part of the parameters.

    Args:
        params: nested dict by component. source: the checkpoint folder that the run began with.
        dtype: of all parameters; None stores each as `source` does, and new ones in float32.
        untouched: paths in `params` that training has left as they were. They may have been kept in a narrower dtype
            meanwhile: the values of `source` are written.
        changes: for other paths in `params`, what makes of the value of `source`, or of that in `params` if it has
            none, the one that is written.
        about: stored as training.json.

    Raises:
        CheckpointError: `destination` cannot be written, or holds something else than a checkpoint.
    """
    destination, source = Path(destination).resolve(), Path(source).resolve()
    info = load_checkpoint_info(source)
    rest = tuple(component for component in info.components if component not in params)
    stored, changes = dict(flatten_dict(params, sep="/")), changes or {}
    wanted = {path for path in untouched if path in info.shapes and stored[path].dtype != info.shapes[path].dtype}
    wanted |= {path for path in info.shapes if path in changes or path.split("/", 1)[0] in rest}
    again = tuple(name for name in info.components if any(path.startswith(f"{name}/") for path in wanted))

    stored = {path: leaf for path, leaf in stored.items() if path not in wanted}
    if again:
        read = restore_params(source, model, shardings=_places(model, again, mesh), components=again)
        stored |= {path: leaf for path, leaf in flatten_dict(read, sep="/").items() if path in wanted}
        del read

    def kind(path: str) -> Any:
        return jnp.dtype(dtype or getattr(info.shapes.get(path), "dtype", jnp.float32))

    for path, change in changes.items():  # one at a time, each given up for what is written
        stored[path] = change(stored[path]).astype(kind(path))
    other = {path: leaf for path, leaf in stored.items() if leaf.dtype != kind(path)}
    places = {path: leaf.sharding for path, leaf in other.items()}
    cast = jax.jit(lambda tree: {path: leaf.astype(kind(path)) for path, leaf in tree.items()}, out_shardings=places)
    stored |= cast(other)
    size = sum(leaf.nbytes for leaf in stored.values())

    writer = jax.process_index() == 0
    aside = write_aside(destination, needs_bytes=size, overwrite=True, keep=source) if writer else nullcontext()
    with aside as folder:
        if jax.process_count() > 1:  # the others write into the same folder, whose name holds process 0's number
            number = int(multihost_utils.broadcast_one_to_all(os.getpid()))
            folder = destination.with_name(f"{destination.name}.partial-{number}")
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder / PARAMS, args=ocp.args.PyTreeSave(unflatten_dict(stored, sep="/")))
        if writer:
            _carry(source, folder, model, about)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the model folder is written")


def _places(model: OmniConfig, components: tuple[str, ...], mesh: Mesh) -> dict[str, Any]:
    """Where parameters that are only carried along live meanwhile: an axis that does not divide stays whole."""
    axes, shapes = logical_axes(model, components)

    def one(names: tuple, leaf: Any) -> NamedSharding:
        spec = partition_spec(names, TRAINING)
        fits = (split if size % parts(mesh, split) == 0 else None for size, split in zip(leaf.shape, spec))
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda node: isinstance(node, tuple))


def _carry(source: Path, folder: Path, model: OmniConfig, about: Mapping[str, Any]) -> None:
    for pattern in (*CARRIED, RECORD, EXTRA):
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{source}/config.json is missing. Copy it from the checkpoint that these weights are of."
        )
    published = read_config(source)
    added = [name for name in _ADDED if getattr(model, name) != getattr(published, name)]
    if added:
        content = read_json_object(folder / "config.json") | {name: config_to_dict(model)[name] for name in added}
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / RUN).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
