"""What a conversation needs to become training examples, and what an example takes of a packed row."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
from input_pipeline.request import check_control_tokens
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.training_batch import Example, RowShape, Sizes
from omni_jax.config import OmniConfig, ProcessorConfig, ThinkerConfig
from omni_jax.errors import ConfigError

# Raise it when the same conversation comes to mean other tokens: indexes and shards made before are then refused.
_VERSION = 1
KINDS = tuple(each.name for each in fields(Sizes))  # columns of `Source.sizes`


@dataclass(frozen=True, eq=False)
class ExampleContext:
    """How conversations are read.

    voices: embedding row of each voice by name; empty for a model that does not speak.
    num_codes: how many codes speech is written in (see `speech_codes`); 0 for a model that does not speak.
    use_audio_in_video: hear the sound tracks of films that have one and do not say `use_audio` themselves.
    default_system: the system turn of conversations that have none; None leaves them without.
    train_on: learn the words of all assistant turns of an example, or of its last.
    with_speech: False leaves spoken answers out, for runs that train the Thinker alone.

    Raises:
        ConfigError: tokenizer and model disagree about control tokens, or a voice is no row of the embedding.
    """

    tokenizer: Tokenizer
    config: OmniConfig
    processor: ProcessorConfig
    voices: Mapping[str, int] = field(default_factory=dict)
    num_codes: int = 0
    use_audio_in_video: bool = False
    default_system: str | None = DEFAULT_SYSTEM_TEXT
    train_on: Literal["all", "last"] = "all"
    with_speech: bool = True

    def __post_init__(self) -> None:
        check_control_tokens(self.tokenizer, self.config.thinker_config)
        if self.train_on not in ("all", "last"):
            raise ConfigError(f"train_on {self.train_on!r} is not known. Use 'all' or 'last'.")
        rows = self.config.thinker_config.text_config.vocab_size
        wrong = {name: row for name, row in self.voices.items() if not 0 <= row < rows}
        if wrong:
            raise ConfigError(f"voices {wrong} are no rows of an embedding of {rows}. Take them from the checkpoint.")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that examples depend on besides their source, by name, as JSON. Equal facts make equal examples."""
        thinker = self.config.thinker_config
        return {
            "version": _VERSION,
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "model": _model_facts(thinker),
            "processor": _digest(repr(self.processor)),
            "voices": dict(sorted(self.voices.items())),
            "num_codes": self.num_codes,
            "use_audio_in_video": self.use_audio_in_video,
            "default_system": self.default_system,
            "train_on": self.train_on,
            "with_speech": self.with_speech,
        }


def speech_codes(config: OmniConfig) -> int:
    """Codes that a model's speech is written in, 0 … n - 1; 0 for a model that does not speak."""
    if config.talker_config is None:
        return 0
    if config.token2wav_config is None:
        return config.talker_config.tts_codec_pad_token_id
    return min(config.token2wav_config.dit_config.num_embeds, config.talker_config.tts_codec_pad_token_id)


def sizes_of(example: Example, config: OmniConfig) -> Sizes:
    """What an example takes of a row.

    A spoken answer of C codes to a prompt of P tokens takes P + 2 + C positions of the Talker: the prompt, the voice,
    the start, and one for each code that is fed.
    """
    block = config.thinker_config.audio_config.block_frames
    prompt = example.reply[0] if example.reply else 0
    return Sizes(
        tokens=len(example.token_ids),
        audio_blocks=sum(-(-mel.shape[1] // block) for mel in example.audio),
        patches=sum(len(item.pixels) for item in example.vision),
        speech=sum(prompt + 2 + len(answer.codes) for answer in example.speech),
        pairs=int(len(example.speech) == 2),
    )


def add(*sizes: Sizes) -> Sizes:
    """Sizes, kind by kind."""
    return Sizes(*(sum(getattr(each, kind) for each in sizes) for kind in KINDS))


def excess(sizes: Sizes, limit: RowShape) -> str:
    """ "What does not fit: "9000 tokens (at most 8192), 2 pairs (at most 1)"; empty where all fits."""
    pairs = [(kind, getattr(sizes, kind), getattr(limit, kind)) for kind in KINDS]
    return ", ".join(f"{have} {kind} (at most {room})" for kind, have, room in pairs if have > room)


def fingerprint(**facts: Any) -> str:
    """A hash of JSON values."""
    return _digest(json.dumps(facts, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _model_facts(thinker: ThinkerConfig) -> dict[str, Any]:
    """Of the model's sizes those that decide about tokens and positions."""
    ids = replace(thinker, audio_config=None, vision_config=None, text_config=None)
    return {
        "ids": _digest(repr(ids)),
        "block_frames": thinker.audio_config.block_frames,
        "spatial_merge_size": thinker.vision_config.spatial_merge_size,
        "positions": thinker.text_config.max_position_embeddings,
    }


def _tokenizer_digest(tokenizer: Tokenizer) -> str:
    """The vocabulary, whose order is that of the merges, and the splitting of a text that has every kind of split."""
    digest = hashlib.sha256()
    for token in range(tokenizer.vocab_size):
        digest.update(tokenizer.token_bytes(token, skip_special_tokens=False) + b"\0")
    probe = "I'd say: \u0041\u030a  12345\n\n x\t你好 <|im_end|><tool_call>"
    return _digest(digest.hexdigest() + repr(tokenizer.encode(probe)))
