"""Table 3, understanding of sound: labels (MELD, VocalSound), tempo (GiantSteps), questions (MMAU).

    {"audio": "dia0_utt1.wav", "answer": "neutral"}                          meld, vocalsound
    {"audio": "10089.mp3", "answer": 128}                                    giantsteps_tempo
    {"audio": "x.wav", "question": "What ...?", "options": ["a dog", "a cat"], "answer": "a dog", "task": "sound"}

Labels are compared whole, as accuracy_score does; MMAU (test-mini) by its own rule, a match of words of the options.
"""

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.prompts import ask, options_of
from omni_jax.evaluation.task import Line, Measure, Task
from omni_jax.sampling.options import SamplingOptions

SHORT = SamplingOptions(max_new_tokens=256)


def labels(name: str, prompt: str, system: str | None = None) -> Task:
    """One word for each recording."""
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(prompt, system=system),
        options=SHORT,
        measures=(
            Measure(
                name,
                metrics.accuracy(),
                extract=extract.label(),
                reference=lambda line: line["answer"].strip().lower(),
            ),
        ),
    )


def _quoted(line: Line) -> str:
    """MMAU's own wording of the options."""
    *most, last = (f"'{option}'" for option in options_of(line))
    return f"{line['question'].strip()} Choose one among the following options: {', '.join(most)} or {last}."


def _mmau(name: str, *kinds: str) -> Measure:
    return Measure(
        name,
        metrics.option_words(),
        reference=lambda line: (line["answer"], options_of(line)),
        where=extract.key_is("task", *kinds) if kinds else None,
    )


TASKS = (
    labels("meld", "Recognize the emotion with keywords in English."),
    labels(
        "vocalsound",
        "Classify the given human vocal sound in English.",
        system="You are a vocal sound classification model.",
    ),
    Task(
        name="giantsteps_tempo",
        file="giantsteps_tempo.jsonl",
        messages=ask("What is the tempo of this music in beats per minute? Answer with a number."),
        options=SHORT,
        measures=(
            Measure(
                "giantsteps_tempo",
                metrics.tempo_accuracy(),
                extract=extract.first_number,
                reference=lambda line: float(line["answer"]),
            ),
        ),
    ),
    Task(
        name="mmau",
        file="mmau_test_mini.jsonl",
        messages=ask(_quoted),
        options=SHORT,
        measures=(
            _mmau("mmau_sound", "sound"),
            _mmau("mmau_music", "music"),
            _mmau("mmau_speech", "speech"),
            _mmau("mmau_avg"),
        ),
    ),
)
