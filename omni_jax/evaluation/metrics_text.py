"""Metrics of words: error rates and BLEU."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from omni_jax.errors import ConfigError, DataError
from omni_jax.evaluation.normal import asr_words, english_digits, library, seed_words, simplified
from omni_jax.evaluation.task import Metric

Words = Callable[[str], list[str]]


def error_rate(language: str) -> Metric:
    """Errors of a whole corpus by its words ("zh", "yue": characters), as published ASR figures: ~ 0.02."""
    return corpus_rate("CER" if language in ("zh", "yue") else "WER", lambda text: asr_words(text, language))


def digits_error_rate() -> Metric:
    """As `error_rate("en")`, each digit a word."""
    return corpus_rate("WER, digits as words", english_digits)


def corpus_rate(name: str, words: Words) -> Metric:
    """All errors by all words of the references."""
    return Metric(
        f"{name} of the corpus", lambda text, reference: errors(text, reference, words, words), _quotient, False
    )


def utterance_rate(language: str) -> Metric:
    """The mean of each utterance's rate, as seed-tts-eval takes it: long ones count no more than short ones."""

    def score(heard: str, reference: str) -> tuple[float, float]:
        wrong, count = errors(
            simplified(heard) if language == "zh" else heard,
            reference,
            lambda text: seed_words(text, language),
            lambda text: seed_words(text, language),
        )
        return wrong / count, 1.0

    return Metric("CER, mean of utterances" if language == "zh" else "WER, mean of utterances", score, _quotient, False)


def errors(text: str, reference: str, words: Words, reference_words: Words) -> tuple[float, float]:
    """Substitutions, deletions and insertions; words of the reference.

    Raises:
        DataError: the reference has no words. ConfigError: a library is not installed.
    """
    expected, found = reference_words(reference), words(text)
    if not expected:
        raise DataError(f"the reference {reference!r:.60} has no words, so no error rate. Leave the line out.")
    # each item is a word, whatever is in it: characters that jiwer would strip count too
    counted = library("jiwer").process_words(" ".join(expected), " ".join(found))
    return float(counted.substitutions + counted.deletions + counted.insertions), float(len(expected))


def bleu(tokenize: str) -> Metric:
    """sacreBLEU of the corpus, 0 to 100, on the raw text: tokenize "zh", "ja-mecab", or "13a" for all others."""

    def score(text: str, references: str | Sequence[str]) -> list[float]:
        each = [references] if isinstance(references, str) else list(references)
        found = _bleu(tokenize).sentence_score(text, each)
        return [*map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len)]

    def total(sums: np.ndarray) -> float:
        """The corpus's BLEU is a function of the sums of n-grams and lengths; smoothed as `sacrebleu.corpus_bleu`."""
        counts, totals, lengths = sums[:4], sums[4:8], sums[8:]
        whole = [round(float(x)) for x in (*counts, *totals, *lengths)]
        return float(_class().compute_bleu(whole[:4], whole[4:8], *whole[8:], smooth_method="exp").score)

    return Metric(f"BLEU, tokenize {tokenize}", score, total)


@cache
def _bleu(tokenize: str):
    try:
        # sentences are only counted here; effective_order silences a warning about their own scores
        return _class()(tokenize=tokenize, effective_order=True)
    except (RuntimeError, ImportError) as error:  # the dictionary of Japanese is a large package of its own
        raise ConfigError(
            f"sacrebleu cannot tokenize {tokenize!r}: {error}\nFor Japanese run: pip install 'sacrebleu[ja]'"
        ) from error


def _class():
    return library("sacrebleu.metrics").BLEU


def _quotient(sums: np.ndarray) -> float:
    return float(sums[0] / max(sums[1], 1e-9))
