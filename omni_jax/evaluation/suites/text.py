"""Table 1, text: options by letter, and numbers.

    {"question": "What is ...?", "options": ["...", "..."], "answer": "B"}      mmlu_pro, mmlu_redux, gpqa
    {"question": "Anna has ...", "answer": "... #### 72"}                       gsm8k

The paper states no prompts. Ours: no examples, reasoning first. What runs programs (HumanEval, MBPP, MultiPL-E,
LiveCodeBench), compares formulas (MATH) or has scorers of its own (LiveBench) is not scored here.
"""

from collections.abc import Callable

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.prompts import ask, choices
from omni_jax.evaluation.task import Line, Measure, Task
from omni_jax.sampling.options import SamplingOptions

REASONING = 'Think step by step and then finish your answer with "The answer is (X)" where X is the correct letter.'
LONG = SamplingOptions(max_new_tokens=2048)


def by_option(name: str, extraction: Callable[[str, Line], str | None] = extract.option_letter) -> Task:
    """Multiple choice in text."""
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(choices(REASONING)),
        options=LONG,
        measures=(Measure(name, metrics.accuracy(), extract=extraction, reference=extract.option_of_reference()),),
    )


def by_number(name: str, prompt: str = "{question}\nThink step by step. End with #### and the number.") -> Task:
    """Sums."""
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(prompt),
        options=LONG,
        measures=(
            Measure(
                name, metrics.number_accuracy(), extract=extract.last_number, reference=extract.number_of("answer")
            ),
        ),
    )


TASKS = (by_option("mmlu_pro", extract.mmlu_pro_letter), by_option("mmlu_redux"), by_option("gpqa"), by_number("gsm8k"))
