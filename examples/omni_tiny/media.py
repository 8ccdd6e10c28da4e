"""What pictures, films and sounds there are, with the facts about each: recipes only, nothing is made here.

A picture: {"recipe": {...}, "path": "pictures/...", "facts": {"seen": "four seven", "colour": "red"}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.omni_tiny.chance import generator, pick
from examples.omni_tiny.films import film_path
from examples.omni_tiny.packages import FSDD_SPEAKERS, TRAIN_TAKES
from examples.omni_tiny.pictures import HELD_OUT_STYLE, INKS, STYLES, picture_path
from examples.omni_tiny.questions import SOUNDS, all_questions
from examples.omni_tiny.sentences import (
    COLOURS,
    DIGITS,
    SHAPES,
    WAYS,
    digit_string,
    digit_words,
    is_test,
    mixed_words,
    reading_text,
)
from examples.omni_tiny.speech import speech_path
from examples.omni_tiny.voices import FAST, KOKORO

HELD_OUT_DIGITS = 1000  # the first of `packages.handwriting`
HEARING_RATE, TALKER_RATE = 16_000, 24_000
VARIED = 4  # times that a recording of Kokoro is changed
_LIGHT, _DARK = ("white", "cream"), ("black", "navy")


@dataclass(frozen=True)
class Medium:
    """One file: how it is made, where it lies, and what is known about it (see `questions.answer`)."""

    recipe: Mapping[str, Any]
    path: str
    facts: Mapping[str, Any]


def said(recipe: Mapping[str, Any], **facts: Any) -> Medium:
    return Medium(recipe, speech_path(recipe), facts)


# Sounds


def hearing_clip(seed: int, index: int, *, kokoro: bool) -> Medium:
    """Somebody says digits or a sentence, at some pace and pitch, in a room or through a telephone. What Kokoro says,
    which takes long, comes `VARIED` times, in other rooms and warped into other speakers."""
    group, times = ("hearing kokoro", VARIED) if kokoro else ("hearing", 1)
    rng = generator(seed, group, index // times * times)
    text = training_text(rng)
    recipe = heard_recipe(rng, kokoro=kokoro, text=text)
    if index % times:
        recipe |= _changes(generator(seed, group, index))
    return said(recipe, text=text)


def training_text(rng: np.random.Generator) -> str:
    """A quarter are words in no order: of sentences the Thinker learns to guess the word that it has not understood."""
    while True:
        kind = rng.random()
        text = digit_string(rng) if kind < 0.25 else mixed_words(rng) if kind < 0.5 else reading_text(rng)
        if not is_test(text):
            return text


def heard_recipe(rng: np.random.Generator, *, kokoro: bool, **says: Any) -> dict[str, Any]:
    """A voice to hear, changed: most clips are warped into another speaker, and half are noisy. `says`: the rest of the
    recipe, "text" or "words"."""
    voice = _kokoro_speaker(rng) if kokoro else FAST[int(rng.choice(len(FAST), p=_FAST_SHARES))]
    recipe = {
        "voice": voice,
        **says,
        "rate": HEARING_RATE,
        "speed": round(float(rng.uniform(0.85, 1.2)), 2),
        **_changes(rng),
    }
    if voice.startswith("pico"):
        recipe["pitch"] = round(float(rng.uniform(0.75, 1.2)), 2)
    return recipe


def _changes(rng: np.random.Generator) -> dict[str, Any]:
    """Another speaker, by pace and pitch, and most often another room."""
    return {
        "warp": round(float(1.15 ** rng.uniform(-1, 1)), 3),
        "changed": int(rng.integers(2**31)) if rng.random() < 0.6 else None,
    }


_weights = np.array([0.35 if voice == "joe" else 1.0 for voice in FAST])  # joe takes ten times as long as the others
_FAST_SHARES = _weights / _weights.sum()


def _kokoro_speaker(rng: np.random.Generator) -> str:
    """One of the voices, or half of the time the speaker between two: both British or neither."""
    first, second = pick(rng, KOKORO), pick(rng, KOKORO)
    mixed = rng.random() < 0.5 and first != second and (first[0] == "b") == (second[0] == "b")
    return f"kokoro:{first}+{second}" if mixed else f"kokoro:{first}"


def spoken_questions(seed: int, speakers: int) -> dict[str, list[Medium]]:
    """Each wording of each question, asked by `speakers` of the voices to hear; of eight, one is Kokoro's."""
    found: dict[str, list[Medium]] = {}
    for number, text in enumerate(all_questions()):
        found[text] = []
        for index in range(speakers):
            rng = generator(seed, "questions", 1000 * number + index)
            found[text].append(said(heard_recipe(rng, kokoro=index % 8 == 7, text=text), text=text))
    return found


