"""Weight tables of the three published models from which a Qwen2.5-Omni is begun (paper, section 3).

Each table is ours of the same component under the names of that model: Qwen2.5, Qwen2.5-VL and Whisper name the same
parts otherwise, and Qwen2.5-VL stores query, key and value as one tensor.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omni_jax.config import AudioEncoderConfig, TextConfig, VisionEncoderConfig
from omni_jax.interop import table_thinker
from omni_jax.interop.weight_table import Entry, Table, Transform


@dataclass(frozen=True, eq=False)
class Part:
    """A model that one component comes from.

    Args:
        option: what the command line calls it.
        component, section: ours, and the section of our `thinker_config` that describes it.
        model_types: `model_type` of its config.json -> the section there that describes the part (None: the file).
        prefixes: what its tensor names may begin with; releases differ.
        anchor: the beginning, after the prefix, of a name that no other part has.
        table: (configuration, the published file's own keys) -> table, names without prefix.
        computed: ends of names of tensors that are not read, because the model computes or ties them.
        adapter: our parameters between the part and the language model, and the key of its width in the section.
    """

    option: str
    component: str
    section: str
    model_types: Mapping[str, str | None]
    prefixes: tuple[str, ...]
    anchor: str
    table: Callable[[Any, Mapping[str, Any]], Table]
    computed: tuple[str, ...]
    adapter: str = ""
    width: str = ""

    def prefix(self, names: Collection[str]) -> str:
        """What the names of this part begin with in this release."""
        found = [prefix for prefix in self.prefixes if any(name.startswith(prefix + self.anchor) for name in names)]
        return (found or self.prefixes)[0]


def language(config: TextConfig, keys: Mapping[str, Any]) -> Table:
    """Qwen2.5. Small ones tie their head to the embedding, where ours is a parameter of its own: a copy."""
    names = {"model.": "model.", "lm_head.": "lm_head."}
    table = _renamed(table_thinker.text_decoder(config), "thinker.", names)
    if keys.get("tie_word_embeddings"):
        tied = {"lm_head.weight": "model.embed_tokens.weight"}
        table = [replace(entry, torch=tied.get(entry.torch, entry.torch)) for entry in table]
    return table


def vision(config: VisionEncoderConfig, keys: Mapping[str, Any]) -> Table:
    """The vision encoder of Qwen2.5-VL, with its merger."""
    names = {"": ""} | {f"blocks.{{i}}.attn.{part}.": "blocks.{i}.attn.qkv." for part in "qkv"}
    fused = [entry.torch.split(".")[-2] for entry in table_thinker.vision_encoder(config)]
    table = _renamed(table_thinker.vision_encoder(config), "thinker.visual.", names)
    return [_third(entry, "qkv".index(part)) if part in "qkv" else entry for entry, part in zip(table, fused)]


def audio(config: AudioEncoderConfig, keys: Mapping[str, Any]) -> Table:
    """The encoder of Whisper. Its last norm is ours after pooling; the projection is not part of it."""
    names = {"conv": "conv", "layers.": "layers.", "ln_post.": "layer_norm."}
    return _renamed(table_thinker.audio_encoder(config), "thinker.audio_tower.", names)


# Whisper stores its sines.
POSITIONS = "embed_positions.weight"

LANGUAGE = Part(
    "language",
    "thinker",
    "text_config",
    {"qwen2": None},
    ("",),
    "model.",
    language,
    (".inv_freq", "lm_head.weight"),
)
VISION = Part(
    "vision",
    "vision_encoder",
    "vision_config",
    {"qwen2_5_vl": "vision_config", "qwen2_5_vl_vision": None},
    ("visual.", "model.visual.", ""),
    "patch_embed.",
    vision,
    (".inv_freq",),
    adapter="vision_encoder/merger/",
    width="out_hidden_size",
)
AUDIO = Part(
    "audio",
    "audio_encoder",
    "audio_config",
    {"whisper": None},
    ("model.encoder.", "encoder."),
    "conv1.",
    audio,
    (POSITIONS,),
)
PARTS = (LANGUAGE, VISION, AUDIO)


def _renamed(table: Table, prefix: str, names: Mapping[str, str]) -> Table:
    """Entries whose name after `prefix` begins with a key of `names` (the longest counts), under the new beginning."""
    renamed = []
    for entry in table:
        name = entry.torch.removeprefix(prefix)
        begins = [old for old in names if name.startswith(old)]
        if begins:
            old = max(begins, key=len)
            renamed.append(replace(entry, torch=names[old] + name.removeprefix(old)))
    return renamed


def _third(entry: Entry, index: int) -> Entry:
    """Query, key or value (0, 1, 2), read from the tensor in which they are stacked. `to_torch` gives it alone."""
    one = entry.transform

    def to_jax(x):
        size = x.shape[0] // 3
        return one.to_jax(x[index * size : (index + 1) * size])

    shape = (3 * entry.shape[0], *entry.shape[1:])
    return replace(entry, transform=Transform(f"third({index}, {one.name})", to_jax, one.to_torch), shape=shape)
