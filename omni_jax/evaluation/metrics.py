"""Metrics of one answer: right or wrong, nearly right, and figures of scorers; the total is a mean."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omni_jax.errors import DataError
from omni_jax.evaluation.normal import library
from omni_jax.evaluation.task import Metric

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def mean(name: str, score: Callable[[Any, Any], float], *, higher_is_better: bool = True) -> Metric:
    """The mean of `score` over answers."""
    return Metric(name, lambda found, expected: (float(score(found, expected)), 1.0), _quotient, higher_is_better)


def accuracy() -> Metric:
    """Equal after `extract`; nothing found is wrong."""
    return mean("accuracy", lambda found, expected: found is not None and found == expected)


def exact_match() -> Metric:
    """Equal but for blanks at the ends and the size of letters, or equal to one of several references."""

    def score(found: str, expected: str | Sequence[str]) -> bool:
        return any(_plain(found) == _plain(each) for each in _several(expected))

    return mean("exact match", score)


def option_words() -> Metric:
    """MMAU's own rule (evaluation.py, string_match): all words of the right option, none that only wrong ones have.

    Compares with (answer, options).
    """

    def tokens(text: str) -> set[str]:
        return set(re.findall(r"\b\w+\b", text.lower()))

    def score(found: str, expected: tuple[str, Sequence[str]]) -> bool:
        answer, options = tokens(expected[0]), expected[1]
        wrong = set().union(*(tokens(option) - answer for option in options if tokens(option) != answer))
        words = tokens(found)
        return bool(words) and answer <= words and not words & wrong

    return mean("accuracy, words of options", score)


def relaxed_accuracy(tolerance: float = 0.05) -> Metric:
    """ChartQA (Methani et al., 2020): numbers within 5 %, anything else equal but for the size of letters."""

    def score(found: str, expected: str | Sequence[str]) -> bool:
        return any(_nearly(str(found), str(each), tolerance) for each in _several(expected))

    return mean("relaxed accuracy", score)


def anls(threshold: float = 0.5) -> Metric:
    """DocVQA (Biten et al., 2019): 1 - edit distance / longer length, 0 from half on; the best of the references."""

    def score(found: str, expected: str | Sequence[str]) -> float:
        distance = library("rapidfuzz.distance").Levenshtein.normalized_distance
        best = min(distance(_spaced(found), _spaced(each)) for each in _several(expected))
        return 1 - best if best < threshold else 0.0

    return mean("ANLS", score)


def vqa_accuracy() -> Metric:
    """VQA and TextVQA: with ten people's answers, the mean over people of min(1, others who say the same / 3).

    Answers are compared in the form of the official processor: small letters, no punctuation, figures, no articles.
    Its list of contractions without an apostrophe is replaced by comparing without apostrophes.
    """

    def score(found: str, expected: Sequence[str]) -> float:
        own, people = vqa_form(found), [vqa_form(each) for each in _several(expected)]
        if len(people) == 1:
            return float(own == people[0])
        same = people.count(own)
        # a person who said so sees one other fewer
        return (same * min(1, (same - 1) / 3) + (len(people) - same) * min(1, same / 3)) / len(people)

    return mean("VQA accuracy", score)


def vqa_form(text: str) -> str:
    """ "It's the Two, dogs." -> "its 2 dogs" """
    text = text.lower().replace("\n", " ").replace("\t", " ").strip().replace(",", "").replace("?", "")
    whole = text
    for mark in _VQA_MARKS:
        beside_blank = f"{mark} " in whole or f" {mark}" in whole
        text = text.replace(mark, "" if beside_blank else " ")
    text = re.sub(r"\.(?!\d)", "", text).replace("'", "")
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(word for word in words if word not in _ARTICLES)


def box_accuracy(threshold: float = 0.5) -> Metric:
    """RefCOCO: a box that overlaps the true one by IoU >= 0.5. Boxes are (left, top, right, bottom) in one unit."""
    return mean(
        f"IoU >= {threshold:g}",
        lambda found, expected: found is not None and iou(found, expected) >= threshold,
    )


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share, by the area that they cover together."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    covered = sum(max(x[2] - x[0], 0.0) * max(x[3] - x[1], 0.0) for x in (a, b)) - shared
    return shared / covered if covered > 0 else 0.0


def point_accuracy() -> Metric:
    """A point inside the true box."""

    def score(found: Sequence[float] | None, box: Sequence[float]) -> bool:
        return found is not None and box[0] <= found[0] <= box[2] and box[1] <= found[1] <= box[3]

    return mean("point in box", score)


def tempo_accuracy(tolerance: float = 0.04) -> Metric:
    """MIREX Acc1: beats a minute within 4 %."""
    return mean(
        "tempo Acc1",
        lambda found, expected: found is not None and abs(found - float(expected)) <= tolerance * float(expected),
    )


def number_accuracy() -> Metric:
    """Equal as numbers: 1,000 and 1000.0."""
    return mean("accuracy of numbers", lambda found, expected: found is not None and abs(found - expected) < 1e-6)


def similarity() -> Metric:
    """Cosine of the vectors that a speaker scorer gives for two recordings."""
    return mean("speaker similarity", cosine)


def nearest_voice() -> Metric:
    """Whether the right voice is the nearest of all. Compares a vector with (name, {name: mean vector})."""

    def score(vector: np.ndarray, expected: tuple[str, Mapping[str, np.ndarray]]) -> bool:
        name, voices = expected
        others = [cosine(vector, voice) for other, voice in voices.items() if other != name]
        return cosine(vector, voices[name]) > max(others, default=-1)  # a vector of zeros is nobody's

    return mean("right voice nearest", score)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / size if size else 0.0


def mean_opinion() -> Metric:
    """The mean of a scorer of naturalness, as a stand-in for listeners: name the scorer beside it."""
    return mean("opinion score of a model", lambda found, expected: found)


def pause_errors() -> Metric:
    """The mean share of gaps between words with a wrong pause; see `training/pauses.py`.

    Compares (waveform, rate, words with times or None) with the text.
    """

    def score(found: tuple[np.ndarray, int, Any], text: str) -> float:
        from omni_jax.training.pauses import pause_error

        waveform, rate, words = found
        return pause_error(text, waveform, rate, words)

    return mean("pause errors", score, higher_is_better=False)


def _nearly(found: str, expected: str, tolerance: float) -> bool:
    a, b = _float(found), _float(expected)
    if a is not None and b:
        return abs(a - b) / abs(b) <= tolerance
    return found.strip().lower() == expected.strip().lower()


def _float(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _several(expected: Any) -> list[str]:
    if isinstance(expected, str) or not isinstance(expected, Sequence):
        return [str(expected)]
    if not expected:
        raise DataError("the list of references is empty.")
    return [str(each) for each in expected]


def _plain(text: str) -> str:
    return str(text).strip().lower()


def _spaced(text: str) -> str:
    return " ".join(str(text).lower().split())


def _quotient(sums: np.ndarray) -> float:
    return float(sums[0] / max(sums[1], 1e-9))
