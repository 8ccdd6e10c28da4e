"""Texts in the form in which published error rates compare them.

ASR (Qwen2-Audio, eval_audio/evaluate_asr.py): control tokens out; English through Whisper's English normaliser and then
its basic one; Chinese through cn_tn, Cantonese through zhconv and the basic one, both letter by letter; all others
through the basic one; then small letters, and words that are punctuation only left out.

Speech generation (seed-tts-eval, run_wer.py): punctuation but ' out, small letters; Chinese letter by letter.
"""

import re
import string
import unicodedata
from collections.abc import Callable
from functools import cache, partial

from omni_jax.evaluation.zh_numbers import spoken_zh
from omni_jax.training import transcripts

library = partial(transcripts.library, needed="this metric needs it")

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# zhon.hanzi.punctuation, in which seed-tts-eval looks marks up, and the ASCII ones; ' stays
_SEED_MARKS = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰"
    "〾〿–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
) + string.punctuation.replace("'", "")
_SEED_OUT = str.maketrans("", "", _SEED_MARKS)


def asr_words(text: str, language: str) -> list[str]:
    """What is compared of a transcript: words, or characters of "zh" and "yue".

    "Mr. Smith's 25" -> [mister, smith, is, 25]       "共25个，" -> [共, 二, 十, 五, 个]

    Raises:
        ConfigError: a library is not installed.
    """
    text = _without_control(text, language)
    if language == "yue":
        text = simplified(text)
    if language == "en":
        text = _english()(text)
    text = spoken_zh(text) if language == "zh" else _basic()(text)
    words = [word for word in text.split() if not all(unicodedata.category(c)[0] == "P" for c in word)]
    text = " ".join(words).lower()
    return list(text.replace(" ", "")) if language in ("zh", "yue") else text.split()


def english_digits(text: str) -> list[str]:
    """As `asr_words` of English, digits as words: Whisper's normaliser makes "four seven" the one word "47".

    "The number is 47." -> [the, number, is, four, seven]
    """
    text = " ".join(asr_words(text, "en"))
    return re.sub(r"\d", lambda digit: f" {_DIGIT_WORDS[int(digit[0])]} ", text).split()


def seed_words(text: str, language: str) -> list[str]:
    """What seed-tts-eval compares: words of "en", characters of "zh" (the heard ones made simple by `simplified`)."""
    text = text.translate(_SEED_OUT).replace("  ", " ")
    return list(text.replace(" ", "")) if language == "zh" else text.lower().split()


def simplified(text: str) -> str:
    """Traditional characters as the simplified ones of the mainland."""
    return library("zhconv").convert(text, "zh-cn")


def _without_control(text: str, language: str) -> str:
    """<|en|> and the like out, one space where there were several, none before a mark; none at all in Chinese."""
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r" ?([!,.?;:])", r"\1", re.sub(r"\s+", " ", text)).lstrip(" ")
    return re.sub(r"\s+", "", text) if language == "zh" else text


@cache
def _english() -> Callable[[str], str]:
    return library("whisper_normalizer.english").EnglishTextNormalizer()


@cache
def _basic() -> Callable[[str], str]:
    return library("whisper_normalizer.basic").BasicTextNormalizer()
