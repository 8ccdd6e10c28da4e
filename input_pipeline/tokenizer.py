"""Byte-level BPE of Qwen2.5: text to ids and back, with control tokens kept out of reach of user text.

The `tokenizers` library only ever sees plain text. Control tokens (`<|im_end|>`, `<|IMAGE|>`, ...) live in our own
table: a caller that wants one asks for its id, so that nothing a user types can end a turn or claim a picture.
"""

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as _Backend
from tokenizers.models import BPE

from omni_jax.errors import CheckpointError, PromptError

# Published split of Qwen2: contractions, letters with one leading sign, single digits, punctuation, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class AddedToken:
    """An entry beyond the BPE vocabulary. `special` ones disappear from decoded text."""

    content: str
    id: int
    special: bool


class Tokenizer:
    """Text <-> token ids. Build it with `Tokenizer.load`."""

    def __init__(self, backend: _Backend, added: Iterable[AddedToken]):
        self._backend = backend
        self._added = {token.id: token for token in added}
        self._ids = {token.content: token.id for token in self._added.values()}
        harmless = [t.content for t in self._added.values() if not t.special and not _looks_like_control(t.content)]
        self._split_all = _alternatives(self._ids)
        self._split_harmless = _alternatives(harmless)
        self._special = frozenset(token.id for token in self._added.values() if token.special)
        self._vocab_size = max([self._backend.get_vocab_size(with_added_tokens=False) - 1, *self._added]) + 1

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read `tokenizer.json`, or else `vocab.json` + `merges.txt` (+ `tokenizer_config.json`), of a checkpoint.

        Raises:
            CheckpointError: no such files, or they do not describe a byte-level BPE.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return cls(*_from_tokenizer_json(folder / "tokenizer.json"))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls(*_from_vocab_and_merges(folder))
        raise CheckpointError(
            f"{folder}: no tokenizer: neither tokenizer.json nor vocab.json with merges.txt is there.\n"
            "Copy the tokenizer files of the published checkpoint into this folder."
        )

    @property
    def vocab_size(self) -> int:
        """Largest id + 1 (the model's embedding table may be larger)."""
        return self._vocab_size

    def token_id(self, name: str) -> int:
        """Id of one control token, such as `<|im_start|>`.

        Raises:
            CheckpointError: the tokenizer has no such token.
        """
        if name not in self._ids:
            known = ", ".join(sorted(self._ids)) or "none"
            raise CheckpointError(
                f"The tokenizer has no token {name!r}. It has: {known}.\n"
                "Use the tokenizer files that belong to the Qwen2.5-Omni checkpoint."
            )
        return self._ids[name]

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of `text`. Control tokens written in it stay plain text unless `special_tokens` is True.

        Raises:
            PromptError: the text holds unpaired surrogates, which no encoding of Unicode can carry.
        """
        split = self._split_all if special_tokens else self._split_harmless
        ids: list[int] = []
        for i, piece in enumerate(split.split(text) if split else [text]):
            if i % 2:  # the pattern is one group, so every second piece is an added token
                ids.append(self._ids[piece])
            elif piece:
                ids += self._encode_plain(piece)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int, skip_special_tokens: bool = True) -> bytes:
        """The bytes that one id stands for. A character may be spread over several ids."""
        token = int(token)
        if token in self._added:
            hidden = skip_special_tokens and token in self._special
            return b"" if hidden else self._added[token].content.encode("utf-8")
        if token < 0:
            return b""
        piece = self._backend.id_to_token(token)
        return b"" if piece is None else _piece_bytes(piece)

    def _encode_plain(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The text is not valid Unicode: unpaired surrogate at character {error.start}.\n"
                "Decode the input with errors='replace' before passing it on."
            ) from error
        return self._backend.encode(text, add_special_tokens=False).ids


class StreamDecoder:
    """Text of a growing list of ids, piece by piece; never half a character.

    The concatenation of every `push` and the final `flush` equals `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: int | Iterable[int]) -> str:
        """Add ids (or one id) and return the text that has become complete."""
        ids = ids if isinstance(ids, Iterable) else [ids]
        return self._utf8.decode(b"".join(self._tokenizer.token_bytes(i, self._skip) for i in ids))

    def flush(self) -> str:
        """The rest: U+FFFD if the stream stopped inside a character. The decoder is then fresh."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _looks_like_control(content: str) -> bool:
    return content.startswith("<|") and content.endswith("|>")


def _alternatives(names: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None


@lru_cache(maxsize=1)
def _byte_of_character() -> Mapping[str, int]:
    """The byte-level alphabet: printable Latin-1 characters stand for themselves, other bytes for U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _piece_bytes(piece: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode("utf-8")


def _from_tokenizer_json(file: Path) -> tuple[_Backend, list[AddedToken]]:
    content = _read_json(file)
    kind, decoder = (content.get("model") or {}).get("type"), (content.get("decoder") or {}).get("type")
    if kind != "BPE" or decoder != "ByteLevel":
        raise CheckpointError(
            f"{file}: expected a byte-level BPE, found model {kind!r} with decoder {decoder!r}.\n"
            "Use the tokenizer of the Qwen2.5-Omni checkpoint."
        )
    added = [_added_token(file, token["id"], token) for token in content.get("added_tokens") or []]
    content["added_tokens"] = []
    try:
        backend = _Backend.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file}: cannot be read: {error}.\nFetch the file again.") from error
    backend.no_padding()
    backend.no_truncation()
    return _checked(file, backend), added


def _from_vocab_and_merges(folder: Path) -> tuple[_Backend, list[AddedToken]]:
    try:
        backend = _Backend(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt cannot be read: {error}.\nFetch the two files again, together."
        ) from error
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    file = folder / "tokenizer_config.json"
    table = _read_json(file).get("added_tokens_decoder", {}) if file.is_file() else {}
    added = [_added_token(file, int(token_id), token) for token_id, token in table.items()]
    return _checked(folder / "vocab.json", backend), added


def _added_token(file: Path, token_id: int, token: Mapping) -> AddedToken:
    for flag in ("lstrip", "rstrip", "single_word"):
        if token.get(flag):
            raise CheckpointError(
                f"{file}: added token {token['content']!r} sets {flag!r}, which no Qwen2.5 token does."
            )
    return AddedToken(token["content"], token_id, bool(token.get("special")))


def _checked(file: Path, backend: _Backend) -> _Backend:
    """Every byte must have a token, or some text could not be encoded and would be dropped in silence."""
    missing = [byte for character, byte in _byte_of_character().items() if backend.token_to_id(character) is None]
    if missing:
        raise CheckpointError(
            f"{file}: not a byte-level vocabulary: {len(missing)} of 256 bytes have no token, the first is "
            f"{missing[0]:#04x}.\nUse the tokenizer of the Qwen2.5-Omni checkpoint."
        )
    return backend


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}.\nFetch the file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds {type(content).__name__}, not an object.\nFetch the file again.")
    return content
