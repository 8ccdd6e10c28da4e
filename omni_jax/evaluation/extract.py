"""What decides, found in the words of an answer: an option, a number, a box, a label."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omni_jax.evaluation.prompts import LETTERS
from omni_jax.evaluation.task import Line

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def option_letter(text: str, line: Line) -> str | None:
    """The letter of the option that an answer chooses; None where none is found, which is wrong.

    Tried in order: "the answer is (B)", "answer: B"; an answer that begins with "B.", "(B)" or is "B"; one letter in
    brackets or before a mark; a single capital by itself; the text of exactly one option.
    """
    options = [str(option) for option in line.get("options") or ()]
    last = LETTERS[(len(options) or 10) - 1]
    words = text.replace("**", "").replace("\\boxed", "").replace("{", "(").replace("}", ")").strip()
    letter = f"[A-{last}]"
    for pattern in (
        rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*(?i:option\s+)?[\(\"'‘“]?({letter})(?![\w'’])",
        rf"答案(?:是|为|选|应该是|就是)?\s*[:：]?\s*(?:选项)?[\(（\"'‘“]?({letter})(?![A-Za-z])",
        rf"^[\(\"'‘“]?({letter})(?:[\)\"'’”.:,、：]|\s*$)",
        rf"(?i:\b(?:is|be|select|choose|选)\s+)(?i:option\s+)?[\(\"'‘“]?({letter})(?:[\)\"'’”.:,]|\s*$)",
        rf"\(({letter})\)",
        rf"(?:^|[\s\"])({letter})[.:)]",
    ):
        found = re.findall(pattern, words)
        if found:
            return found[-1]
    alone = set(re.findall(rf"(?<![\w'’])({letter})(?![\w'’])", words)) - ({"A", "I"} if " " in words else set())
    if len(alone) == 1:
        return alone.pop()
    named = [i for i, option in enumerate(options) if _holds(words, option)]
    # an option inside another one that is named too does not count
    named = [i for i in named if not any(i != j and _holds(options[j], options[i]) for j in named)]
    return LETTERS[named[0]] if len(named) == 1 else None


def mmlu_pro_letter(text: str, line: Line) -> str | None:
    """TIGER-Lab's three patterns in their order; where none fits, the answer is wrong (there: a letter by chance)."""
    text = text.replace("**", "")
    for pattern in (r"answer is \(?([A-J])\)?", r".*[aA]nswer:\s*([A-J])"):
        found = re.search(pattern, text)
        if found:
            return found[1]
    alone = re.findall(r"\b[A-J]\b", text)
    return alone[-1] if alone else None


def option_of_reference(key: str = "answer") -> Callable[[Line], str]:
    """The letter of the right option, whether the line names its letter, its number from 0, or its text."""

    def letter(line: Line) -> str:
        answer, options = line[key], [str(option) for option in line.get("options") or ()]
        if isinstance(answer, int) and not isinstance(answer, bool):
            return LETTERS[answer]
        text = str(answer).strip()
        if text in options:
            return LETTERS[options.index(text)]
        return text.strip("().").upper()

    return letter


def last_number(text: str, line: Line | None = None) -> float | None:
    """GSM8K: the number after "####", else the last one: "so 1,200 apples." -> 1200."""
    text = text.rpartition("####")[2] if "####" in text else text
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def first_number(text: str, line: Line | None = None) -> float | None:
    """ "About 128 BPM." -> 128"""
    found = _NUMBER.search(text)
    return float(found[0].replace(",", "")) if found else None


def number_of(key: str = "answer") -> Callable[[Line], float | None]:
    """The number of a reference, by the same rule as answers."""
    return lambda line: last_number(str(line[key]))


def box(text: str, line: Line) -> tuple[float, ...] | None:
    """The first four numbers in brackets as a box in shares of the picture; None where there is none.

    {"bbox_2d": [10, 20, 30, 40]}, (10,20),(30,40), <|box_start|>(10,20),(30,40)<|box_end|>. The model tells pixels of
    the picture as it saw it, whose size is under "seen" of the line (width, height).
    """
    text = re.sub(r"bbox_2d|point_2d", "", text)
    found = re.search(r"[\[(]\s*" + r"[\s,()]+".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]", text)
    return None if found is None else _shares([float(x) for x in found.groups()], line["seen"])


def point(text: str, line: Line) -> tuple[float, ...] | None:
    """The first two numbers in brackets, likewise."""
    text = re.sub(r"bbox_2d|point_2d", "", text)
    found = re.search(r"[\[(]\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*[\])]", text)
    return None if found is None else _shares([float(x) for x in found.groups()], line["seen"])


def box_of_reference(line: Line) -> tuple[float, ...]:
    """ "box": [left, top, right, bottom] in pixels of the file, in shares of its "width" and "height"."""
    return _shares([float(x) for x in line["box"]], (line["width"], line["height"]))


def label(labels: Sequence[str] | None = None) -> Callable[[str, Line], str | None]:
    """The answer in small letters without a mark at its end; of given `labels` the only one that it names."""

    def find(text: str, line: Line) -> str | None:
        words = text.strip().strip(".!\"'").lower()
        if labels is None or words in labels:
            return words
        named = [each for each in labels if _holds(words, each)]
        return named[0] if len(named) == 1 else words

    return find


def words_of(classes: Sequence[Sequence[str]], words: Callable[[str], list[str]]) -> Callable[[str, Line], str]:
    """The words of an answer that are of the class of the true ones: no more and no fewer of them may be said.

    With the classes digits and colours: "The number is four seven." and the answer "four seven" -> "four seven". An
    answer whose words are of no class is compared whole.
    """
    sets = [frozenset(word for each in group for word in words(each)) for group in classes]

    def find(text: str, line: Line) -> str:
        true = words(str(line["answer"]))
        group = next((each for each in sets if true and each.issuperset(true)), None)
        return " ".join(word for word in words(text) if group is None or word in group)

    return find


def answer_words(words: Callable[[str], list[str]]) -> Callable[[Line], str]:
    """The reference of `words_of`."""
    return lambda line: " ".join(words(str(line["answer"])))


def short(text: str, line: Line | None = None) -> str:
    """A short answer without what is often put around it: "Answer: 12 %." -> "12 %"."""
    text = re.sub(r"(?i)^\s*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s*", "", text.strip())
    return text.removesuffix(".").strip()


def _holds(text: str, part: str) -> bool:
    return bool(part) and re.search(rf"(?<!\w){re.escape(part.lower())}(?!\w)", text.lower()) is not None


def _shares(numbers: Sequence[float], size: Any) -> tuple[float, ...]:
    width, height = size
    return tuple(x / (width if i % 2 == 0 else height) for i, x in enumerate(numbers))


def key_is(key: str, *values: Any) -> Callable[[Mapping[str, Any]], bool]:
    """Lines whose `key` is one of `values`."""
    return lambda line: line.get(key) in values
