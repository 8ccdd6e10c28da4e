"""The published `config.json` and `preprocessor_config.json`, in and out without loss.

Each component names, for every field, the places in the JSON object where it may stand (names differ between
releases: `audio_token_index` and `audio_token_id`, `rope_theta` and `rope_parameters.rope_theta`, the DiT's `dim`
and `hidden_size`). Writing starts from the object that was read and replaces only values that differ, under the
name that the object uses, so keys that do not touch the mathematics come back untouched. Keys that would change
the mathematics must hold the one value that is implemented; anything else is a `ConfigError`.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from omni_jax import config as C
from omni_jax.errors import ConfigError

JsonPath = tuple[str, ...]

# Where a field stands, when not simply under its own name. The first place is the one written to a new file.
PLACES: dict[type, dict[str, list[JsonPath]]] = {
    C.AudioEncoderConfig: {},
    C.VisionEncoderConfig: {"rope_theta": [("rope_parameters", "rope_theta")]},
    C.TextConfig: {
        "mrope_section": [("rope_scaling", "mrope_section"), ("rope_parameters", "mrope_section")],
        "rope_theta": [("rope_theta",), ("rope_parameters", "rope_theta")],
    },
    C.ThinkerConfig: {
        "audio_token_id": [("audio_token_index",), ("audio_token_id",)],
        "image_token_id": [("image_token_index",), ("image_token_id",)],
        "video_token_id": [("video_token_index",), ("video_token_id",)],
    },
    C.DiTConfig: {
        "hidden_size": [("dim",), ("hidden_size",)],
        "num_hidden_layers": [("depth",), ("num_hidden_layers",)],
        "num_attention_heads": [("heads",), ("num_attention_heads",)],
        "rope_theta": [("rope_theta",), ("rope_parameters", "rope_theta")],
    },
    C.BigVGANConfig: {},
    C.Token2WavConfig: {},
    C.SpeechTokenizerConfig: {},
    C.DiscriminatorConfig: {},
    C.OmniConfig: {},
    C.ProcessorConfig: {
        "num_mel_bins": [("feature_size",)],
        "max_audio_seconds": [("chunk_length",)],
        "image_min_pixels": [("min_pixels",), ("size", "shortest_edge")],
        "image_max_pixels": [("max_pixels",), ("size", "longest_edge")],
    },
}
PLACES[C.TalkerConfig] = PLACES[C.TextConfig]

# Keys that change the mathematics, with the values that are implemented (absent is always allowed).
_DECODER_GUARDS: dict[JsonPath, tuple] = {
    ("hidden_act",): ("silu",),
    ("use_sliding_window",): (False, None),
    ("rope_scaling", "rope_type"): ("default", "mrope"),
    ("rope_scaling", "type"): ("default", "mrope"),
    ("rope_parameters", "rope_type"): ("default", "mrope"),
    ("partial_rotary_factor",): (1, 1.0),
    ("quantization_config",): (None,),
}
GUARDS: dict[type, dict[JsonPath, tuple]] = {
    C.AudioEncoderConfig: {("activation_function",): ("gelu",), ("scale_embedding",): (False,)},
    C.VisionEncoderConfig: {
        ("hidden_act",): ("silu",),
        ("rope_parameters", "rope_type"): ("axial", "default"),
    },
    C.TextConfig: _DECODER_GUARDS,
    C.TalkerConfig: {**_DECODER_GUARDS, ("tie_word_embeddings",): (False, None)},
    C.ThinkerConfig: {("tie_word_embeddings",): (False, None), ("quantization_config",): (None,)},
    C.DiTConfig: {("rope_parameters", "rope_type"): ("default",), ("quantization_config",): (None,)},
    C.BigVGANConfig: {("use_bias_at_final",): (False,), ("quantization_config",): (None,)},
    C.OmniConfig: {("quantization_config",): (None,), ("model_type",): ("qwen2_5_omni",)},
}

COMPONENTS: dict[type, dict[str, type]] = {
    C.OmniConfig: {
        "thinker_config": C.ThinkerConfig,
        "talker_config": C.TalkerConfig,
        "token2wav_config": C.Token2WavConfig,
        "speech_tokenizer_config": C.SpeechTokenizerConfig,
        "discriminator_config": C.DiscriminatorConfig,
    },
    C.ThinkerConfig: {
        "audio_config": C.AudioEncoderConfig,
        "vision_config": C.VisionEncoderConfig,
        "text_config": C.TextConfig,
    },
    C.Token2WavConfig: {"dit_config": C.DiTConfig, "bigvgan_config": C.BigVGANConfig},
}


def read_config(path: str | Path) -> C.OmniConfig:
    """Reads a published folder's `config.json` (or that file itself).

    Raises:
        ConfigError: the file is missing or not JSON, lacks a required key, or asks for unsupported mathematics.
    """
    return config_from_dict(_read_json(path, "config.json"))


def config_from_dict(data: Mapping[str, Any]) -> C.OmniConfig:
    """Builds the configuration from the JSON object; a Thinker alone (`qwen2_5_omni_thinker`) is wrapped."""
    if data.get("model_type") == "qwen2_5_omni_thinker":
        return C.OmniConfig(
            thinker_config=_parse(C.ThinkerConfig, data, "config.json"), source=copy.deepcopy(dict(data))
        )
    if data.get("enable_audio_output") is False:
        data = {**data, "talker_config": None, "token2wav_config": None}
    return _parse(C.OmniConfig, data, "config.json")


def config_to_dict(config: C.OmniConfig) -> dict[str, Any]:
    """The JSON object of `config`: what was read, with changed values replaced under the names it uses."""
    if config.source.get("model_type") == "qwen2_5_omni_thinker":
        return _render(config.thinker_config)
    return _render(config)


def write_config(config: C.OmniConfig, path: str | Path) -> None:
    """Writes `config.json` into folder `path`."""
    target = Path(path) / "config.json"
    target.write_text(json.dumps(config_to_dict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_processor_config(folder: str | Path) -> C.ProcessorConfig:
    """Reads `preprocessor_config.json` of a published folder."""
    return _parse(C.ProcessorConfig, _read_json(folder, "preprocessor_config.json"), "preprocessor_config.json")


def write_processor_config(config: C.ProcessorConfig, folder: str | Path) -> None:
    target = Path(folder) / "preprocessor_config.json"
    target.write_text(json.dumps(_render(config), indent=2) + "\n", encoding="utf-8")


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds anything else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist. Give a checkpoint folder that holds {file.name}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON ({error}). Fetch the file again.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds {type(data).__name__}, not an object. Fetch the file again.")
    return data


def _read_json(path: str | Path, name: str) -> dict[str, Any]:
    file = Path(path)
    return read_json_object(file / name if file.is_dir() else file)


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.name != "source"]


def _places(cls: type, name: str) -> list[JsonPath]:
    return PLACES[cls].get(name, [(name,)])


def _lookup(data: Mapping[str, Any], path: JsonPath) -> tuple[bool, Any]:
    """Whether `path` stands in `data`, and its value. A null on the way counts as absent."""
    value: Any = data
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value


def _parse(cls: type, data: Mapping[str, Any], where: str):
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {type(data).__name__}, not an object.")
    for path, allowed in GUARDS.get(cls, {}).items():
        present, value = _lookup(data, path)
        if present and value not in allowed:
            raise ConfigError(
                f"{where}: {'.'.join(path)} = {value!r} changes the mathematics and is not supported. "
                f"Supported: {', '.join(repr(v) for v in allowed)}."
            )
    layer_types = data.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise ConfigError(f"{where}: layer_types = {str(layer_types)[:80]}; only 'full_attention' is supported.")

    values, missing = {}, []
    for field in _fields(cls):
        found = [value for present, value in (_lookup(data, path) for path in _places(cls, field.name)) if present]
        found = [value for value in found if value is not None]
        if found:
            component = COMPONENTS.get(cls, {}).get(field.name)
            name = f"{where}: {field.name}"
            values[field.name] = _parse(component, found[0], name) if component else _typed(field, found[0], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            missing.append(field.name)
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}. Add the missing keys: they have no safe default.")
    config = cls(**values, source=copy.deepcopy(dict(data)))
    _check(config, where)
    return config


def _typed(field: dataclasses.Field, value: Any, where: str) -> Any:
    """`value` in the field's type; lists become tuples, since configurations are hashable.

    Sizes are at least 1, token ids at least 0, numbers finite and not negative.
    """
    kind = field.type
    if kind is int and isinstance(value, list) and value and value.count(value[0]) == len(value):
        value = value[0]  # patch sizes may be written per axis
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind is int and isinstance(value, int):
            lowest = 0 if field.name.endswith("token_id") else 1
            if not lowest <= value < 2**31:
                raise ConfigError(f"{where} = {value} is out of range. Give at least {lowest}.")
            return value
        if kind is float:
            if not 0 <= value < math.inf:
                raise ConfigError(f"{where} = {value} is out of range. Give a finite number, at least 0.")
            return float(value)
    if kind is str and isinstance(value, str):
        return value
    if get_origin(kind) is tuple and _holds(value, kind):
        return tuple(tuple(item) if isinstance(item, (list, tuple)) else item for item in value)
    name = kind if get_origin(kind) else kind.__name__
    raise ConfigError(f"{where} = {repr(value)[:80]} is not of type {name}. Correct the value.")


def _holds(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the type `kind`: a number, or a tuple type such as tuple[int, ...]."""
    if get_origin(kind) is not tuple:
        numbers = (int, float) if kind is float else (kind,)
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < math.inf
    if not isinstance(value, (list, tuple)):
        return False
    items = get_args(kind)
    if items[-1] is Ellipsis:
        return all(_holds(item, items[0]) for item in value)
    return len(items) == len(value) and all(_holds(item, each) for item, each in zip(value, items))


