"""Prompts out of lines: media first, as chat puts them, then the words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
from omni_jax.errors import DataError
from omni_jax.evaluation.task import Line, Message

KINDS = ("image", "audio", "video")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def own_messages(line: Line) -> list[Message]:
    """The messages that the line itself has, up to a user's."""
    messages = line.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError("expected 'messages', a list that ends with the user.")
    if not isinstance(messages[-1], Mapping) or messages[-1].get("role") != "user":
        raise DataError("'messages' must end with the user: the answer is what the model is asked for.")
    return list(messages)


def ask(
    text: str | Callable[[Line], str], *, system: str | None = None, use_audio: bool | None = None
) -> Callable[[Line], list[Message]]:
    """Prompts of the media of a line ("image", "audio", "video": a path or a list of them) and a text.

    A line that has "messages" is asked with these. `text` may name keys of the line: "{question}".

    Args:
        use_audio: whether films are heard; None is what the line says under "use_audio", and else the request.
    """

    def messages(line: Line) -> list[Message]:
        if "messages" in line:
            return own_messages(line)
        items: list[dict[str, Any]] = []
        for kind in KINDS:
            sources = line.get(kind) or []
            for source in [sources] if isinstance(sources, str) else sources:
                item = {"type": kind, kind: source}
                if kind == "video":
                    heard = line.get("use_audio") if use_audio is None else use_audio
                    item |= {} if heard is None else {"use_audio": heard}
                    item |= {"fps": line["fps"]} if "fps" in line else {}
                items.append(item)
        words = text(line) if callable(text) else text.format_map(_Keys(line))
        if words:
            items.append({"type": "text", "text": words})
        if not items:
            raise DataError("nothing is asked: neither media nor words.")
        opening = [] if system is None else [{"role": "system", "content": system}]
        return [*opening, {"role": "user", "content": items}]

    return messages


def choices(instruction: str, question: str = "{question}") -> Callable[[Line], str]:
    """A question with its options by letter, and what to do:

    What is it?
    A. a cat
    B. a dog
    Answer with the option's letter.
    """

    def text(line: Line) -> str:
        lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options_of(line)))
        return "\n".join(part for part in (question.format_map(_Keys(line)), lettered, instruction) if part)

    return text


def options_of(line: Line) -> list[str]:
    """The texts under "options". Raises DataError where there are none."""
    options = line.get("options")
    if not isinstance(options, Sequence) or isinstance(options, str) or not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"'options' must be a list of 2 to {len(LETTERS)} texts.")
    return [str(option) for option in options]


def prompt_text(messages: Sequence[Message]) -> str:
    """A prompt as people read it, with the system turn that it gets where it has none:

    system: You are a helpful assistant.
    user: <image>What is this?
    """

    def content(value: Any) -> str:
        if isinstance(value, str):
            return value
        return "".join(item["text"] if item.get("type") == "text" else f"<{item.get('type')}>" for item in value)

    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM_TEXT}, *messages]
    return "\n".join(f"{message['role']}: {content(message['content'])}" for message in messages)


class _Keys(dict):
    def __missing__(self, key: str) -> str:
        raise DataError(f"the key {key!r} is missing; the prompt of this task needs it.")
