"""Table 3, VoiceBench: its two sets of spoken multiple choice.

    {"audio": "q1.wav", "answer": "B"}

The question and its options are spoken; the answer is text. AlpacaEval, CommonEval and SD-QA need a paid judge, IFEval
and AdvBench rules of their own: not scored here.
"""

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.task import Line, Measure, Task
from omni_jax.sampling.options import SamplingOptions


def _letter(text: str, line: Line) -> str | None:
    """Sets have four options, which are heard, not read."""
    return extract.option_letter(text, {"options": line.get("options") or ("?",) * 4})


def spoken_choice(name: str) -> Task:
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(""),
        options=SamplingOptions(max_new_tokens=512),
        measures=(Measure(name, metrics.accuracy(), extract=_letter, reference=extract.option_of_reference()),),
    )


TASKS = (spoken_choice("voicebench_mmsu"), spoken_choice("voicebench_openbookqa"))
