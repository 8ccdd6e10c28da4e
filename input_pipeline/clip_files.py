"""The parts of a recording's line, checked: its sound, codes, text, and voice. All errors are `OmniError`s."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from input_pipeline.media_audio import load_audio
from input_pipeline.speech_mel import MEL_24K, speech_mel
from omni_jax.errors import DataError, MediaLengthError

REFERENCE_FRAMES = 400  # of the recording that shows a voice
_SHORTEST = 0.04  # seconds; less gives no mel, and nothing to stretch
_LONGEST = 3600.0  # seconds, of recordings that are not limited otherwise: one has to fit into memory
# of numpy for a file that is missing, empty, cut short, or none of its own
_BAD_ARRAY = OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError, zipfile.BadZipFile


def load_sound(
    line: Mapping[str, Any], folder: Path, rate: int, seconds: float = _LONGEST, *, key: str = "audio"
) -> np.ndarray:
    """The sound that a line names under `key`: float32 [W] at `rate`.

    Raises:
        DataError: no path, too short for a mel, or longer than `seconds` (kind "too long"). MediaError: it cannot be
            read.
    """
    if not isinstance(line.get(key), str):
        raise DataError(f'no "{key}", the path of a sound file.', "missing media")
    try:
        sound = load_audio(str(folder / line[key]), sampling_rate=rate, max_seconds=seconds)
    except MediaLengthError as error:
        raise DataError(str(error), "too long") from error
    if len(sound) < _SHORTEST * rate:
        raise DataError(f"{line[key]} lasts {len(sound) / rate:.4f} s. Give at least {_SHORTEST} s.", "corrupt media")
    return sound


def codes_of(line: Mapping[str, Any], num_codes: int | None = None) -> np.ndarray:
    """The codes of a recording, int32 [C].

    Args:
        num_codes: how many there are; None for any number.

    Raises:
        DataError: they are none, or beyond that number.
    """
    try:
        codes = np.asarray(line.get("codes", ()))
    except ValueError:  # lists of several lengths
        codes = np.zeros(0)
    if codes.ndim != 1 or not len(codes) or codes.dtype.kind not in "iu" or codes.min() < 0:
        raise DataError('no "codes", a list of numbers from 0.')
    limit = 2**31 if num_codes is None else num_codes
    if codes.max() >= limit:
        at = int(np.argmax(codes >= limit))
        raise DataError(f"code {codes[at]} at index {at}, but the model has {limit} codes. Are these of another model?")
    return codes.astype(np.int32)


def text_of(line: Mapping[str, Any]) -> str:
    """What is said in a recording. Raises DataError where it has no text."""
    text = line.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError('no "text". Give what is said.')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair, which JSON can write
        raise DataError(f'"text" is no Unicode: {error}. Write it again.') from error
    return text.strip()


def voice_of(line: Mapping[str, Any], folder: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference mel float32 [400, 80] and vector float32 [width] of a recording's voice.

    Raises:
        OmniError: they are missing, unreadable or of another size.
    """
    speaker = line.get("speaker")
    vector = _vector(speaker) if not isinstance(speaker, str) else load_array(folder / speaker).reshape(-1)
    if len(vector) != width:
        raise DataError(f"a speaker vector of {len(vector)} numbers; the model takes {width}.")
    _check_finite(vector, "speaker vector")
    reference, bins = line.get("reference"), MEL_24K.num_mel_bins
    if isinstance(reference, str) and reference.endswith(".npy"):
        mel = load_array(folder / reference)
        if mel.ndim != 2 or mel.shape[1] != bins or not len(mel):
            raise DataError(f"a reference of shape {list(mel.shape)}. Give a mel [frames, {bins}].")
        mel = np.array(mel[:REFERENCE_FRAMES], np.float32)
        _check_finite(mel, "reference")
    else:
        mel = speech_mel(load_sound(line, folder, 24_000, key="reference"), name="The reference")
    mel = np.tile(mel, (-(-REFERENCE_FRAMES // len(mel)), 1))[:REFERENCE_FRAMES]  # a short one is repeated
    return mel, np.array(vector, np.float32)


def _vector(values: Any) -> np.ndarray:
    """A vector that stands in the line itself."""
    try:
        return np.asarray([] if values is None else values, np.float32).reshape(-1)
    except (ValueError, TypeError) as error:
        raise DataError(f'"speaker" is neither a list of numbers nor the path of one (.npy): {error}.') from error


def load_array(path: Path) -> np.ndarray:
    """Numbers of a .npy file, on disk until they are used: its head may promise more than there is memory.

    Raises:
        DataError: missing, damaged, or something else than numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Check the path.", "missing media") from error
    except _BAD_ARRAY as error:
        raise DataError(f"{path}: not an array of numbers (.npy): {error}. Write it again.", "corrupt media") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise DataError(f"{path}: not an array of numbers (.npy). Write it with numpy.save.", "corrupt media")
    return array


def _check_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"a {what} with values that are not finite.", "corrupt media")
