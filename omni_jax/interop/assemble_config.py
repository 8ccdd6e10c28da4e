"""The configuration of a model that is put together from published parts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_jax.config import OmniConfig, Token2WavConfig
from omni_jax.config_json import config_from_dict, read_json_object
from omni_jax.errors import CheckpointError, ConfigError
from omni_jax.interop.random_checkpoint import published_dict
from omni_jax.interop.table_parts import LANGUAGE, Part
from omni_jax.presets import preset


@dataclass(frozen=True)
class Source:
    """A published folder that a part comes from.

    keys: its config.json. config: our configuration of the part, in the width that the folder's tensors have.
    """

    part: Part
    folder: Path
    keys: Mapping[str, Any]
    config: Any

    @property
    def width(self) -> int | None:
        """Of what the part hands to the language model, where it has an adapter."""
        return getattr(self.config, self.part.width) if self.part.width else None

    def fits(self, width: int) -> bool:
        return self.width in (None, width)


def choose_preset(name: str | None, folders: Mapping[Part, Path]) -> OmniConfig:
    """The preset called `name`; without a name the published model as wide as the language model, else the 7B one."""
    if name is not None:
        return preset(name)
    if LANGUAGE in folders and read_section(LANGUAGE, folders[LANGUAGE])[1].get("hidden_size") == 2048:
        return preset("qwen2.5-omni-3b")
    return preset("qwen2.5-omni-7b")


def read_section(part: Part, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json of `folder`, and what in it describes `part`.

    Raises:
        CheckpointError: the folder holds another kind of model.
    """
    keys = read_json_object(folder / "config.json")
    kind = keys.get("model_type")
    if kind not in part.model_types:
        names = ", ".join(str(name) for name in keys.get("architectures") or []) or "no architecture named"
        raise CheckpointError(
            f"{folder} holds a model of type {kind!r} ({names}), but --{part.option} takes "
            f"{' or '.join(map(repr, part.model_types))}. Give the folder of such a model."
        )
    section = part.model_types[kind]
    found = keys if section is None else keys.get(section)
    if not isinstance(found, dict):
        raise ConfigError(f"{folder / 'config.json'} lacks {section}. Fetch the file again.")
    return keys, found


def read_source(part: Part, folder: Path, base: OmniConfig) -> Source:
    """Reads and checks the configuration of a part. Whatever it leaves out of ours is as in `base`.

    Raises:
        ConfigError: a key is missing, of a wrong type, or asks for mathematics that is not supported.
        CheckpointError: the folder holds another kind of model.
    """
    keys, section = read_section(part, folder)
    thinker = published_dict(replace(base, source={}))["thinker_config"]
    width, own = base.thinker_config.text_config.hidden_size, None
    if part is LANGUAGE:
        section = section | {
            "rope_scaling": (section.get("rope_scaling") or {}) | {"mrope_section": _sections(section)}
        }
        width = section.get("hidden_size", width)
    elif part.width:
        own = section.get(part.width)
        if not isinstance(own, int) or own < 1:
            raise ConfigError(f"{folder / 'config.json'} lacks {part.width}. Fetch the file again.")
    if part.section == "audio_config":
        section = section | {"n_window": base.thinker_config.audio_config.n_window}
    thinker[part.section] = section
    thinker["audio_config"]["output_dim"] = thinker["vision_config"]["out_hidden_size"] = width
    try:
        parsed = config_from_dict(thinker).thinker_config
    except ConfigError as error:
        raise ConfigError(f"{folder} cannot be a part of Qwen2.5-Omni: {error}") from error
    config = replace(getattr(parsed, part.section), source={})
    return Source(part, folder, keys, config if own is None else replace(config, **{part.width: own}))


def _sections(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """How TMRoPE divides the rotary frequencies of a model that had one position: 16, 24, 24 for heads of 128."""
    heads = text.get("num_attention_heads")
    half = text.get("hidden_size", 0) // (2 * heads) if isinstance(heads, int) and heads > 0 else 0
    space = 3 * half // 8
    return half - 2 * space, space, space


def whole_config(base: OmniConfig, sources: Iterable[Source], token2wav: Token2WavConfig | None) -> OmniConfig:
    """`base` with the parts of `sources` and the given Token2Wav, everything in the language model's width."""
    parts = {source.part.section: source.config for source in sources}
    thinker = replace(base.thinker_config, **parts)
    width = thinker.text_config.hidden_size
    thinker = replace(
        thinker,
        audio_config=replace(thinker.audio_config, output_dim=width),
        vision_config=replace(thinker.vision_config, out_hidden_size=width),
    )
    talker = replace(base.talker_config, embedding_size=width)
    return OmniConfig(thinker, talker, token2wav or base.token2wav_config)


def published_form(config: OmniConfig, *, dtype: str, talker: bool, ends: Mapping[str, int]) -> dict[str, Any]:
    """The published config.json of `config`; `ends` are the ids of the tokens that begin, end and pad text."""
    out = published_dict(config, dtype=dtype, talker=talker)
    for part in (out["thinker_config"], out["thinker_config"]["text_config"]):
        part |= ends
    return out
