"""Word error rate of what a recogniser heard, with the normalisers that published figures use.

English: Whisper's English normaliser, then its basic one, as in the evaluation of Qwen2-Audio. Chinese: the basic one,
letter by letter, so that the rate is one of characters. One rate an utterance, as seed-tts-eval takes it.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Literal

from omni_jax.errors import ConfigError

Language = Literal["en", "zh"]
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")

# The wording of the published evaluation (Qwen2-Audio, Qwen2.5-Omni); decoding is greedy.
ASR_SYSTEM = "You are a speech recognition model."
ASR_PROMPTS: dict[Language, str] = {
    "en": "Transcribe the English audio into text without any punctuation marks.",
    "zh": "请将这段中文语音转换为纯文本，去掉标点符号。",
}
ASR_TOKENS = 256


def language_of(text: str) -> Language:
    """Chinese where there is a Chinese character, else English."""
    return "zh" if _HAN.search(text) else "en"


def normal_words(text: str, language: Language) -> list[str]:
    """What is compared: "Mr. Smith's 25" -> [mister, smith, is, 25]; of Chinese each character by itself.

    Raises:
        ConfigError: the normaliser is not installed.
    """
    return _normaliser(language)(text).split()


def word_error_rate(text: str, transcript: str, language: Language, *, digits_apart: bool = False) -> float:
    """Substitutions, deletions and insertions for each word of `text`; above 1 where much was added.

    Args:
        digits_apart: each digit is a word. The English normaliser makes "four seven one" the one word 471, of which a
            single wrong digit is as bad as all of them: right for published figures, too coarse for a ranking.

    Raises:
        ConfigError: a library is not installed, or the text has no words (see `normal_words`).
    """
    words, heard = (normal_words(each, language) for each in (text, transcript))
    if digits_apart:
        words, heard = (re.sub(r"(\d)", r" \1 ", " ".join(each)).split() for each in (words, heard))
    if not words:
        raise ConfigError("A text without words has no word error rate. Leave it out.")
    jiwer = library("jiwer")
    return float(jiwer.process_words(" ".join(words), " ".join(heard)).wer)


@cache
def _normaliser(language: Language) -> Callable[[str], str]:
    basic = library("whisper_normalizer.basic").BasicTextNormalizer(split_letters=language == "zh")
    if language == "zh":
        return basic
    english = library("whisper_normalizer.english").EnglishTextNormalizer()
    return lambda text: basic(english(text))


def library(name: str, needed: str = "word error rates need it") -> Any:
    """A module of the extra `evaluation`. Raises ConfigError with the command that installs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0]:
            raise
        raise ConfigError(
            f"{error.name} is not installed; {needed}. Run: pip install 'omni-jax[evaluation]'"
        ) from error
