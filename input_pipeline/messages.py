"""Conversations as data sets write them (OpenAI, ms-swift), brought to one form.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, ...], "images": ["cat.jpg"]}
      ->  {"messages": [{"role": "user", "content": [{"type": "image", "image": "/data/cat.jpg"},
                                                     {"type": "text", "text": "What is this?"}]}, ...]}

The one form has no placeholders, no relative paths and no files of codes, so that it means the same wherever it is
read; a plain text, `{"text": ...}`, stays as it is.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.errors import DataError

LISTS = {"image": "images", "audio": "audios", "video": "videos"}
MEDIA_KEYS = ("image", "image_url", "audio", "audio_url", "video", "video_url")
_PLACEHOLDER = re.compile("<(image|audio|video)>")
_URL = re.compile("data:|file://|https?://")
# Keys that other programs give a meaning which would be lost here.
_REFUSED = ("image", "audio", "video", "tools", "rejected_response", "rejected_messages", "query", "conversations")


def one_form(conversation: Any, folder: Path | None = None) -> dict[str, Any]:
    """A conversation without placeholders and relative paths; applied twice it does no more.

    Args:
        conversation: `{"messages": [{"role", "content", "loss"}, ...]}` or `{"text": str}`. Contents are strings, in
            which `<image>`, `<audio>` and `<video>` stand for the entries of the lists "images", "audios", "videos" in
            order; or lists of items (see `chat.render`), whose texts are taken literally. A spoken answer is an item
            `{"type": "speech", "voice", "codes"}` or `{"type": "speech", "voice", "chosen", "rejected", "reference"}`;
            `{"type": "speech", "voice", "audio"}` until `omni-jax speech-codes` has made codes of the recording.
            Other keys are left alone.
        folder: what relative paths start from; None leaves them.

    Raises:
        DataError: malformed, or placeholders and media differ in number.
    """
    if not isinstance(conversation, Mapping):
        raise DataError(f"expected an object with 'messages' or 'text', found {type(conversation).__name__}.")
    refused = next((key for key in _REFUSED if key in conversation), None)
    if refused is not None:
        raise DataError(f"the key {refused!r} has no meaning here. {_hint(refused)}")
    forms = [key for key in ("messages", "text", "token_ids") if key in conversation]
    if len(forms) != 1:
        found = f"found {' and '.join(forms)}" if forms else f"found the keys {', '.join(map(repr, conversation))}"
        raise DataError(f"expected either 'messages' or 'text', {found or 'found nothing'}.")
    if forms != ["messages"]:
        return _plain(conversation, forms[0])
    messages = conversation["messages"]
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise DataError("'messages' must be a list of at least one message.")
    queues = {kind: _listed(conversation, kind, folder) for kind in LISTS}
    out = [_message(m, f"message {number}", queues, folder) for number, m in enumerate(messages, start=1)]
    for kind, queue in queues.items():
        left = sum(1 for _ in queue)
        if left:
            raise DataError(
                f"{left} more of {LISTS[kind]!r} than placeholders <{kind}> in the texts. Write one for each, where "
                "the medium belongs."
            )
    return {"messages": out}


def with_sources(messages: Sequence[Mapping[str, Any]], change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Messages of the one form with each source of a medium replaced by `change(source)`."""

    def item(each: Any) -> Any:
        key = each.get("type") if isinstance(each, Mapping) else None
        if key not in MEDIA_KEYS or key not in each:
            return each
        url = each[key].get("url") if isinstance(each[key], Mapping) else None
        return {**each, key: change(each[key] if url is None else url)}

    def content(value: Any) -> Any:
        return value if isinstance(value, str) else [item(each) for each in value]

    return [{**message, "content": content(message["content"])} for message in messages]


def _plain(conversation: Mapping[str, Any], form: str) -> dict[str, Any]:
    kinds = [name for name in LISTS.values() if conversation.get(name)]
    if kinds:
        raise DataError(f"a plain text has no place for {kinds[0]!r}. Write 'messages' instead of 'text'.")
    if form == "text" and (not isinstance(conversation["text"], str) or not conversation["text"]):
        raise DataError("'text' must be a string that is not empty.")
    return {form: conversation[form]}


