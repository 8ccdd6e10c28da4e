"""What the outputs of sound say before they have learnt anything: the mean mel, and letters as often as they come.

Without it the first steps find this out, and codes may collapse meanwhile: on the trial's data, at the same rate, 81
equally frequent codes were 2 after 30 steps with output biases that learnt 50 times faster, and 124 with these. One run
each; long runs are another matter.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from input_pipeline.clip_files import load_sound, text_of
from input_pipeline.jsonl import JsonLines
from input_pipeline.speech_batch import utf8_labels
from input_pipeline.speech_mel import MEL_16K, MEL_24K, speech_mel
from omni_jax.models import speech_tokenizer

RECORDINGS = 200  # of each file, enough for a mean
BLANKS = 0.7  # share of the 50 places a second that say no letter
_RARE = 1e-4  # how often a letter comes that never came


def output_biases(data: Path) -> dict[str, np.ndarray]:
    """Paths of parameters, and what they begin as.

    Raises:
        OmniError: the lines or a recording cannot be read.
    """
    heard, said = (_some(JsonLines(data / name)) for name in ("transcribed.jsonl", "recordings.jsonl"))
    mel = mean_mel(speech_mel(load_sound(line, data, 16_000), MEL_16K) for line in heard)
    return {
        "speech_tokenizer/mel_decoder/conv_out/bias": mel - np.float32(speech_tokenizer.MEAN_LOG_MEL),
        "speech_tokenizer/text_head/bias": letter_logits([utf8_labels(text_of(line)) for line in heard], labels=257),
        # the flow's mean velocity: noise has none
        "dit/output/bias": mean_mel(speech_mel(load_sound(line, data, 24_000), MEL_24K) for line in said),
    }


def mean_mel(mels: Iterable[Float[np.ndarray, "T M"]]) -> Float[np.ndarray, " M"]:
    return np.concatenate(list(mels)).mean(axis=0).astype(np.float32)


def letter_logits(texts: Sequence[Sequence[int]], *, labels: int) -> Float[np.ndarray, " V"]:
    """Logits by which each label comes as often as in the texts, beside the blank's own."""
    counts = Counter(label for text in texts for label in text)
    total = sum(counts.values())
    shares = np.array([counts[label] / total for label in range(1, labels)]) + _RARE
    found = speech_tokenizer.BLANK_LOGIT + np.log(shares * (1 - BLANKS) / BLANKS)
    return np.concatenate([[0], found]).astype(np.float32)


def _some(lines: JsonLines) -> list[Mapping[str, Any]]:
    """Lines from all over a file."""
    places = np.unique(np.linspace(0, len(lines) - 1, RECORDINGS).astype(int))
    return [lines.value(int(place)) for place in places]
