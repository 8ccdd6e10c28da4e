"""Conversations in the form that `input_pipeline/messages.py` takes, for each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.omni_tiny.chance import pick
from examples.omni_tiny.media import Medium
from examples.omni_tiny.questions import answer, question
from examples.omni_tiny.sentences import DIGITS, normal

# The words of `omni_jax/training/transcripts.py`, with which our own Thinker is asked when it scores speech.
ASR_SYSTEM = "You are a speech recognition model."
ASR_PROMPT = "Transcribe the English audio into text without any punctuation marks."
THINK = "Think of two numbers, one that you see and one that you hear."
READ = ("Read aloud: ", "Please say: ", "Say this: ")

Message = dict[str, Any]
Line = dict[str, Any]


def user(*items: Mapping[str, Any]) -> Message:
    return {"role": "user", "content": list(items)}


def assistant(text: str, voice: str | None = None, audio: str | None = None) -> Message:
    """Words, and beside them the recording of them by one of the Talker's voices."""
    if voice is None:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": [words(text), {"type": "speech", "voice": voice, "audio": audio}]}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def shown(medium: Medium | str) -> dict[str, Any]:
    """The item of a picture, film or sound. Films always bring their sound."""
    path = medium if isinstance(medium, str) else medium.path
    if path.endswith(".png"):
        return {"type": "image", "image": path}
    if path.endswith(".mp4"):
        return {"type": "video", "video": path, "use_audio": True}
    return {"type": "audio", "audio": path}


def transcription(clip: Medium) -> list[Message]:
    return [
        {"role": "system", "content": ASR_SYSTEM},
        user(shown(clip), words(ASR_PROMPT)),
        assistant(normal(clip.facts["text"])),
    ]


def caption(medium: Medium) -> list[Message]:
    return [user(shown(medium)), assistant(answer("describe", medium.facts)[0])]


def reading(rng: np.random.Generator, text: str) -> list[Message]:
    return [user(words(pick(rng, READ) + text)), assistant(text)]


@dataclass(frozen=True)
class Media:
    """What conversations are about. All are lists that are drawn from.

    single_digits: those of digit_pictures that show one. questions: recordings of each wording. strings: digits that
    are said, up to four at a time.
    """

    digit_pictures: Sequence[Medium]
    single_digits: Sequence[Medium]
    shape_pictures: Sequence[Medium]
    films: Sequence[Medium]
    questions: Mapping[str, Sequence[Medium]]
    strings: Sequence[Medium]
    digits: Sequence[Medium]


def chat(rng: np.random.Generator, media: Media) -> list[Message]:
    """A conversation of one to three turns about a picture, a film or sound, or about nothing in particular.

    Half of the questions are spoken, the others typed.
    """
    kind = rng.random()
    if kind < 0.5:
        return on_picture(rng, media, digits=kind < 0.25)
    if kind < 0.75:
        return on_film(rng, media, pick(rng, media.films))
    if kind < 0.83:
        return same_number(rng, media, pick(rng, media.digits))
    if kind < 0.93:
        sound = pick(rng, media.strings)
        return turns(rng, media, sound, ["repeat"])
    return turns(rng, media, None, _some(rng, ("who", "hello", "help"), 2))


def on_picture(rng: np.random.Generator, media: Media, *, digits: bool, spoken: float = 0.5) -> list[Message]:
    """A picture of digits or of shapes."""
    if digits:
        picture = pick(rng, media.digit_pictures)
        return turns(rng, media, picture, _some(rng, ("digits", "colour", "describe"), 2), spoken)
    picture = pick(rng, media.shape_pictures)
    return turns(rng, media, picture, _some(rng, ("colour", "shape", "count", "describe"), 3), spoken)


def on_film(rng: np.random.Generator, media: Media, film: Medium) -> list[Message]:
    """What came first is asked more often than all else: no other question needs both senses and the time."""
    kinds = _some(rng, film_questions(film.facts), 2)
    if "first" in film.facts and "first" not in kinds and rng.random() < 0.5:
        kinds = ["first", *kinds[:1]]
    return turns(rng, media, film, kinds)


def film_questions(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What can be asked about a film."""
    kinds = ["seen", "way", "describe"]
    kinds += ["heard", "same"] if "heard" in facts else ["sound"]
    return (*kinds, "first") if "first" in facts else tuple(kinds)


def turns(
    rng: np.random.Generator, media: Media, about: Medium | None, kinds: Sequence[str], spoken: float = 0.5
) -> list[Message]:
    """One turn for each kind of question, the medium in the first."""
    facts, messages = {} if about is None else about.facts, []
    for number, kind in enumerate(kinds):
        text = question(rng, kind, facts)
        asked = shown(pick(rng, media.questions[text])) if rng.random() < spoken else words(text)
        first = [shown(about)] if about is not None and number == 0 else []
        messages += [user(*first, asked), assistant(answer(kind, facts)[0])]
    return messages


def same_number(rng: np.random.Generator, media: Media, sound: Medium) -> list[Message]:
    """Whether a digit that is heard is the one of a picture; in half of the conversations it is."""
    same, some = rng.random() < 0.5, [pick(rng, media.single_digits) for _ in range(200)]
    picture = next((p for p in some if (p.facts["seen"] == sound.facts["heard"]) == same), some[0])
    facts = {"seen": picture.facts["seen"], "heard": sound.facts["heard"]}
    text = question(rng, "same", facts)
    return [user(shown(picture), shown(sound), words(text)), assistant(answer("same", facts)[0])]


def same_words(rng: np.random.Generator) -> list[Message]:
    """Two digits that are told in writing, or that the answer chooses: whether they are the same. To compare words is
    learnt from many such, and not from the few that sounds and pictures are asked about; and of digits of its own
    choice, for it has to be those of the answer that it compares: nobody writes what is seen and heard beside it."""
    seen = heard = pick(rng, DIGITS)
    if rng.random() < 0.5:
        heard = pick(rng, [digit for digit in DIGITS if digit != seen])
    of_its_choice = rng.random() >= 0.3
    return compared(seen, heard, question(rng, "same", {}), THINK if of_its_choice else None)


def compared(seen: str, heard: str, asked: str, told: str | None = None) -> list[Message]:
    """Whether two digits are the same, in writing. told: what comes before the question; None names both."""
    told = told or f"I see {seen} and I hear {heard}."
    return [user(words(f"{told} {asked}")), assistant(answer("same", {"seen": seen, "heard": heard})[0])]


def _some(rng: np.random.Generator, kinds: Sequence[str], most: int) -> list[str]:
    """One to `most` of the kinds, in random order; one is the likeliest."""
    count = 1 + int(rng.binomial(most - 1, 0.35))
    return [kinds[int(i)] for i in rng.permutation(len(kinds))[:count]]
