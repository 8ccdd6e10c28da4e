"""A closed grammar of about 300 words: sentences about animals, colours and counts, commands, and spoken digits.

"The small white horse sleeps behind the old house."   "Four seven one nine."   "Please count the three green stars."

Texts of four words and more are split by a hash of their words into those to train on and those to test on, whatever
the seed: no test text is ever learnt. Shorter ones (a digit, a colour) are too few to be split; both have them.
"""

import hashlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from examples.omni_tiny.chance import generator, pick

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTS = ("one", "two", "three", "four", "five")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SHAPES = {
    "circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars", "cross": "crosses",
    "diamond": "diamonds",
}  # fmt: skip
ANIMALS = {
    "cat": "cats", "dog": "dogs", "bird": "birds", "horse": "horses", "cow": "cows", "pig": "pigs", "duck": "ducks",
    "goat": "goats", "lion": "lions", "tiger": "tigers", "bear": "bears", "wolf": "wolves", "fox": "foxes",
    "mouse": "mice", "rabbit": "rabbits", "monkey": "monkeys", "elephant": "elephants", "snake": "snakes",
    "frog": "frogs", "spider": "spiders",
}  # fmt: skip
ADJECTIVES = (
    "big",
    "small",
    "little",
    "old",
    "young",
    "happy",
    "quiet",
    "hungry",
    "tired",
    "friendly",
    "white",
    "black",
)
THINGS = ("box", "table", "chair", "door", "window", "book", "cup", "bottle", "basket", "ball", "lamp", "picture")
PLACES = ("house", "garden", "river", "tree", "school", "park", "boat", "train", "field", "hill", "wall", "bridge")
WHERE = ("behind", "near", "under", "beside", "in front of", "on top of")
DOES = ("sleeps", "runs", "waits", "sits", "plays", "eats", "hides", "jumps", "walks", "stands")
DO = ("sleep", "run", "wait", "sit", "play", "eat", "hide", "jump", "walk", "stand")
HANDS = ("Take", "Move", "Put", "Find", "Bring", "Show me", "Look at", "Give me", "Count", "Draw")
WAYS = ("left", "right", "up", "down")
PEOPLE = (
    "Anna",
    "Peter",
    "Mary",
    "Tom",
    "my brother",
    "my sister",
    "the teacher",
    "the doctor",
    "the farmer",
    "the boy",
)
LIKES = ("likes", "sees", "wants", "finds", "knows", "remembers", "paints", "follows")
WHEN = ("today", "tomorrow", "every day", "in the morning", "in the evening", "at night", "in the summer", "on Monday")
FEELS = ("sunny", "cold", "warm", "dark", "rainy", "windy")

_LEAST_WORDS = 4  # of a text that is split
_TEST_SHARE = 0.1
_COMPARED = re.compile(r"i see \w+ and i hear \w+ so (yes|no)")


def normal_words(text: str) -> list[str]:
    """What is compared when speech is scored: small letters, no punctuation, digits as words.

    "The number is 47."  ->  [the, number, is, four, seven]
    """
    spelled = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text.lower().replace("’", "'"))
    return re.findall(r"[a-z']+", spelled)


def normal(text: str) -> str:
    """`normal_words` as a text: what the model writes when it transcribes."""
    return " ".join(normal_words(text))


def is_test(text: str) -> bool:
    """Whether a text belongs to the tests: a tenth of those that have four words or more.

    "The number is ..." is none of them, nor "I see four and I hear six, so no.": it is what answers say.
    """
    words = normal_words(text)
    if words[:3] == ["the", "number", "is"] or _COMPARED.fullmatch(" ".join(words)):
        return False
    number = int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:4], "big")
    return len(words) >= _LEAST_WORDS and number < _TEST_SHARE * 2**32


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def digit_words(digits: str | list[int]) -> str:
    """ "407" -> "four zero seven" """
    return " ".join(DIGITS[int(digit)] for digit in digits)