def spoken_digits(seed: int, times: int) -> list[Medium]:
    """Each single digit, said `times` times by voices to hear; of twelve, one is Kokoro's."""
    found = []
    for digit, word in enumerate(DIGITS):
        for index in range(times):
            rng = generator(seed, "digits", 1000 * digit + index)
            recipe = heard_recipe(rng, kokoro=index % 12 == 11, text=f"{word.capitalize()}.")
            found.append(said(recipe, text=word, heard=word))
    return found


def joined_digits(seed: int, index: int) -> Medium:
    """Digits that a voice says one by one, with pauses: as announcements are put together, and slower than a string."""
    rng = generator(seed, "joined digits", index)
    digits = _learnt_digits(rng, most=5)
    words = [f"{DIGITS[digit].capitalize()}." for digit in digits]
    recipe = heard_recipe(rng, kokoro=False, words=words)
    recipe |= {"gaps": _gaps(rng, digits), "speed": round(float(rng.uniform(0.6, 1.1)), 2)}
    text = digit_words(digits)
    return said(recipe, text=text, heard=text)


def human_strings(seed: int, count: int, speaker: str, takes: Sequence[int], most: int = 5) -> list[Medium]:
    """Digits that one person says, joined; the recordings have 8 kHz, and some get a room and noise besides."""
    found = []
    for index in range(count):
        rng = generator(seed, f"human {speaker} {min(takes)}", index)
        digits = _learnt_digits(rng, most)
        changed = int(rng.integers(2**31)) if rng.random() < 0.6 else None
        found.append(human_string(digits, speaker, [pick(rng, takes) for _ in digits], rng, changed))
    return found


def _learnt_digits(rng: np.random.Generator, most: int) -> list[int]:
    digits = [int(rng.integers(10)) for _ in range(int(rng.integers(1, most + 1)))]
    while is_test(digit_words(digits)):
        digits = [int(rng.integers(10)) for _ in digits]
    return digits


def _gaps(rng: np.random.Generator, digits: Sequence[int]) -> list[float]:
    """Seconds of silence between recordings of digits, beside what these have themselves."""
    return [round(float(rng.uniform(0.02, 0.3)), 2) for _ in digits[1:]]


def human_string(
    digits: Sequence[int], speaker: str, takes: Sequence[int], rng: np.random.Generator, changed: int | None = None
) -> Medium:
    recipe = {
        "human": [f"{digit}_{speaker}_{take}" for digit, take in zip(digits, takes, strict=True)],
        "gaps": _gaps(rng, digits),
        "rate": HEARING_RATE,
        "changed": changed,
    }
    words = digit_words(list(digits))
    return said(recipe, text=words, heard=words, speaker=speaker)


