"""Conversations to segments: ChatML text as token ids, and media still to be read.

    [{"role": "user", "content": [{"type": "image", "image": "cat.jpg"}, {"type": "text", "text": "What is this?"}]}]
      ->  TextSegment(<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n)
          MediaSegment("image", "cat.jpg")
          TextSegment(What is this?<|im_end|>\\n<|im_start|>assistant\\n)

A media segment stands for a whole triple such as `<|vision_bos|><|IMAGE|><|vision_eos|>`.
The wording is that of the published chat template of Qwen2.5-Omni.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from input_pipeline.tokenizer import Tokenizer
from omni_jax.errors import PromptError

Kind = Literal["image", "audio", "video"]

DEFAULT_SYSTEM_TEXT = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")

# The three control tokens that a single medium is written as.
TRIPLES: dict[Kind, tuple[str, str, str]] = {
    "image": ("<|vision_bos|>", "<|IMAGE|>", "<|vision_eos|>"),
    "audio": ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
    "video": ("<|vision_bos|>", "<|VIDEO|>", "<|vision_eos|>"),
}

_LABELS: dict[Kind, str] = {"image": "Picture", "audio": "Audio", "video": "Video"}
_MEDIA_TYPES: dict[str, Kind] = {
    "image": "image",
    "image_url": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}
_VIDEO_OPTIONS = ("use_audio", "fps")


@dataclass(frozen=True)
class TextSegment:
    """Token ids. `target`: an assistant's words and the end of its turn, as `render_turn` tells them apart."""

    ids: tuple[int, ...]
    target: bool = False


@dataclass(frozen=True)
class MediaSegment:
    """One medium. `source` is what `media.load_*` takes; `where` names its place in error messages.

    `use_audio` (videos): take the sound track along; None leaves it to the request. `fps`: None samples by default.
    """

    kind: Kind
    source: Any
    where: str
    use_audio: bool | None = None
    fps: float | None = None


Segment = TextSegment | MediaSegment


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    add_vision_id: bool = False,
    add_audio_id: bool = False,
    default_system: str | None = DEFAULT_SYSTEM_TEXT,
) -> list[Segment]:
    """Render a conversation as ChatML.

    Args:
        messages: `{"role": "system" | "user" | "assistant", "content": str | list of items}`. Items:
            `{"type": "text", "text": str}`, `{"type": "image", "image": source}`, `{"type": "audio", "audio": source}`,
            `{"type": "video", "video": source, "use_audio": bool, "fps": float}` (the last two may be left out), and
            the OpenAI spellings `image_url`, `audio_url`, `video_url` (`{"url": ...}` or a string) and `input_audio`
            (`{"data": base64}`).
        add_generation_prompt: end with the opening of an assistant turn.
        add_vision_id, add_audio_id: write "Picture 1: ", "Video 1: ", "Audio 1: " before each medium.
        default_system: what a conversation without a system turn begins with; None leaves it without.

    Returns:
        Text and media in order. Control tokens come from the template only; written by a user, they are plain text.

    Raises:
        PromptError: a malformed message; the text names the message and the item, counted from 1.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(
            "A conversation is a list of at least one message.\n"
            'Write [{"role": "user", "content": "Hello"}], for example.'
        )
    writer = _Writer(tokenizer)
    seen: Counter[Kind] = Counter()
    for number, message in enumerate(messages, start=1):
        role = _role(message, f"message {number}")
        if number == 1 and role != "system" and default_system is not None:
            writer.open("system")
            writer.text(default_system)
            writer.close()
        writer.open(role)
        for item in _items(message.get("content"), f"message {number}"):
            if isinstance(item, MediaSegment):
                seen[item.kind] += 1
                if add_audio_id if item.kind == "audio" else add_vision_id:
                    writer.text(f"{_LABELS[item.kind]} {seen[item.kind]}: ")
                writer.media(item)
            else:
                writer.text(item)
        writer.close()
    if add_generation_prompt:
        writer.open("assistant")
    return writer.finish()


def render_turn(message: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> list[Segment]:
    """One turn of a conversation for training; the turns of a conversation are simply joined.

    An assistant's words make a segment of their own, with the `<|im_end|>` that the model must learn to write:

        <|im_start|>assistant\\n │ Hello.<|im_end|> (target) │ \\n

    Ids are those of `render`, but for words that begin with a line break: there, the break of the role's line is not
    merged with it, because the model writes its words after a prompt that has already ended.

    Raises:
        PromptError: a malformed message (the text begins with `where`), or an assistant's turn that is not text.
    """
    role = _role(message, where)
    items = _items(message.get("content"), where)
    writer = _Writer(tokenizer)
    writer.open(role)
    if role == "assistant":
        media = next((item for item in items if isinstance(item, MediaSegment)), None)
        if media is not None:
            raise PromptError(f"{media.where}: an assistant's turn holds text, not {media.kind}. Give it to the user.")
        writer.words("".join(items))
    else:
        for item in items:
            writer.media(item) if isinstance(item, MediaSegment) else writer.text(item)
        writer.close()
    return writer.finish()


def placeholder_ids(segments: Sequence[Segment], tokenizer: Tokenizer) -> list[int]:
    """Ids of the rendered conversation with one placeholder per medium, before expansion."""
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, TextSegment):
            ids += segment.ids
        else:
            ids += [tokenizer.token_id(name) for name in TRIPLES[segment.kind]]
    return ids


class _Writer:
    """Collects text between control tokens, because BPE must see each such run in one piece."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._segments: list[Segment] = []
        self._ids: list[int] = []
        self._run: list[str] = []

    def open(self, role: str) -> None:
        self._control("<|im_start|>")
        self.text(role + "\n")

    def close(self) -> None:
        self._control("<|im_end|>")
        self.text("\n")

    def text(self, text: str) -> None:
        self._run.append(text)

    def media(self, segment: MediaSegment) -> None:
        self._cut()
        self._segments.append(segment)

    def words(self, text: str) -> None:
        """An assistant's words and the end of its turn."""
        self._cut()
        self.text(text)
        self._control("<|im_end|>")
        self._cut(target=True)
        self.text("\n")

    def finish(self) -> list[Segment]:
        self._cut()
        return self._segments

    def _control(self, name: str) -> None:
        self._encode_run()
        self._ids.append(self._tokenizer.token_id(name))

    def _encode_run(self) -> None:
        self._ids += self._tokenizer.encode("".join(self._run))
        self._run = []

    def _cut(self, *, target: bool = False) -> None:
        self._encode_run()
        if self._ids:
            self._segments.append(TextSegment(tuple(self._ids), target))
        self._ids = []


