"""Table 5, questions on pictures.

    {"image": "1.png", "question": "What ...?", "options": ["a", "b"], "answer": "B"}        by letter; several pictures
        as a list; "hint" is read before the question
    {"image": "1.png", "question": "How many ...?", "answer": "12.5"}                        chartqa
    {"image": "1.png", "question": "Which ...?", "answers": ["ITC", "ITC Limited"]}          docvqa; textvqa (of ten)
    {"image": "1.png", "question": "Is ...?", "answer": "yes"}                               mme_yes_no, mathvista

MathVista's published figure lets a language model find the answer in the words; here rules do, so ours is approximate.
MM-Vet, MM-MT-Bench need a paid judge; MMBench test and DocVQA test a server; OCRBench v2, MathVision, CRPE and MME's
sum have scorers of their own: not scored here.
"""

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.prompts import ask, choices
from omni_jax.evaluation.task import Line, Measure, Metric, Task
from omni_jax.sampling.options import SamplingOptions

BY_OPTION = (
    "mmmu", "mmmu_pro", "mmbench_en_dev", "mmbench_cn_dev", "mmstar", "muirbench", "realworldqa", "mme_realworld",
    "ai2d",
)  # fmt: skip
LETTER = "Answer with the option's letter from the given choices directly."
WORD = "{question}\nAnswer the question using a single word or phrase."
OPTIONS = SamplingOptions(max_new_tokens=128)


def by_option(name: str, *, file: str | None = None, use_audio: bool | None = None, instruction: str = LETTER) -> Task:
    """Multiple choice on what is seen."""
    question = choices(instruction)

    def text(line: Line) -> str:
        return f"{line['hint']}\n{question(line)}" if line.get("hint") else question(line)

    return Task(
        name=name,
        file=file or f"{name}.jsonl",
        messages=ask(text, use_audio=use_audio),
        options=OPTIONS,
        measures=(
            Measure(
                name,
                metrics.accuracy(),
                extract=extract.option_letter,
                reference=extract.option_of_reference(),
            ),
        ),
    )


def short_answer(name: str, metric: Metric, key: str) -> Task:
    """A word or a phrase."""
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(WORD),
        options=OPTIONS,
        measures=(Measure(name, metric, extract=extract.short, reference=lambda line: line[key]),),
    )


def _mathvista(text: str, line: Line) -> str | float | None:
    return extract.option_letter(text, line) if line.get("options") else extract.last_number(text)


def _mathvista_truth(line: Line) -> str | float | None:
    return extract.option_of_reference()(line) if line.get("options") else extract.number_of("answer")(line)


def _mathvista_prompt(line: Line) -> str:
    if line.get("options"):
        return choices("Answer the question and give the letter of the correct option at the end.")(line)
    return f"{line['question']}\nAnswer the question and give the final number at the end."


TASKS = (
    *(by_option(name) for name in BY_OPTION),
    short_answer("chartqa", metrics.relaxed_accuracy(), "answer"),
    short_answer("docvqa_val", metrics.anls(), "answers"),
    short_answer("textvqa_val", metrics.vqa_accuracy(), "answers"),
    short_answer("mme_yes_no", metrics.exact_match(), "answer"),
    Task(
        name="mathvista_rules",
        file="mathvista.jsonl",
        messages=ask(_mathvista_prompt),
        options=SamplingOptions(max_new_tokens=1024),
        measures=(Measure("mathvista_rules", metrics.accuracy(), extract=_mathvista, reference=_mathvista_truth),),
    ),
)