def _check(config: Any, where: str) -> None:
    """Relations between fields that the mathematics needs."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{where}: {message}")

    if isinstance(config, C.SpeechTokenizerConfig):
        need(config.route in C.TOKENIZER_ROUTES, f"route {config.route!r} is none of {C.TOKENIZER_ROUTES}.")
        need(config.d_model % config.encoder_attention_heads == 0, "d_model must divide by encoder_attention_heads.")
        if config.route == "scratch":
            need(math.prod(config.levels) == config.num_codes, f"the levels must multiply to {config.num_codes}.")
            need(config.quantizer_layer < config.encoder_layers, "quantizer_layer must be below encoder_layers.")
    if isinstance(config, C.AudioEncoderConfig):
        need(config.d_model % config.encoder_attention_heads == 0, "d_model must divide by encoder_attention_heads.")
        need(config.n_window % 2 == 0, "n_window must be even, so that pooled pairs do not cross blocks.")
        need(config.n_window <= config.max_source_positions, "n_window must not exceed max_source_positions.")
    if isinstance(config, C.VisionEncoderConfig):
        need(config.hidden_size % config.num_heads == 0, "hidden_size must divide by num_heads.")
        need(config.window_cells >= 1, "window_size must be at least patch_size * spatial_merge_size.")
        need(config.head_dim % 4 == 0, "hidden_size / num_heads must divide by 4 for the two-axis rotary embedding.")
        need(
            all(0 <= index < config.depth for index in config.fullatt_block_indexes),
            f"fullatt_block_indexes {list(config.fullatt_block_indexes)} must lie below depth {config.depth}.",
        )
    if isinstance(config, (C.TextConfig, C.TalkerConfig)):
        need(
            config.num_attention_heads % config.num_key_value_heads == 0,
            "num_attention_heads must divide by num_key_value_heads.",
        )
        need(
            2 * sum(config.mrope_section) == config.head_dim,
            f"mrope_section {list(config.mrope_section)} must sum to half of head_dim {config.head_dim}.",
        )
    if isinstance(config, C.ThinkerConfig):
        width = config.text_config.hidden_size
        need(config.audio_config.output_dim == width, f"audio_config.output_dim must equal hidden_size {width}.")
        need(config.vision_config.out_hidden_size == width, f"vision_config.out_hidden_size must equal {width}.")
    if isinstance(config, C.OmniConfig) and config.talker_config is not None:
        width = config.thinker_config.text_config.hidden_size
        need(config.talker_config.embedding_size == width, f"talker_config.embedding_size must equal {width}.")


def _render(config: Any) -> dict[str, Any]:
    cls, out = type(config), copy.deepcopy(dict(config.source))
    for field in _fields(cls):
        value = getattr(config, field.name)
        component = COMPONENTS.get(cls, {}).get(field.name)
        if component:
            if value is not None:
                out[field.name] = _render(value)
            continue
        value = _plain(value)
        places = _places(cls, field.name)
        present = [path for path in places if _lookup(out, path)[1] is not None]
        if not present and config.source and value == _plain(_default(field)):
            continue  # the file left it out; so do we
        for path in present or places[:1]:
            _store(out, path, value)
    return out


def _default(field: dataclasses.Field) -> Any:
    return None if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _store(out: dict[str, Any], path: JsonPath, value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(out.get(key), dict):
            out[key] = {}
        out = out[key]
    if out.get(path[-1]) != value:
        out[path[-1]] = value
