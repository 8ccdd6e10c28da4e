"""Tables 9 and 10, speech generation (seed-tts-eval): word errors of a recogniser, and likeness to the prompt's voice.

    {"text": "What is said.", "prompt_audio": "prompt.wav", "recording": "true.wav"}      "recording" may be left out

The mean of each utterance's rate, as the published script takes it. The published figures are of Whisper-large-v3
(English), Paraformer-zh (Chinese) and WavLM-large for likeness; name whoever judges here beside the figure. Naturalness
(NMOS) is of listeners; a scorer of it is a stand-in. A model whose weights know their own voices only takes from the
prompt its timbre, not its way of speaking (docs/speech.md).
"""

from omni_jax.evaluation import metrics
from omni_jax.evaluation.metrics_text import utterance_rate
from omni_jax.evaluation.task import Line, Measure, Message, Task
from omni_jax.sampling.options import SamplingOptions

# The published model wants this turn where it shall speak.
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)


def _asked(line: Line) -> list[Message]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Read aloud: {line['text']}"}]


def seed(name: str, language: str, *, clone: bool = True) -> Task:
    """A set of texts; `clone` takes each prompt's timbre, else the voices of the model are scored (table 10)."""
    likeness = Measure(f"{name}_sim", metrics.similarity(), of="voice", reference=lambda line: line["prompt_audio"])
    return Task(
        name=name,
        file=f"seed_{name.removeprefix('seed_').removesuffix('_voices')}.jsonl",
        messages=_asked,
        options=SamplingOptions(max_new_tokens=512),
        speak="reference",
        text_to_speak=lambda line: line["text"],
        clone="prompt_audio" if clone else None,
        measures=(
            Measure(f"{name}_wer", utterance_rate(language), of="heard", reference=lambda line: line["text"]),
            *([likeness] if clone else []),
            Measure(f"{name}_mos", metrics.mean_opinion(), of="mos", reference=lambda line: line["text"]),
        ),
    )


SETS = {"seed_en": "en", "seed_zh": "zh", "seed_hard": "zh"}
TASKS = (
    *(seed(name, language) for name, language in SETS.items()),
    *(seed(f"{name}_voices", language, clone=False) for name, language in SETS.items()),
)
