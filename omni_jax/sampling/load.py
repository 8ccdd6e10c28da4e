"""From an imported checkpoint folder to a `Sampler`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.config_json import read_config, read_json_object, read_processor_config
from omni_jax.errors import ConfigError
from omni_jax.interop.restore import restore_params
from omni_jax.interop.weight_table import flatten
from omni_jax.layers.weight_only import as_int8
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sampling.generate import Sampler
from omni_jax.sharding.rules import SAMPLING, shardings

TEXT_COMPONENTS = ("audio_encoder", "vision_encoder", "thinker")


def load_sampler(
    folder: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    weights: Literal["int8"] | None = None,
    **options: Any,
) -> Sampler:
    """Restores what answering in text needs, with the checkpoint's tokenizer and stop ids.

    Args:
        folder: written by `omni-jax import`.
        dtype: of parameters and compute; default float32 on CPU, bfloat16 elsewhere.
        mesh: split parameters over these devices by the rules `SAMPLING`; each process reads its own part.
        weights: "int8" stores large matrices so (`omni_jax/layers/weight_only.py`), at half the memory of bfloat16.
        options: passed to `Sampler`.

    Raises:
        ConfigError, CheckpointError: a file is missing or does not fit.
        ShardingError: a parameter does not divide over the mesh.
    """
    folder = Path(folder)
    config = read_config(folder)
    processor = ProcessorConfig()
    if (folder / "preprocessor_config.json").is_file():
        processor = read_processor_config(folder)
    tokenizer = Tokenizer.load(folder)
    dtype = jnp.dtype(dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16))
    options.setdefault("stop_ids", _stop_ids(folder))
    placement = None
    if mesh is not None:
        placement = shardings(*logical_axes(config, TEXT_COMPONENTS), mesh, SAMPLING)
    params = load_params(folder, config, TEXT_COMPONENTS, dtype=dtype, placement=placement, weights=weights)
    return Sampler(params, config, tokenizer, processor, dtype=dtype, mesh=mesh, weights=weights, **options)


def load_params(
    folder: str | Path,
    config: OmniConfig,
    components: Sequence[str],
    *,
    dtype: Any,
    placement: Mapping[str, Any] | None,
    weights: Literal["int8"] | None,
) -> dict[str, Any]:
    """Parameters of `components`, placed, and stored as `weights` says.

    Raises:
        ConfigError: no such form of weights.
        CheckpointError: see `restore_params`.
    """
    common = dict(dtype=dtype, shardings=placement, components=components)
    if weights is None:
        return restore_params(folder, config, **common)
    if weights != "int8":
        raise ConfigError(f"Weights cannot be stored as {weights!r}. Choose int8, or leave it out.")
    axes = dict(flatten(logical_axes(config, components)[0]))

    def store(path: str, leaf: jax.Array) -> Any:
        stored = as_int8(path.rsplit("/", 1)[-1], axes[path], leaf, split=placement is not None)
        return jax.block_until_ready(stored)  # or the next would be read while this one is still whole

    return restore_params(folder, config, **common, transform=store)


def _stop_ids(folder: Path) -> list[int] | None:
    """`eos_token_id` of the checkpoint's generation settings, where it has any.

    Raises:
        ConfigError: the file is not a JSON object, or the value is not one token id or a list of them.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    ids = read_json_object(file).get("eos_token_id")
    if ids is None:
        return None
    ids = ids if isinstance(ids, list) else [ids]
    if not all(type(each) is int and 0 <= each < 2**31 for each in ids):
        raise ConfigError(f"{file}: eos_token_id = {ids!r} is not a token id or a list of them. Correct the value.")
    return ids
