"""Table 2, speech translation (CoVoST2): BLEU of the corpus on the raw text.

{"audio": "common_voice_de_1.mp3", "translation": "He is at home."}
"""

from omni_jax.evaluation.metrics_text import bleu
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.task import Measure, Task
from omni_jax.sampling.options import SamplingOptions

LANGUAGES = {"en": "English", "de": "German", "zh": "Chinese", "ja": "Japanese"}
TOKENIZE = {"zh": "zh", "ja": "ja-mecab"}


def translation(source: str, target: str) -> Task:
    """From speech of one language to text of another."""
    name = f"covost2_{source}_{target}"
    prompt = f"Listen to the provided {LANGUAGES[source]} speech and produce a translation in {LANGUAGES[target]} text."
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(prompt, system="You are a speech translation model."),
        options=SamplingOptions(max_new_tokens=256),
        measures=(Measure(name, bleu(TOKENIZE.get(target, "13a")), reference=lambda line: line["translation"]),),
    )


TASKS = tuple(translation(*pair) for pair in (("en", "de"), ("de", "en"), ("en", "zh"), ("zh", "en"), ("en", "ja")))