def _hint(key: str) -> str:
    if key in ("image", "audio", "video"):
        return f"Did you mean {LISTS[key]!r}?"
    if key.startswith("rejected"):
        return 'Preferences are spoken answers: an item {"type": "speech", "chosen": ..., "rejected": ...}.'
    return "Write the conversation as 'messages'; leave other keys out."


def _listed(conversation: Mapping[str, Any], kind: str, folder: Path | None) -> Iterator[Any]:
    sources = conversation.get(LISTS[kind])
    sources = [] if sources is None else sources
    if isinstance(sources, (str, bytes, Mapping)) or not isinstance(sources, Sequence):
        raise DataError(f"{LISTS[kind]!r} must be a list, found {type(sources).__name__}.")
    return iter([_source(source, f"{LISTS[kind]}[{i}]", folder) for i, source in enumerate(sources)])


def _source(source: Any, where: str, folder: Path | None) -> Any:
    """{"bytes": ..., "path": ...} (Hugging Face) -> what it holds; a relative path -> one from `folder`."""
    if isinstance(source, Mapping) and ("bytes" in source or "path" in source):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Mapping) and "url" in source:
        source = source["url"]
    if source is None or (isinstance(source, (str, bytes)) and not source):
        raise DataError(f"{where}: the source of the medium is missing.")
    if isinstance(source, (str, Path)) and folder is not None and not _URL.match(str(source)):
        return str(folder / source)
    return source


def _message(message: Any, where: str, queues: Mapping[str, Iterator[Any]], folder: Path | None) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        raise DataError(f"{where}: expected an object with 'role' and 'content', found {message!r:.60}.")
    if message.get("tool_calls"):
        raise DataError(f"{where}: 'tool_calls' are not taken. Write the call as text.")
    out = {"role": message["role"], "content": _content(message["content"], where, queues, folder)}
    if message.get("loss") is not None:
        if not isinstance(message["loss"], bool):
            raise DataError(f"{where}: 'loss' must be true or false, found {message['loss']!r:.40}.")
        out["loss"] = message["loss"]
    return out


def _content(content: Any, where: str, queues: Mapping[str, Iterator[Any]], folder: Path | None) -> Any:
    if isinstance(content, str):
        return _filled(content, where, queues)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise DataError(f"{where}: 'content' must be a string or a list of items, found {type(content).__name__}.")
    items = []
    for number, item in enumerate(content, start=1):
        place = f"{where}, item {number}"
        if not isinstance(item, Mapping):
            raise DataError(f'{place}: expected an object such as {{"type": "text", "text": ...}}, found {item!r:.60}.')
        kind = item.get("type")
        if kind == "speech":
            item = {key: _codes(value, place, folder) if key in _CODES else value for key, value in item.items()}
            if "audio" in item:
                item["audio"] = _source(item["audio"], place, folder)
        elif kind in MEDIA_KEYS and kind in item:
            item = {**item, kind: _source(item[kind], place, folder)}
        items.append(dict(item))
    return items


def _filled(text: str, where: str, queues: Mapping[str, Iterator[Any]]) -> str | list[dict[str, Any]]:
    """<image>What? -> [image item, text item]; a text without placeholders stays a string."""
    pieces = _PLACEHOLDER.split(text)
    if len(pieces) == 1:
        return text
    items: list[dict[str, Any]] = []
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            items += [{"type": "text", "text": piece}] if piece else []
            continue
        source = next(queues[piece], None)
        if source is None:
            raise DataError(
                f"{where}: more placeholders <{piece}> than entries in {LISTS[piece]!r}. If the word is meant "
                'literally, write the content as [{"type": "text", "text": ...}].'
            )
        items.append({"type": piece, piece: source})
    return items


_CODES = ("codes", "chosen", "rejected")


def _codes(value: Any, where: str, folder: Path | None) -> Any:
    """The numbers of a .npy file as a list; anything else as it is."""
    if not isinstance(value, str):
        return value
    path = Path(value) if folder is None else folder / value
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{where}: {path}: no such file of speech codes. Check the path.", "missing media") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{where}: {path}: not a .npy file of speech codes ({error}).", "corrupt media") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{where}: {path}: speech codes must be integers [C].", "corrupt media")
    return array.tolist()
