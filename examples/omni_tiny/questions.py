"""What is asked, in how many ways, and the sentence that answers it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.omni_tiny.chance import pick
from examples.omni_tiny.sentences import COUNTS, SHAPES

QUESTIONS: dict[str, tuple[str, ...]] = {
    # pictures; {shape} and {shapes} are filled in
    "digits": (
        "What number is this?", "What number do you see?", "Which number is in the picture?", "Please read the number.",
        "Can you read the number?", "Tell me the number.",
    ),
    "colour": ("What colour is it?", "Which colour do you see?", "Tell me the colour.", "What colour is the {shape}?"),
    "shape": ("What shape is this?", "Which shape do you see?", "Tell me the shape."),
    "count": (
        "How many are there?", "How many {shapes} are there?", "How many shapes do you see?", "Count the {shapes}.",
    ),
    "describe": ("Describe the picture.", "What is in the picture?", "Tell me what you see."),
    # sound, and sound beside a picture
    "repeat": ("Repeat what you hear.", "Which number do you hear?", "Say the number that you hear."),
    "same": ("Is it the same number?", "Are the two numbers the same?", "Do you hear the number that you see?"),
    # films
    "seen": ("What number do you see in the film?", "Which number moves?", "Which number is in the film?"),
    "heard": ("What number do you hear?", "Which number is said?", "Tell me the number that is said."),
    "sound": ("What sound do you hear?", "Which sound is it?", "Tell me what you hear."),
    "way": ("Which way does it move?", "Where does the number go?", "Does it move left, right, up or down?"),
    "first": ("What came first, the picture or the sound?", "Which came first?", "What came first?"),
    # talk
    "who": ("Who are you?", "What is your name?"),
    "hello": ("Hello.", "Hello, how are you?"),
    "help": ("What can you do?",),
}  # fmt: skip

SOUNDS = {"beep": "a beep", "siren": "a siren", "drum": "a drum", "noise": "a noise"}
_WAYS = {
    "left": "It moves to the left.",
    "right": "It moves to the right.",
    "up": "It moves up.",
    "down": "It moves down.",
}
_TALK = {
    "who": "My name is Omni, and I am a very small model.",
    "hello": "Hello! How can I help you?",
    "help": "I can hear, see and speak.",
}


def question(rng: np.random.Generator, kind: str, facts: Mapping[str, Any]) -> str:
    """One of the ways to ask, about a picture or film with these `facts`."""
    shape = facts.get("shape")
    fitting = [text for text in QUESTIONS[kind] if shape is not None or "{" not in text]
    return filled(pick(rng, fitting), shape)


def filled(template: str, shape: str | None) -> str:
    return template if shape is None else template.format(shape=shape, shapes=SHAPES[shape])


def all_questions() -> list[str]:
    """Every question in every wording, in a fixed order: what is spoken aloud."""
    found = []
    for templates in QUESTIONS.values():
        for template in templates:
            found += [filled(template, shape) for shape in SHAPES] if "{" in template else [template]
    return found


def answer(kind: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """The sentence that answers, and the words in it that decide.

    ("There are three red circles.", "three")
    """
    if kind in _TALK:
        return _TALK[kind], ""
    if kind in ("digits", "repeat", "seen", "heard"):
        said = facts["heard" if kind in ("repeat", "heard") else "seen"]
        return f"The number is {said}.", said
    if kind == "describe":
        return (description(facts), facts["seen"]) if "seen" in facts else (description(facts), objects(facts))
    if kind == "colour":
        it = "It is" if facts.get("count", 1) == 1 else "They are"
        return f"{it} {facts['colour']}.", facts["colour"]
    if kind == "shape":
        if facts["count"] == 1:
            return f"It is a {facts['shape']}.", facts["shape"]
        return f"They are {SHAPES[facts['shape']]}.", SHAPES[facts["shape"]]
    if kind == "count":
        number = COUNTS[facts["count"] - 1]
        return ("There is " if facts["count"] == 1 else "There are ") + objects(facts) + ".", number
    if kind == "same":
        # what is seen and heard comes first: a small model compares what it has written, and guesses before
        same = "yes" if facts["seen"] == facts["heard"] else "no"
        return f"I see {facts['seen']} and I hear {facts['heard']}, so {same}.", same
    if kind == "sound":
        return f"I hear {SOUNDS[facts['sound']]}.", facts["sound"]
    if kind == "way":
        return _WAYS[facts["way"]], facts["way"]
    assert kind == "first", kind
    return f"The {facts['first']} came first.", facts["first"]


def objects(facts: Mapping[str, Any]) -> str:
    """ "three red circles", "one blue star" """
    shape = facts["shape"] if facts["count"] == 1 else SHAPES[facts["shape"]]
    return f"{COUNTS[facts['count'] - 1]} {facts['colour']} {shape}"


def description(facts: Mapping[str, Any]) -> str:
    """All of a picture or film in a sentence or two."""
    if "shape" in facts:
        return ("There is " if facts["count"] == 1 else "There are ") + objects(facts) + "."
    if "way" not in facts:
        return f"The number {facts['seen']} in {facts['colour']}."
    heard = f"the number {facts['heard']}" if "heard" in facts else SOUNDS[facts["sound"]]
    return f"The number {facts['seen']} moves {facts['way']}. I hear {heard}."
