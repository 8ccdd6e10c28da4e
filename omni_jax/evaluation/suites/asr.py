"""Table 2, speech recognition: errors of a corpus, by words, or by characters of Chinese and Cantonese.

    {"audio": "1272-128104-0000.flac", "text": "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES"}

Prompts are those of the published cookbook, decoding is greedy. What a recogniser that is given makes of the same
recordings is the floor.
"""

from omni_jax.evaluation.metrics_text import error_rate
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.task import Measure, Task
from omni_jax.sampling.options import SamplingOptions
from omni_jax.training.transcripts import ASR_PROMPTS, ASR_SYSTEM, ASR_TOKENS

PROMPTS = ASR_PROMPTS | {
    "fr": "Transcribe the French audio into text without any punctuation marks.",
    "yue": "请将这段粤语语音转换为纯文本，去掉标点符号。",
}
SETS = {
    "librispeech_dev_clean": "en",
    "librispeech_dev_other": "en",
    "librispeech_test_clean": "en",
    "librispeech_test_other": "en",
    "cv15_en": "en",
    "cv15_zh": "zh",
    "cv15_yue": "yue",
    "cv15_fr": "fr",
    "fleurs_zh": "zh",
    "fleurs_en": "en",
    "wenetspeech_net": "zh",
    "wenetspeech_meeting": "zh",
    "voxpopuli_en": "en",
}


def recognition(name: str, language: str) -> Task:
    """A set of recordings with their texts."""
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask(PROMPTS[language], system=ASR_SYSTEM),
        options=SamplingOptions(max_new_tokens=ASR_TOKENS),
        measures=(Measure(name, error_rate(language), reference=lambda line: line["text"]),),
        truth=lambda line: line.get("audio"),
    )


TASKS = tuple(recognition(name, language) for name, language in SETS.items())
