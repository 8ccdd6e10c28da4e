"""A task: which lines, how they are asked, how the answer is read and scored, and what is good enough.

    {"image": "7.png", "question": "What number is this?", "answer": "seven"}        a line of the user's file
      ─ messages ─►  <image>What number is this?   ─ the model ─►   "It is a seven."
      ─ measures ─►  extract: "seven"   score against reference("seven"): (1, 1)   of all lines: 0.97   goal: 0.95

A line is asked once and may be measured in several ways: words, voice and naturalness of a spoken answer, or several
kinds of lines apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from omni_jax.errors import ConfigError
from omni_jax.sampling.options import SamplingOptions

Line = Mapping[str, Any]
Message = dict[str, Any]
Ablation = Literal["no_audio", "no_vision", "shuffled_time"]
ABLATIONS: tuple[Ablation, ...] = ("no_audio", "no_vision", "shuffled_time")
Of = Literal["text", "heard", "timed", "voice", "nearest", "mos"]
# What judges each view of an answer; None is nobody: the text is there.
SCORER_OF: dict[Of, str | None] = {
    "text": None,
    "heard": "recognizer",
    "timed": None,  # a recogniser that tells times makes it better
    "voice": "speaker_scorer",
    "nearest": "speaker_scorer",
    "mos": "mos_scorer",
}


@dataclass(frozen=True)
class Metric:
    """Statistics of one answer, and the figure of their sum.

    score: (what was extracted, reference) -> k numbers. total: their sum [k] over answers -> the figure. A rate of
    words is (errors, words) and their quotient; a mean is (value, 1). So an interval comes of drawing answers again.
    """

    name: str
    score: Callable[[Any, Any], Sequence[float]]
    total: Callable[[np.ndarray], float]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Goal:
    """What is good enough.

    rule: "at least" or "at most" `value`. "chance": no better than the best constant answer, within the interval;
        `value` names the key of a line by which constants differ ("kind"), None for one constant of all. "worse than":
        the measure named `value` has a better figure on the same lines, by more than the interval of the difference.
        "better than before": likewise, better than in an earlier run that is compared with.
    """

    rule: Literal["at least", "at most", "chance", "worse than", "better than before"]
    value: Any = None


def at_least(value: float) -> Goal:
    return Goal("at least", value)


def at_most(value: float) -> Goal:
    return Goal("at most", value)


@dataclass(frozen=True)
class Measure:
    """One figure of a task: a row of the report.

    of: what is looked at. "text": what the model wrote. "heard": what a recogniser hears in its speech. "timed": the
        sound, beside its words with times where a recogniser tells them, for pauses. "voice": the vector of a speaker
        scorer. "nearest": the same, to be told from other voices. "mos": the figure of a scorer of naturalness.
    reference: of a line; what the metric compares with. For "voice" a recording, for "nearest" the name of a voice.
    extract: (text, line) -> what is compared; of "text" and "heard" only.
    where: which lines count; None for all.
    floor: what a perfect model would get from this scorer, where that is known beforehand and cannot be measured. It is
        measured where lines have a true recording and a scorer is given, and of text where the reference is a text.
    baseline: what a simple method gets on these lines, to be shown beside the figure.
    """

    name: str
    metric: Metric
    of: Of = "text"
    reference: Callable[[Line], Any] = lambda line: line["reference"]
    extract: Callable[[str, Line], Any] = lambda text, line: text
    where: Callable[[Line], bool] | None = None
    goal: Goal | None = None
    floor: float | None = None
    baseline: float | None = None


@dataclass(frozen=True)
class Task:
    """Lines of a file, asked in one way.

    file: JSON lines, from the folder of the data. messages: a line -> the prompt; media by path from the file's folder.
    options: of the text. speak: None; "answer": text and speech as the model gives them; "reference": the line's own
        text is spoken, which tries the Talker alone. text_to_speak, voice: of a line, for the two latter.
    clone: the key of a recording whose timbre the voice takes on.
    truth: of a line, a true recording, of which floors are measured: of an answer that is spoken as it should be, or
        of what a task without speech shall hear, as the recogniser hears it.
    where: which lines are asked. ablate: what is taken from the prepared request.
    """

    name: str
    file: str
    messages: Callable[[Line], list[Message]]
    measures: tuple[Measure, ...]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    speak: Literal["answer", "reference"] | None = None
    text_to_speak: Callable[[Line], str] = lambda line: line["reference"]
    voice: Callable[[Line], str | None] = lambda line: line.get("voice")
    clone: str | None = None
    truth: Callable[[Line], str | None] = lambda line: line.get("recording")
    where: Callable[[Line], bool] | None = None
    ablate: Ablation | None = None

    def __post_init__(self) -> None:
        if self.ablate is not None and self.ablate not in ABLATIONS:
            raise ConfigError(f"{self.name}: ablate = {self.ablate!r} is unknown. Give one of {', '.join(ABLATIONS)}.")
        spoken = [measure.name for measure in self.measures if measure.of != "text"]
        if spoken and self.speak is None:
            raise ConfigError(
                f"{self.name}: {spoken[0]} is of speech, but the task does not speak. Set speak='answer'."
            )