def digit_string(rng: np.random.Generator, least: int = 1, most: int = 6) -> str:
    """Digits, as words: "Four seven one nine." Longer ones are the likelier; some have a comma in the middle."""
    lengths = np.arange(least, most + 1)
    length = int(rng.choice(lengths, p=lengths / lengths.sum()))
    words = [pick(rng, DIGITS) for _ in range(length)]
    if length >= 4 and rng.random() < 0.3:
        words[length // 2 - 1] += ","
    return capital(" ".join(words)) + "."


def sentence(rng: np.random.Generator) -> str:
    """A sentence of the grammar, with capital and punctuation."""
    return capital(pick(rng, _TEMPLATES)(rng))


def reading_text(rng: np.random.Generator) -> str:
    """What is read aloud: a sentence, a number, or digits."""
    kind = rng.random()
    if kind < 0.25:
        return digit_string(rng)
    if kind < 0.4:
        return f"The number is {digit_string(rng, 1, 4).lower()}"
    return sentence(rng)


def hard_text(rng: np.random.Generator) -> str:
    """What a Talker stumbles over: words said again and again, and long strings of digits."""
    kind, digit = int(rng.integers(4)), pick(rng, DIGITS)
    if kind == 0:  # one digit many times, with another one inside
        words = [digit] * int(rng.integers(4, 8))
        words[int(rng.integers(len(words)))] = pick(rng, DIGITS)
        return capital(" ".join(words)) + "."
    if kind == 1:
        return digit_string(rng, 7, 10)
    if kind == 2:  # pairs: "red red blue blue red red"
        a, b = pick(rng, COLOURS), pick(rng, COLOURS)
        return capital(" ".join(pick(rng, (a, b)) for _ in range(int(rng.integers(4, 8))))) + "."
    animal = pick(rng, tuple(ANIMALS.values()))
    first, second = pick(rng, COUNTS[1:]), pick(rng, COUNTS[1:])
    return capital(f"{first} {animal}, {second} {animal}, and {first} more {animal} {pick(rng, WHERE)} the {animal}.")


def mixed_words(rng: np.random.Generator) -> str:
    """Three to nine words and phrases of the grammar in no order ("on top of", "my brother"): none can be guessed from
    the others."""
    return capital(" ".join(pick(rng, _WORDS) for _ in range(int(rng.integers(3, 10))))) + "."


def texts(make: Callable[[np.random.Generator], str], seed: int, name: str, *, test: bool) -> Iterator[str]:
    """Endless texts of one side of the split, from one seed. For tests each text comes once."""
    seen: set[str] = set()
    for index in range(10**9):
        text = make(generator(seed, name, index))
        if is_test(text) != test or (test and text in seen):
            continue
        seen.add(text)
        yield text


def _counted(rng: np.random.Generator, *, least: int = 0) -> str:
    """ "three green stars", "two happy dogs" """
    number = int(rng.integers(least, 5))
    kind = pick(rng, (SHAPES, ANIMALS))
    one = pick(rng, tuple(kind))
    which = pick(rng, COLOURS if kind is SHAPES else ADJECTIVES)
    return f"{COUNTS[number]} {which} {one if number == 0 else kind[one]}"


def _thing(rng: np.random.Generator) -> str:
    return f"the {pick(rng, COLOURS)} {pick(rng, THINGS)}"


def _animal(rng: np.random.Generator) -> str:
    return f"{pick(rng, ADJECTIVES)} {pick(rng, tuple(ANIMALS))}"


def _animals(rng: np.random.Generator) -> str:
    return pick(rng, tuple(ANIMALS.values()))


def _place(rng: np.random.Generator) -> str:
    return f"{pick(rng, WHERE)} the {pick(rng, PLACES)}"


_WORDS = tuple(
    sorted(
        {
            *(*DIGITS, *COLOURS, *SHAPES, *SHAPES.values(), *ANIMALS, *ANIMALS.values(), *ADJECTIVES, *THINGS, *PLACES),
            *(*WHERE, *DOES, *DO, *(word.lower() for word in HANDS), *WAYS, *PEOPLE, *LIKES, *WHEN, *FEELS),
        }
    )
)
_TEMPLATES: tuple[Callable[[np.random.Generator], str], ...] = (
    lambda r: f"the {_animal(r)} {pick(r, DOES)} {_place(r)}.",
    lambda r: f"the {_animal(r)} {pick(r, DOES)} {_place(r)}, and the {_animal(r)} {pick(r, DOES)}.",
    lambda r: f"there are {_counted(r, least=1)} {_place(r)}.",
    lambda r: f"please {pick(r, HANDS).lower()} {_thing(r)}.",
    lambda r: f"{pick(r, HANDS)} {_thing(r)}, then stop.",
    lambda r: f"put {_thing(r)} {pick(r, WHERE)} {_thing(r)}.",
    lambda r: f"draw {_counted(r)} and {_counted(r)}.",
    lambda r: f"please count the {_counted(r, least=1)}.",
    lambda r: f"{pick(r, PEOPLE)} {pick(r, LIKES)} the {_animal(r)} {pick(r, WHEN)}.",
    lambda r: f"{pick(r, PEOPLE)} {pick(r, LIKES)} {_counted(r)}.",
    lambda r: f"how many {_animals(r)} {pick(r, DO)} {_place(r)}?",
    lambda r: f"where does the {_animal(r)} {pick(r, DO)} {pick(r, WHEN)}?",
    lambda r: f"can you see the {_animal(r)} {_place(r)}?",
    lambda r: f"it is {pick(r, FEELS)} {pick(r, WHEN)}, so the {_animals(r)} {pick(r, DO)} {_place(r)}.",
    lambda r: f"{pick(r, WHEN)} it is {pick(r, FEELS)} and {pick(r, FEELS)}.",
    lambda r: f"turn {pick(r, WAYS[:2])} and go {pick(r, WAYS[2:])} the hill.",
    lambda r: f"I have {_counted(r)} and {pick(r, PEOPLE)} has {_counted(r)}.",
    lambda r: (
        f"the {pick(r, COLOURS)} {pick(r, tuple(SHAPES))} is {pick(r, ('bigger', 'smaller'))} than the "
        f"{pick(r, COLOURS)} {pick(r, tuple(SHAPES))}."
    ),
    lambda r: f"open the {pick(r, ('door', 'window', 'box', 'book'))} and close {_thing(r)}.",
    lambda r: f"my number is {digit_string(r, 2, 5).lower()}",
)
