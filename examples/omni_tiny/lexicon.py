"""How the words of the grammar are said: phones of American English, as hibari and Kokoro write them, a letter each.

lexicon.json is made by hibari's G2P, of each word alone, without its marks of stress and length; a training run reads
it and needs no voice. After a change of the grammar, in the folder of the project:

    python -m examples.omni_tiny.lexicon --data .omni_tiny
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from examples.omni_tiny.files import whole
from examples.omni_tiny.program import run_main
from examples.omni_tiny.sentences import normal_words
from examples.omni_tiny.voices import phonemes
from input_pipeline.jsonl import JsonLines
from omni_jax.errors import DataError

PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹɾʃʊʌʒʤʔʧθᵊᵻ"
_FILE = Path(__file__).with_name("lexicon.json")
_MARKS = "ˈˌː ."


@dataclass(frozen=True)
class Args:
    """Write lexicon.json anew, of all words in audio_text.jsonl."""

    data: Annotated[Path, arg(metavar="DIR")] = Path(".omni_tiny")
    """The folder of the data."""


def main(args: Args) -> None:
    """Raises DataError: no such file, or a word with a phone that is not one of `PHONES`."""
    lines = JsonLines(args.data / "audio_text.jsonl")
    texts = (lines.value(index)["messages"][-1]["content"] for index in range(len(lines)))
    found = {word: said_as(word) for word in sorted({word for text in texts for word in normal_words(text)})}
    with whole(_FILE) as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def said_as(word: str) -> str:
    """The phones of a word, by hibari. Raises DataError where they are none of `PHONES`."""
    said = "".join(phone for phone in phonemes(False)(word) if phone not in _MARKS)
    if not said or set(said) - set(PHONES):
        raise DataError(f"{word!r} is said {said!r}, which is not in PHONES of lexicon.py. Add what is missing there.")
    return said


@cache
def lexicon() -> dict[str, str]:
    """Word -> phones."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def labels(text: str) -> tuple[int, ...]:
    """The phones of a text: numbers of `PHONES`, from 1.

    Raises:
        DataError: nothing is said, or a word is not in the lexicon.
    """
    words = normal_words(text)
    missing = [word for word in words if word not in lexicon()]
    if missing or not words:
        raise DataError(f"{text!r}: {missing or 'no word'} is not in lexicon.json. Write it anew, see lexicon.py.")
    return tuple(PHONES.index(phone) + 1 for word in words for phone in lexicon()[word])


if __name__ == "__main__":
    run_main(main, Args)