def human_training(seed: int, count: int) -> dict[str, list[Medium]]:
    """By speaker, so that each can be left out."""
    return {who: human_strings(seed, count // len(FSDD_SPEAKERS), who, TRAIN_TAKES) for who in FSDD_SPEAKERS}


# Pictures


def digit_picture(
    seed: int,
    index: int,
    labels: np.ndarray,
    *,
    places: range,
    length: int | None = None,
    group: str = "digit pictures",
    warp: bool = False,
) -> Medium:
    """Handwritten digits out of `places`; half of the pictures have one, the others up to four. warp: bent ones."""
    rng = generator(seed, group, index)
    if length is None:
        length = 1 if rng.random() < 0.5 else int(rng.integers(2, 5))
    digits = [int(places[int(rng.integers(len(places)))]) for _ in range(length)]
    return written(rng, digits, labels, warp)


def written(rng: np.random.Generator, digits: Sequence[int], labels: np.ndarray, warp: bool = False) -> Medium:
    ink, ground = ("white", "black") if rng.random() < 0.25 else _contrast(rng, INKS)
    recipe = {
        "digits": list(digits),
        "width": 56 if len(digits) == 1 else 112,
        "ink": ink,
        "ground": ground,
        "seed": int(rng.integers(2**31)),
    } | ({"warp": True} if warp else {})
    return Medium(recipe, picture_path(recipe), {"seen": digit_words([labels[d] for d in digits]), "colour": ink})


def shape_picture(seed: int, index: int, *, styles: Sequence[str] = STYLES, group: str = "shape pictures") -> Medium:
    rng = generator(seed, group, index)
    colour, ground = _contrast(rng, COLOURS)
    facts = {"shape": pick(rng, tuple(SHAPES)), "colour": colour, "count": int(rng.integers(1, 6))}
    recipe = {**facts, "ground": ground, "style": pick(rng, styles), "seed": int(rng.integers(2**31))}
    return Medium(recipe, picture_path(recipe), facts)


def held_out_shape(seed: int, index: int) -> Medium:
    return shape_picture(seed, index, styles=(HELD_OUT_STYLE,), group="held-out shapes")


def _contrast(rng: np.random.Generator, inks: Sequence[str]) -> tuple[str, str]:
    """Ink and ground that can be told apart."""
    ground = pick(rng, _LIGHT + _DARK)
    hidden = ("white", "yellow") if ground in _LIGHT else ("black", "blue", "purple")
    return pick(rng, [ink for ink in inks if ink not in hidden]), ground


# Films


def film(
    seed: int,
    index: int,
    labels: np.ndarray,
    *,
    places: range,
    digits: Sequence[Medium],
    group: str,
) -> Medium:
    """A digit that moves, and a digit that is said (half of the time the same one) or another sound.

    In half of the films the digit appears later or the sound begins later, by 0.8 s or more. One half of these tells
    nothing by the time at which the picture appears, the other nothing by that of the sound: who goes by one of the two
    is right in about three of four.
    """
    rng = generator(seed, group, index)
    place = int(places[int(rng.integers(len(places)))])
    facts: dict[str, Any] = {"seen": DIGITS[labels[place]], "way": pick(rng, WAYS)}
    seconds = float(rng.choice([2.0, 2.5, 3.0, 3.5, 4.0]))
    if rng.random() < 0.65 and digits:
        same = rng.random() < 0.5
        wanted = [m for m in digits if (m.facts["heard"] == facts["seen"]) == same]
        chosen = pick(rng, wanted or digits)  # of few recordings, as for a trial, none may fit
        sound, facts["heard"] = chosen.path, chosen.facts["heard"]
        if "speaker" in chosen.facts:
            facts["speaker"] = chosen.facts["speaker"]
    else:
        sound = facts["sound"] = pick(rng, tuple(SOUNDS))
    if rng.random() < 0.5:
        facts["first"] = pick(rng, ("picture", "sound"))
        seconds = max(seconds, 3.0)
        appears, at = _even_times(rng, seconds, facts["first"], fixed=("picture", "sound")[index % 2])
    else:
        appears, at = 0.0, float(rng.uniform(0.0, seconds - 1.2))
    ink, ground = _contrast(rng, INKS)
    recipe = {
        "digit": place,
        "way": facts["way"],
        "appears": round(appears, 1),
        "sound": sound,
        "at": round(at, 2),
        "seconds": seconds,
        "ink": ink,
        "ground": ground,
        "seed": int(rng.integers(2**31)),
    }
    return Medium(recipe, film_path(recipe), facts)


def _even_times(rng: np.random.Generator, seconds: float, first: str, fixed: str) -> tuple[float, float]:
    """When the picture appears and the sound begins: the one that is `fixed` in the middle, whichever came first."""
    last = seconds - 1.2
    middle = float(rng.uniform(0.8, last - 0.8))
    room = last - middle if first == fixed else middle
    gap = float(rng.uniform(0.8, room))
    other = middle + gap if first == fixed else middle - gap
    return (middle, other) if fixed == "picture" else (other, middle)


def without(medium: Medium, what: str) -> Medium:
    """The same film "mute" or "blank"."""
    recipe = {**medium.recipe, what: True}
    return Medium(recipe, film_path(recipe), medium.facts)
