"""Parameters from a checkpoint folder onto devices: each process and device reads only its own part."""

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from omni_jax.config import OmniConfig
from omni_jax.errors import CheckpointError, ShardingError
from omni_jax.interop.import_checkpoint import PARAMS, RECORD, Problem, summarise
from omni_jax.interop.tables import COMPONENTS, OWN_COMPONENTS, check_components, table
from omni_jax.interop.weight_table import Shape, flatten, jax_shapes, nest
from omni_jax.models.logical_axes import logical_axes

# (path, shape) of a parameter -> how it is split over the mesh.
Rules = Callable[[str, Shape], PartitionSpec]


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint folder holds, read without its values.

    Args:
        params: the Orbax folder.
        shapes: path -> shape and dtype of every stored parameter.
        source_dtypes: published tensor name -> dtype at import; empty for a checkpoint that was not imported.
        prefixed: whether published names start with "thinker.", as all but the Thinker's own do.
    """

    folder: Path
    params: Path
    shapes: dict[str, jax.ShapeDtypeStruct]
    source_dtypes: dict[str, str] = field(default_factory=dict)
    prefixed: bool = True

    @property
    def components(self) -> tuple[str, ...]:
        stored = {path.split("/", 1)[0] for path in self.shapes}
        return tuple(name for name in (*COMPONENTS, *OWN_COMPONENTS) if name in stored)

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in self.shapes.values())


def load_checkpoint_info(folder: str | Path) -> CheckpointInfo:
    """Looks into `folder` (an imported or trained checkpoint with `params/`, or a bare Orbax folder of parameters).

    Raises:
        CheckpointError: there is no Orbax checkpoint, or it is damaged.
    """
    folder = Path(folder)
    params = folder / PARAMS if (folder / PARAMS).is_dir() else folder
    if not (params / "_METADATA").is_file():
        raise CheckpointError(
            f"{folder} holds no Orbax checkpoint ({PARAMS}/_METADATA is missing). "
            "Import the published checkpoint first."
        )
    try:
        with _checkpointer() as checkpointer:
            tree = checkpointer.metadata(params.resolve()).item_metadata.tree
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flatten(tree)}
        record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
        if not isinstance(record, dict):
            raise ValueError(f"{RECORD} holds {type(record).__name__}, not an object")
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        raise CheckpointError(f"{params} is damaged ({_first_line(error)}). Import the checkpoint again.") from error
    return CheckpointInfo(folder, params, shapes, record.get("source_dtypes", {}), record.get("prefixed", True))


def restore_params(
    folder: str | Path,
    config: OmniConfig,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    shardings: Any | None = None,
    dtype: Any | None = None,
    components: Collection[str] | None = None,
    transform: Callable[[str, jax.Array], Any] | None = None,
) -> dict:
    """Loads parameters as a nested dict of jax arrays.

    Args:
        config: says which parameters there must be; anything else in the checkpoint is an error.
        mesh, rules: split each parameter as `rules(path, shape)` says; without `rules` every device holds all.
        shardings: instead of `mesh` and `rules`, a nested dict of shardings (subtrees of other components are ignored).
            Without either, everything goes to the first device.
        dtype: of every restored parameter; None keeps the stored ones.
        components: which to load; None for all that the checkpoint holds.
        transform: what becomes of each parameter, given its path. They are read one at a time, the largest first, so
            that no two are in memory as they were stored.

    Raises:
        CheckpointError: parameters missing, left over or of another shape (all are listed), or unreadable values.
        ShardingError: a parameter's axis does not divide over its mesh axis.
    """
    info = load_checkpoint_info(folder)
    wanted = tuple(components) if components is not None else info.components
    shapes = check_fit(info, config, wanted)
    placed = dict(flatten(shardings)) if shardings is not None else {}

    def placement(path: str, shape: Shape) -> Sharding:
        if shardings is not None:
            sharding = placed[path]
        elif mesh is not None:
            sharding = NamedSharding(mesh, rules(path, shape) if rules is not None else PartitionSpec())
        else:
            sharding = SingleDeviceSharding(jax.devices()[0])
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            raise ShardingError(
                f"{path} {list(shape)} does not divide as {sharding} ({_first_line(error)}). "
                "Choose another mesh or rule."
            ) from error
        return sharding

    missing = [path for path in shapes if shardings is not None and path not in placed]
    if missing:
        raise CheckpointError(
            f"No sharding is given for {', '.join(missing)}. Build the shardings from this configuration."
        )
    args = {
        path: ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=placement(path, shape),
            dtype=None if dtype is None else jnp.dtype(dtype),
        )
        for path, shape in shapes.items()
    }
    if transform is None:
        return _restore(info, args)
    out = {}
    for path in sorted(args, key=lambda path: -math.prod(shapes[path])):
        ((_, leaf),) = flatten(_restore(info, {path: args[path]}))
        out[path] = transform(path, leaf)
    return nest((path, out[path]) for path in args)


def restore_leaves(info: CheckpointInfo, paths: Collection[str]) -> dict[str, np.ndarray]:
    """Path -> parameter as a numpy array on the host, as stored."""
    return dict(flatten(_restore(info, {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths})))


def _restore(info: CheckpointInfo, args: dict[str, ocp.RestoreArgs]) -> dict:
    request = ocp.args.PyTreeRestore(
        item=nest((path, 0) for path in args), restore_args=nest(args.items()), partial_restore=True
    )
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(info.params.resolve(), args=request)
    except Exception as error:
        raise CheckpointError(
            f"{info.params} cannot be read ({_first_line(error)}). Import the checkpoint again."
        ) from error


def check_fit(info: CheckpointInfo, config: OmniConfig, components: Collection[str]) -> dict[str, Shape]:
    """Shapes of the parameters to load, compared with the configuration's."""
    check_components(components)
    expected = {path: shape for path, shape in jax_shapes(table(config)).items() if path.split("/", 1)[0] in components}
    own = [name for name in OWN_COMPONENTS if name in components]
    if "speech_tokenizer" in own and config.speech_tokenizer_config is None:
        own.remove("speech_tokenizer")  # reported as absent below
    expected |= {path: leaf.shape for path, leaf in flatten(logical_axes(config, own)[1])}
    stored = {path: leaf.shape for path, leaf in info.shapes.items() if path.split("/", 1)[0] in components}
    absent = set(components) - {path.split("/", 1)[0] for path in expected}
    problems = [Problem("missing", name, "the configuration has no such component") for name in sorted(absent)]
    problems += [Problem("missing", path, str(list(shape))) for path, shape in expected.items() if path not in stored]
    problems += [Problem("extra", path, str(list(shape))) for path, shape in stored.items() if path not in expected]
    problems += [
        Problem("misshapen", path, f"is {list(stored[path])}, expected {list(shape)}")
        for path, shape in expected.items()
        if path in stored and tuple(stored[path]) != shape
    ]
    if problems:
        raise CheckpointError(
            f"{info.folder} does not fit the configuration:\n  "
            + "\n  ".join(summarise(problems))
            + "\nUse the config.json that belongs to these parameters."
        )
    return expected


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:300]
