"""Trains the vocabulary of Omni-tiny on the texts of its data: the published class of tokenizer, with 1,000 texts.

    python -m examples.omni_tiny.tokenizer --data .omni_tiny --to .omni_tiny/tokenizer

Ids 0 ... 999 are text, 1000 and on the control tokens, as in the published order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from examples.omni_tiny.files import whole
from examples.omni_tiny.program import run_main
from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
from input_pipeline.jsonl import JsonLines
from input_pipeline.tokenizer import Tokenizer
from omni_jax.errors import DataError
from omni_jax.interop.random_tokenizer import write_tokenizer

ROLES = "system\nuser\nassistant\n"


@dataclass(frozen=True)
class Args:
    """Train the vocabulary on what is written in the training lines; the tests are not looked at.

    example:
      python -m examples.omni_tiny.tokenizer --data .omni_tiny --to .omni_tiny/tokenizer
    """

    data: Annotated[Path, arg(metavar="DIR")]
    """The folder that make_data has filled."""
    to: Annotated[Path, arg(metavar="DIR")]
    """The folder to write: tokenizer.json, tokenizer_config.json, chat_template.json."""


def main(args: Args) -> None:
    """Writes the tokenizer, once it gives back all texts as they are.

    Raises:
        DataError: no lines, or a text that does not come back.
    """
    texts = list(training_texts(args.data))
    if not texts:
        raise DataError(f"{args.data} has no lines of training. Run: python -m examples.omni_tiny.make_data")
    with whole(args.to) as partial:
        partial.mkdir()
        write_tokenizer(partial, [ROLES, DEFAULT_SYSTEM_TEXT, *texts])
        tokens = check(Tokenizer.load(partial), texts)
    words = sum(len(text.split()) for text in texts)
    print(f"{len(texts)} texts, {words} words, {tokens} tokens ({tokens / words:.2f} a word) in {args.to}")


def training_texts(folder: Path) -> Iterator[str]:
    """All texts in the lines of a folder, but those of tests and what was recorded of them.

    Raises:
        DataError: a file cannot be read.
    """
    for path in sorted(folder.glob("*.jsonl")):
        if not path.name.startswith(("test_", "held_out_")):
            lines = JsonLines(path)
            for index in range(len(lines)):
                yield from texts_of(lines.value(index))


def texts_of(line: Mapping[str, Any]) -> Iterator[str]:
    """What a line has in words: its own text, and what is written in its messages."""
    if isinstance(line.get("text"), str):
        yield line["text"]
    for message in line.get("messages", ()):
        content = message["content"]
        items = [{"text": content}] if isinstance(content, str) else content
        yield from (item["text"] for item in items if "text" in item)


def check(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """The number of tokens of all texts. Raises DataError where one does not come back as it was."""
    lengths: dict[str, int] = {}
    total = 0
    for text in texts:
        if text not in lengths:
            ids = tokenizer.encode(text)
            if (back := tokenizer.decode(ids)) != text:
                raise DataError(f"the text {text!r} comes back from the tokenizer as {back!r}. Write it otherwise.")
            lengths[text] = len(ids)
        total += lengths[text]
    return total


if __name__ == "__main__":
    run_main(main, Args)
