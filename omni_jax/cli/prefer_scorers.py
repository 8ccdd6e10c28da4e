"""Recognisers that hear spoken answers for `omni-jax prefer`: the model's own ears, or a function of the user's."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni_jax.errors import ConfigError, MediaError
from omni_jax.sampling.options import SamplingOptions
from omni_jax.training.pauses import TimedWord
from omni_jax.training.transcripts import ASR_PROMPTS, ASR_SYSTEM, ASR_TOKENS, Language

RATE = 24_000


@dataclass(frozen=True)
class Heard:
    """What a recogniser made of a recording; words with their times (s) where it tells them."""

    text: str
    words: tuple[TimedWord, ...] | None = None


Scorer = Callable[[Sequence[np.ndarray], Sequence[Language]], list[Heard]]


def thinker_scorer(sampler: Any) -> Scorer:
    """The model's own ears, asked as in the published evaluation."""

    def score(waveforms: Sequence[np.ndarray], languages: Sequence[Language]) -> list[Heard]:
        requests, places = [], []
        for place, (waveform, language) in enumerate(zip(waveforms, languages)):
            content = [{"type": "audio", "audio": (waveform, RATE)}, {"type": "text", "text": ASR_PROMPTS[language]}]
            messages = [{"role": "system", "content": ASR_SYSTEM}, {"role": "user", "content": content}]
            try:
                requests.append(sampler.prepare(messages))
            except MediaError:  # too short to be heard
                continue
            places.append(place)
        texts = [""] * len(waveforms)
        answers = sampler.generate(requests, SamplingOptions(max_new_tokens=ASR_TOKENS)) if requests else []
        for place, answer in zip(places, answers):
            texts[place] = answer.text
        return [Heard(text) for text in texts]

    return score


def own_scorer(name: str) -> Scorer:
    """A user's recogniser, "module:function": (waveform float32 [W], sampling rate) -> text, or a list of (word, start,
    end) in seconds. Modules of the current folder are found, too.

    Raises:
        ConfigError: there is no such function; later, it fails or gives something else.
    """
    module, _, attribute = name.partition(":")
    try:
        sys.path.insert(0, os.getcwd())
        try:
            function = getattr(importlib.import_module(module), attribute)
        finally:
            sys.path.remove(os.getcwd())
    except Exception as error:  # whatever a module does while it is imported
        raise ConfigError(
            f"--scorer {name!r} cannot be imported ({type(error).__name__}: {error}). "
            "Give thinker, or the name of a function as package.module:function."
        ) from error

    def one(waveform: np.ndarray) -> Heard:
        try:
            found = function(waveform, RATE)
        except Exception as error:
            raise ConfigError(f"--scorer {name}: failed on a recording: {type(error).__name__}: {error}") from error
        if isinstance(found, str):
            return Heard(found)
        try:
            words = tuple((str(word), float(start), float(end)) for word, start, end in found)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"--scorer {name}: expected a text or a list of (word, start, end), found {found!r:.80}."
            ) from error
        return Heard(" ".join(word for word, *_ in words), words)

    return lambda waveforms, languages: [one(waveform) for waveform in waveforms]
