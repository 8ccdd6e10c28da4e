"""The tokenizer of Qwen2.5 becomes that of Qwen2.5-Omni: the same text, some control tokens under other names.

Both models have the same ids: those that Qwen2.5 keeps for boxes and objects mark sound in Qwen2.5-Omni, and those for
pictures have other names. The rows of the embedding stay where they are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig
from omni_jax.config_json import read_json_object
from omni_jax.errors import CheckpointError
from omni_jax.interop.random_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS

# Control tokens in the order of their ids, from <|endoftext|> to <|VIDEO|>. What follows is the same in both models.
CONTROL = SPECIAL_TOKENS[: SPECIAL_TOKENS.index("<|VIDEO|>") + 1]
# Name in Qwen2.5-Omni: name in Qwen2.5, and the field of ThinkerConfig that holds the id.
RENAMED = {
    "<|AUDIO|>": ("<|object_ref_start|>", "audio_token_id"),
    "<|audio_bos|>": ("<|object_ref_end|>", "audio_start_token_id"),
    "<|audio_eos|>": ("<|box_start|>", "audio_end_token_id"),
    "<|vision_bos|>": ("<|vision_start|>", "vision_start_token_id"),
    "<|vision_eos|>": ("<|vision_end|>", "vision_end_token_id"),
    "<|IMAGE|>": ("<|image_pad|>", "image_token_id"),
    "<|VIDEO|>": ("<|video_pad|>", "video_token_id"),
}
_FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
_PLAIN_FILES = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of a tokenizer: those that are written anew, and those that are copied.

    first_id: of <|endoftext|>; the other control tokens follow.
    """

    json: Mapping[str, Mapping[str, Any]]
    copied: tuple[Path, ...]
    first_id: int

    @property
    def ends(self) -> dict[str, int]:
        """Ids of the tokens that begin, end and pad text, as config.json names them."""
        places = {"bos_token_id": "<|im_start|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}
        return {key: self.first_id + CONTROL.index(name) for key, name in places.items()}

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json: an answer ends with its turn, or with the document, as language models know it."""
        end, pad = self.ends["eos_token_id"], self.ends["pad_token_id"]
        return {"eos_token_id": [end, pad], "pad_token_id": pad}


def find_tokenizer(folders: Iterable[Path]) -> Path:
    """The first of `folders` that holds a tokenizer.

    Raises:
        CheckpointError: none does.
    """
    folders = list(folders)
    for folder in folders:
        if (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in _PLAIN_FILES):
            return folder
    raise CheckpointError(
        f"No tokenizer (tokenizer.json, or vocab.json with merges.txt) is in {', '.join(map(str, folders))}. "
        "Fetch the tokenizer files of the language model into its folder, or give --language."
    )


def omni_tokenizer(folder: Path, config: OmniConfig) -> TokenizerFiles:
    """The tokenizer of `folder` (of Qwen2.5, Qwen2.5-VL or Qwen2.5-Omni) as that of a model with `config`.

    Raises:
        CheckpointError: a file is damaged; an id that the configuration gives a control token has another use.
    """
    known = Tokenizer.load(folder)
    whole = read_json_object(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
    about = folder / "tokenizer_config.json"
    settings = read_json_object(about) if about.is_file() else {}
    if whole is None:
        table = {int(number): token for number, token in settings.get("added_tokens_decoder", {}).items()}
    else:
        table = {token["id"]: token for token in whole.get("added_tokens") or []}
    added = _omni_tokens(folder, {number: dict(token) for number, token in table.items()})
    first = min(number for number, token in added.items() if token["content"] == CONTROL[0])
    _check_ids(folder, config, first, known.vocab_size)

    entries = {str(number): {k: v for k, v in token.items() if k != "id"} for number, token in added.items()}
    roles = {f"{name.strip('<|>').lower()}_token": name for name in RENAMED}
    settings = {key: value for key, value in settings.items() if key != "additional_special_tokens"} | {
        "added_tokens_decoder": entries,
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "extra_special_tokens": roles,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen2_5OmniProcessor",
        "tokenizer_class": "Qwen2Tokenizer",
        **roles,
    }
    files = {"tokenizer_config.json": settings, "chat_template.json": {"chat_template": CHAT_TEMPLATE}}
    if whole is not None:
        files["tokenizer.json"] = whole | {
            "added_tokens": [{"id": number, **token} for number, token in sorted(added.items())]
        }
    copied = tuple(folder / name for name in _PLAIN_FILES if (folder / name).is_file())
    return TokenizerFiles(files, copied, first)


def _omni_tokens(folder: Path, table: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Added tokens by id, under the names of Qwen2.5-Omni; those that are absent are added."""
    ids = {token.get("content"): number for number, token in table.items()}
    if CONTROL[0] not in ids:
        raise CheckpointError(f"{folder}: the tokenizer has no token {CONTROL[0]}. Give the tokenizer of Qwen2.5.")
    for number, name in enumerate(CONTROL, start=ids[CONTROL[0]]):
        old = RENAMED.get(name, (name,))[0]
        found = table.get(number, {}).get("content", name)
        elsewhere = [other for each in (name, old) if (other := ids.get(each, number)) != number]
        if found not in (name, old) or elsewhere:
            where = f", and that token has id {elsewhere[0]}" if elsewhere else ""
            raise CheckpointError(
                f"{folder}: id {number} is {found} in this tokenizer, where Qwen2.5-Omni has {name} (in Qwen2.5: "
                f"{old}){where}. Give the tokenizer of a Qwen2.5 model."
            )
        table[number] = {"content": name, **_FLAGS, "special": True}
    return table


def _check_ids(folder: Path, config: OmniConfig, first: int, tokens: int) -> None:
    """Control tokens stand where the configuration says, and what only the Talker uses stands beyond all tokens."""
    thinker, talker = config.thinker_config, config.talker_config
    for name, (_, field) in RENAMED.items():
        here, there = first + CONTROL.index(name), getattr(thinker, field)
        if here != there:
            raise CheckpointError(
                f"{folder}: {name} has id {here} in this tokenizer, but {there} in the configuration ({field}). "
                "Choose the preset that belongs to this tokenizer."
            )
    rows = thinker.text_config.vocab_size
    tokens = max(tokens, first + len(CONTROL))
    if tokens > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {tokens - 1}, but the language model has {rows} rows. "
            "Give the tokenizer that belongs to the language model."
        )
    for field in ("tts_text_pad_token_id", "tts_text_start_token_id", "tts_text_end_token_id"):
        number = getattr(talker, field)
        if not tokens <= number < rows:
            raise CheckpointError(
                f"{folder}: the Talker's {field} = {number} must be a row that no token uses, from {tokens} to "
                f"{rows - 1}. Choose the preset that belongs to this language model, or another language model."
            )
