"""Omni-tiny on what it never learnt: the test lines of examples/omni_tiny, with the goals that were set beforehand.

Words are compared in the form of published English error rates, with digits as words. Of an answer to a question only
words of the kind that is asked for count, and all of them must be right: "The number is four seven." is right for
"four seven", not for "four". Floors: another recogniser on the same recordings; scorers on true recordings.
"""

from collections.abc import Callable

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.metrics_text import digits_error_rate
from omni_jax.evaluation.normal import english_digits
from omni_jax.evaluation.prompts import own_messages
from omni_jax.evaluation.task import Goal, Line, Measure, Task, at_least, at_most
from omni_jax.sampling.options import SamplingOptions

# The words of each kind of answer; examples/omni_tiny/questions.py and sentences.py have them too.
CLASSES = (
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("red", "blue", "green", "yellow", "purple", "orange"),
    ("circle", "square", "triangle", "star", "cross", "diamond", "circles", "squares", "triangles", "stars", "crosses",
     "diamonds"),
    ("yes", "no"),
    ("left", "right", "up", "down"),
    ("beep", "siren", "drum", "noise"),
    ("picture", "sound"),
)  # fmt: skip
SPEAKERS = ("jackson", "nicolas", "theo", "yweweler")
NEEDS_SOUND, NEEDS_PICTURE = ("heard", "sound", "same"), ("seen", "way", "same")
# half of the digits that are heard in films are those that are seen: by the other sense one would guess half of them
_TOLD_BY_THE_OTHER = ("seen", "heard")
# 3 nearest neighbours on the pixels, of 59,000 handwritten digits: what a picture tells without any learning
NEIGHBOURS = 0.977
WORDS = SamplingOptions(max_new_tokens=64)
Where = Callable[[Line], bool]

_decisive = extract.words_of(CLASSES, english_digits)
_true_words = extract.answer_words(english_digits)


def hears(name: str, goal: Goal | None, file: str | None = None, where: Where | None = None) -> Task:
    """Transcripts."""
    return Task(
        name=name,
        file=f"test_{file or name}.jsonl",
        messages=own_messages,
        options=WORDS,
        measures=(Measure(name, digits_error_rate(), goal=goal),),
        truth=_first_sound,
        where=where,
    )


def answers(name: str, goal: Goal | None = None, baseline: float | None = None, **task) -> Task:
    """Questions whose answer is right by its decisive words."""
    return Task(
        name=name,
        file=f"test_{task.pop('file', name)}.jsonl",
        messages=own_messages,
        options=WORDS,
        measures=(_right(name, goal, baseline=baseline),),
        **task,
    )


def ablated(name: str, kinds: tuple[str, ...], **task) -> Task:
    """Films without a sense: questions that need it fall to chance, each kind to its own."""

    def needed(line: Line) -> bool:
        told = line["kind"] in _TOLD_BY_THE_OTHER and line.get("seen") == line.get("heard")
        return line["kind"] in kinds and not told

    return answers(name, Goal("chance", "kind"), where=needed, **task)


def converses(name: str, goal: Goal | None = None) -> Task:
    """Spoken answers, right by what a recogniser hears; what the model wrote beside them is told too."""
    return Task(
        name=name,
        file=f"test_{name}.jsonl",
        messages=own_messages,
        options=WORDS,
        speak="answer",
        measures=(_right(name, goal, of="heard"), _right(f"{name}_written", None)),
    )


def _right(name: str, goal: Goal | None, **measure) -> Measure:
    return Measure(name, metrics.accuracy(), extract=_decisive, reference=_true_words, goal=goal, **measure)


def _first_sound(line: Line) -> str | None:
    items = [
        item for message in line["messages"] if isinstance(message["content"], list) for item in message["content"]
    ]
    return next((item["audio"] for item in items if item.get("type") == "audio"), None)


_WORSE = Goal("worse than", "watches_first")
TASKS = (
    # 1. hears
    hears("hears_unseen_speakers", at_most(0.08)),
    hears("hears_human", at_most(0.04)),
    hears("hears_human_strings", at_most(0.04)),
    hears("hears_asterisk_digits", at_most(0.10)),
    # 2. sees
    answers("sees_digit", at_least(0.97), baseline=NEIGHBOURS),
    answers("sees_string", at_least(0.90)),
    answers("sees_shapes", at_least(0.95)),
    answers("sees_shapes_known_style"),
    # 3. watches
    answers("watches", at_least(0.90)),
    ablated("watches_silenced", NEEDS_SOUND, file="watches", ablate="no_audio"),
    ablated("watches_blinded", NEEDS_PICTURE, file="watches", ablate="no_vision"),
    ablated("watches_no_sound", NEEDS_SOUND),
    ablated("watches_no_picture", NEEDS_PICTURE),
    answers("watches_first", at_least(0.85)),
    answers("watches_first_shuffled", _WORSE, file="watches_first", ablate="shuffled_time"),
    # one sense alone is right in at most three of four: whatever comes very early or late tells what came first
    answers("watches_first_silenced", _WORSE, file="watches_first", ablate="no_audio"),
    answers("watches_first_blinded", _WORSE, file="watches_first", ablate="no_vision"),
    answers("watches_first_no_sound", _WORSE),
    answers("watches_first_no_picture", _WORSE),
    # 4. speaks
    Task(
        name="speaks",
        file="test_speaks.jsonl",
        messages=own_messages,
        options=WORDS,
        speak="answer",
        measures=(
            Measure("speaks_wer", digits_error_rate(), of="heard", goal=at_most(0.10)),
            Measure(
                "speaks_voice",
                metrics.nearest_voice(),
                of="nearest",
                reference=lambda line: line["voice"],
                goal=at_least(0.95),
            ),
            Measure("speaks_mos", metrics.mean_opinion(), of="mos", goal=at_least(2.8)),
        ),
    ),
    # 5. converses
    converses("converses_picture", at_least(0.85)),
    converses("converses_digit", at_least(0.85)),
    converses("converses_same"),
    # 6. preferences: the Talker alone, before and after (--compare)
    Task(
        name="speaks_hard",
        file="test_speaks_hard.jsonl",
        messages=own_messages,
        speak="reference",
        measures=(
            Measure("speaks_hard_wer", digits_error_rate(), of="heard", goal=Goal("better than before")),
            Measure("speaks_hard_pauses", metrics.pause_errors(), of="timed", goal=Goal("better than before")),
        ),
    ),
)
