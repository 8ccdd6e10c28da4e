"""Pauses of spoken text against its punctuation: breaks inside a phrase, and marks without a pause or with an odd one.

    text      Well,      I think so.                 It works.
    speech    ▄▄▄  0.3 s ▄▄▄▄▄▄▄ 0.9 s ▄▄▄▄▄ 0.4 s ▄▄▄▄▄▄▄▄
    error              -           1         -              2 marks and 4 other gaps: 1/6

The paper ranks answers by "punctuation pause error" (section 4.3) without saying how it is measured; this is our way.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float

from omni_jax.errors import ConfigError

Kind = Literal["none", "clause", "sentence"]
TimedWord = tuple[str, float, float]  # word, start and end in seconds

HOP_SECONDS = 0.01
_CLICK_HOPS = 3  # a sound that is shorter than 30 ms, with silence on both sides, is no speech
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # scripts without spaces: each letter is a word
# 3.5, 10:30, don't and well-known are one word each: a mark between letters asks for no pause
_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])\w)+(?:[.,:'’/-](?:(?![{_ALONE}])\w)+)*")
_SENTENCE = re.compile(r"(?<!\.)\.(?!\.)|[!?。！？｡\n]")
_CLAUSE = re.compile(r"[,;:，、；：…—()（）]|\.\.|\s[-–]\s")


@dataclass(frozen=True)
class PauseOptions:
    """How long silence may be, in seconds, shortest and longest.

    none: between words without a mark. The closure of a plosive takes up to about 0.2 s; 0.3 s is heard as a break.
    clause: at a comma, semicolon, colon, dash, bracket. Less than 0.1 s cannot be told from a closure; after 0.8 s the
        sentence sounds finished.
    sentence: at the end of one, or of a line. Shorter than 0.2 s it sounds hurried, above 1.5 s as if speech were over.
    floor: what is so many decibels below the loud parts (95th percentile) is silence: above the noise of a vocoder,
        below a soft fricative.
    shortest: silences below this are not looked at where no word times are known.
    drift, drift_seconds: how far from where the text's letters would put it a pause is looked for, as a share of the
        speech and in seconds (a syllable), whichever is more: words are spoken at unlike speeds.

    Raises:
        ConfigError: a range that is empty or negative.
    """

    none: tuple[float, float] = (0.0, 0.3)
    clause: tuple[float, float] = (0.1, 0.8)
    sentence: tuple[float, float] = (0.2, 1.5)
    floor: float = 35.0
    shortest: float = 0.08
    drift: float = 0.1
    drift_seconds: float = 0.25

    def __post_init__(self) -> None:
        for name in ("none", "clause", "sentence"):
            low, high = getattr(self, name)
            if not 0 <= low < high:
                raise ConfigError(
                    f"{name} = {(low, high)} is no range of seconds. Give the shortest, then the longest."
                )

    def allows(self, kind: Kind, seconds: float) -> bool:
        low, high = getattr(self, kind)
        return low <= seconds <= high


PAUSES = PauseOptions()


def marked_words(text: str) -> tuple[list[str], list[Kind]]:
    """The words of a text, and what stands after each but the last.

    "Well, I think so. Yes"  ->  [Well, I, think, so, Yes], [clause, none, none, sentence]
    """
    found = list(_WORD.finditer(text))
    between = [text[a.end() : b.start()] for a, b in pairwise(found)]
    return [match.group() for match in found], [_kind(separator) for separator in between]


def pause_error(
    text: str,
    waveform: Float[np.ndarray, " W"],
    sampling_rate: int,
    words: Sequence[TimedWord] | None = None,
    options: PauseOptions = PAUSES,
) -> float:
    """Share of the gaps between the words of `text` whose silence is wrong, 0 to 1; 0 for a single word.

    Args:
        waveform: mono.
        words: what was heard and when, of a recogniser that tells; without it silences are found by their energy.
    """
    if words is not None:
        return error_of_words(text, words, options)
    return error_of_sound(text, waveform, sampling_rate, options)


def error_of_words(text: str, heard: Sequence[TimedWord], options: PauseOptions = PAUSES) -> float:
    """From the times of the words that were heard. Gaps beside words that were not heard are left out: those count as
    word errors already. Nothing heard at all is 1.
    """
    words, kinds = marked_words(text)
    heard = _single_words(heard)
    if not kinds or not heard:
        return float(bool(kinds))
    first, last = _aligned([_plain(word) for word in words], [_plain(word) for word, *_ in heard])
    wrong = considered = 0
    for i, kind in enumerate(kinds):
        if last[i] < 0 or first[i + 1] <= last[i]:
            continue
        # words that were added in between are no silence
        silence = max(heard[j + 1][1] - heard[j][2] for j in range(last[i], first[i + 1]))
        considered += 1
        wrong += not options.allows(kind, max(silence, 0.0))
    return wrong / considered if considered else 1.0


def error_of_sound(
    text: str, waveform: Float[np.ndarray, " W"], sampling_rate: int, options: PauseOptions = PAUSES
) -> float:
    """From silences, matched in order to the marks of the text by where they lie in the speech between them.

    A mark without a silence is an error, and one whose silence has an odd length; so is a silence that no mark asks
    for if it is longer than words may be apart. Speech without any sound is 1.
    """
    words, kinds = marked_words(text)
    if not kinds:
        return 0.0
    places, lengths, spoken = silences(waveform, sampling_rate, options)
    if not spoken:
        return 1.0
    letters = np.cumsum([len(word) for word in words])
    marks = [(kind, letters[i] / letters[-1]) for i, kind in enumerate(kinds) if kind != "none"]
    reach = max(options.drift, options.drift_seconds / spoken)
    return min(_fewest_errors(marks, list(zip(places, lengths)), reach, options) / len(kinds), 1.0)


def silences(
    waveform: Float[np.ndarray, " W"], sampling_rate: int, options: PauseOptions = PAUSES
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"], float]:
    """Silences between the first and the last sound.

    Returns:
        Of each, the share of all sound that lies before it, and its length (s); the length of all sound (s).
    """
    hop = max(round(HOP_SECONDS * sampling_rate), 1)
    count = len(waveform) // hop
    power = np.square(np.asarray(waveform[: count * hop], np.float64)).reshape(count, hop).mean(axis=1)
    loud = float(np.percentile(power, 95)) if count else 0.0
    none = np.zeros(0)
    if loud < 1e-8:  # -80 dB of full scale
        return none, none, 0.0
    sounds = power > loud * 10 ** (-options.floor / 10)
    for start, stop, value in _runs(sounds):
        if value and stop - start < _CLICK_HOPS:
            sounds[start:stop] = False
    total = int(sounds.sum())
    if not total:
        return none, none, 0.0
    edges = np.flatnonzero(sounds)
    inner = sounds[edges[0] : edges[-1] + 1]
    before = np.cumsum(inner)
    found = [
        (before[start - 1] / total, (stop - start) * HOP_SECONDS)
        for start, stop, value in _runs(inner)
        if not value and (stop - start) * HOP_SECONDS >= options.shortest
    ]
    places, lengths = np.array(found, np.float64).reshape(-1, 2).T
    return places, lengths, total * HOP_SECONDS


def _kind(separator: str) -> Kind:
    return "sentence" if _SENTENCE.search(separator) else "clause" if _CLAUSE.search(separator) else "none"


def _plain(word: str) -> str:
    return re.sub(r"[\W_]", "", word.casefold())


def _single_words(heard: Sequence[TimedWord]) -> list[TimedWord]:
    """Words as `marked_words` cuts them; one that holds several shares its time among their letters."""
    single: list[TimedWord] = []
    for text, start, end in heard:
        words = marked_words(text)[0]
        cuts = np.cumsum([0, *(len(word) for word in words)]) / max(sum(map(len, words)), 1)
        times = start + cuts * (end - start)
        single += [(word, float(times[i]), float(times[i + 1])) for i, word in enumerate(words)]
    return single


def _aligned(words: Sequence[str], heard: Sequence[str]) -> tuple[list[int], list[int]]:
    """Of each word the first and the last place in `heard` that it was heard as, -1 where that is not known."""
    first, last = [-1] * len(words), [-1] * len(words)
    for tag, i, i_stop, j, j_stop in SequenceMatcher(None, words, heard, autojunk=False).get_opcodes():
        if tag == "equal" or (tag == "replace" and i_stop - i == j_stop - j):
            first[i:i_stop] = last[i:i_stop] = range(j, j_stop)
        elif tag == "replace":  # 25, heard as twenty five
            first[i], last[i_stop - 1] = j, j_stop - 1
    return first, last


def _runs(values: np.ndarray) -> list[tuple[int, int, bool]]:
    """Start, stop and value of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(a, b, bool(values[a])) for a, b in pairwise(edges) if b > a]


def _fewest_errors(
    marks: Sequence[tuple[Kind, float]], found: Sequence[tuple[float, float]], reach: float, options: PauseOptions
) -> int:
    """Errors of the matching in order that has fewest: an edit distance, a mark at a time."""
    unasked = [float(not options.allows("none", length)) for _, length in found]
    costs = np.concatenate([[0.0], np.cumsum(unasked)])  # of the silences so far, with no mark
    for kind, place in marks:
        before, costs = costs, costs + 1  # a mark without a pause
        for j, (where, length) in enumerate(found):
            matched = np.inf
            if abs(where - place) <= reach:
                matched = before[j] + (not options.allows(kind, length))
            costs[j + 1] = min(before[j + 1] + 1, costs[j] + unasked[j], matched)
    return int(costs[-1])