def _role(message: Any, where: str) -> str:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where}: expected an object with 'role' and 'content', found {type(message).__name__}.")
    role = message.get("role")
    if role not in ROLES:
        raise PromptError(f"{where}: role {role!r} is not known. Use one of {', '.join(ROLES)}.")
    return role


def _items(content: Any, where: str) -> list[str | MediaSegment]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"{where}: 'content' must be a string or a list of items, found {type(content).__name__}.")
    return [_item(item, f"{where}, item {number}") for number, item in enumerate(content, start=1)]


def _item(item: Any, where: str) -> str | MediaSegment:
    if not isinstance(item, Mapping):
        raise PromptError(f'{where}: expected an object such as {{"type": "text", "text": ...}}, found {item!r:.60}.')
    kind = item.get("type")
    if kind == "text":
        _only_keys(item, ("type", "text"), where)
        if not isinstance(item.get("text"), str):
            raise PromptError(f"{where}: a text item needs a string under 'text'.")
        return item["text"]
    if not isinstance(kind, str) or kind not in _MEDIA_TYPES:
        raise PromptError(f"{where}: type {kind!r} is not known. Use one of text, {', '.join(_MEDIA_TYPES)}.")
    medium = _MEDIA_TYPES[kind]
    _only_keys(item, ("type", kind, *(_VIDEO_OPTIONS if medium == "video" else ())), where)
    return MediaSegment(medium, _source(item, kind, where), where, **_video_options(item, where))


def _source(item: Mapping[str, Any], kind: str, where: str) -> Any:
    source = item.get(kind)
    if isinstance(source, Mapping):
        if "url" in source:
            source = source["url"]
        elif kind == "input_audio" and "data" in source:
            source = _base64(source["data"], where)
        else:
            raise PromptError(
                f"{where}: the object under {kind!r} needs the key 'url'" + " or 'data'." * (kind == "input_audio")
            )
    if source is None or (isinstance(source, (str, bytes)) and not source):
        raise PromptError(f"{where}: an item of type {kind!r} needs its source under the key {kind!r}.")
    return source


def _base64(data: Any, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise PromptError(f"{where}: 'data' of input_audio is not base64: {error}.") from error


def _video_options(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    use_audio, fps = item.get("use_audio"), item.get("fps")
    if use_audio is not None and not isinstance(use_audio, bool):
        raise PromptError(f"{where}: 'use_audio' must be true or false, found {use_audio!r}.")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not fps > 0):
        raise PromptError(f"{where}: 'fps' must be a number above 0, found {fps!r}.")
    return {"use_audio": use_audio, "fps": fps}


def _only_keys(item: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    extra = [key for key in item if key not in known]
    if extra:
        raise PromptError(
            f"{where}: unknown key {extra[0]!r}. An item of type {item['type']!r} takes {', '.join(known)}."
        )
