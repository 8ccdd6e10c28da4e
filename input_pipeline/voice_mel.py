"""Mel of a reference recording, as the DiT's speaker encoder hears a voice.

The published voices come with such a mel ready made (`ref_mel`, 400 frames) and no public code that made it. The
settings here are those of a sibling of this model family (Qwen3-TTS, `speech_vq`): that they are the same is inferred
from shape and rate, not proved.
"""

import librosa
import numpy as np
from jaxtyping import Float

from omni_jax.errors import MediaError

RATE, FRAMES_PER_SECOND, LONGEST = 16_000, 100, 4.0  # Hz, Hz, s
_SHORTEST = 0.5  # s
_FLOOR = 1e-5


def voice_mel(waveform: Float[np.ndarray, " W"], bins: int = 80, *, name: str = "The recording") -> np.ndarray:
    """Natural-log mel float32 [frames, bins] of the first 4 s of a recording.

    Args:
        waveform: mono, 16 kHz, in [-1, 1].
        name: for errors.

    Raises:
        MediaError: shorter than half a second, silent, or not finite.
    """
    waveform = np.asarray(waveform, np.float32)[: round(LONGEST * RATE)]
    if len(waveform) < _SHORTEST * RATE:
        seconds = len(waveform) / RATE
        raise MediaError(f"{name} lasts {seconds:.2f} s. Give at least {_SHORTEST} s of one voice, best 4 s.")
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name} holds values that are not finite. Record it again.")
    if np.abs(waveform).max() < 1e-4:
        raise MediaError(f"{name} is silent. Give a recording of one voice.")
    hop, width = RATE // FRAMES_PER_SECOND, 640
    padded = np.pad(waveform, (1024 - hop) // 2, mode="reflect")  # frames lie in the middle of their windows
    spectrum = librosa.stft(padded, n_fft=1024, hop_length=hop, win_length=width, center=False)
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=bins, fmin=0, fmax=RATE / 2)
    return np.log(np.maximum(filters @ np.abs(spectrum), _FLOOR)).T.astype(np.float32)
