"""Spoken answers in training data: an assistant's words said aloud, as speech codes.

{"type": "speech", "voice": "Chelsie", "codes": [17, 1032, ...]}
{"type": "speech", "voice": "Chelsie", "chosen": [...], "rejected": [...], "reference": [-120.5, -119.0]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from input_pipeline.example_context import ExampleContext
from input_pipeline.training_batch import SpeechExample
from omni_jax.errors import DataError

# "reference_by" is read by `omni_jax.training.reference_policy`
_KEYS = ("type", "voice", "codes", "chosen", "rejected", "reference", "reference_by")


@dataclass(frozen=True, eq=False)
class Spoken:
    """One answer, or the chosen and the rejected; summed log-probabilities of both under the reference policy."""

    answers: tuple[SpeechExample, ...]
    reference: tuple[float, float] | None = None


def take_speech(
    message: Mapping[str, Any], where: str, context: ExampleContext
) -> tuple[Mapping[str, Any], Spoken | None]:
    """An assistant's message without its speech, and the speech (None where the context leaves it out).

    Raises:
        DataError: no words, an unknown voice, codes out of range, or a model that does not speak.
    """
    content = message["content"]
    items = [] if isinstance(content, str) else [item for item in content if item.get("type") == "speech"]
    written = content if isinstance(content, str) else [item for item in content if item.get("type") != "speech"]
    if not any(item if isinstance(item, str) else item.get("text") for item in written):
        raise DataError(f"{where}: the assistant's turn has no words.")
    if not items:
        return message, None
    if not context.with_speech:
        return {**message, "content": written}, None
    if len(items) > 1:
        raise DataError(f"{where}: {len(items)} items 'speech'. An answer is said once.")
    return {**message, "content": written}, _spoken(items[0], f"{where}, speech", context)


def _spoken(item: Mapping[str, Any], where: str, context: ExampleContext) -> Spoken:
    if not context.num_codes:
        raise DataError(f"{where}: this model has no Talker. Leave speech out, or take another checkpoint.")
    if "audio" in item:
        raise DataError(
            f"{where}: a recorded answer has to become codes first; omni-jax speech-codes --help tells how."
        )
    unknown = [key for key in item if key not in _KEYS]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}. It takes voice, and codes or chosen and rejected.")
    keys = [key for key in ("codes", "chosen", "rejected") if item.get(key) is not None]
    if keys not in (["codes"], ["chosen", "rejected"]):
        raise DataError(f"{where}: give either 'codes', or 'chosen' and 'rejected'; found {keys or 'none of them'}.")
    voice = item.get("voice")
    if not isinstance(voice, str) or voice not in context.voices:
        raise DataError(f"{where}: there is no voice {voice!r}. Voices: {', '.join(context.voices) or 'none'}.")
    token = int(context.voices[voice])
    answers = tuple(SpeechExample(token, _codes(item[key], f"{where}, {key}", context.num_codes)) for key in keys)
    return Spoken(answers, _reference(item.get("reference"), where, len(answers)))


def _codes(value: Any, where: str, num_codes: int) -> np.ndarray:
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)) or not len(value):
        raise DataError(f"{where}: must be a list of codes or the name of a .npy file, found {value!r:.40}.")
    codes = np.asarray(value) if all(type(code) is int for code in value) or isinstance(value, np.ndarray) else None
    if codes is None or codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise DataError(f"{where}: codes must be whole numbers.")
    if codes.min() < 0 or codes.max() >= num_codes:
        place = int(np.flatnonzero((codes < 0) | (codes >= num_codes))[0])
        raise DataError(f"{where}: code {codes[place]} at index {place} is outside 0 … {num_codes - 1}.")
    return codes.astype(np.int32)


def _reference(value: Any, where: str, answers: int) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, Sequence) and all(type(x) in (int, float) and isfinite(x) for x in value)
    if answers != 2 or not numbers or len(value) != 2:
        raise DataError(f"{where}: 'reference' holds two finite numbers, for chosen and rejected.")
    return float(value[0]), float(value[1])
