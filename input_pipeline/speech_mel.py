"""The log mel of speech that the DiT is to make, the vocoder to read and the speech tokenizer to restore."""

from functools import lru_cache

import librosa
import numpy as np
from jaxtyping import Float

from omni_jax.config import SpeechMelConfig
from omni_jax.errors import MediaError

MEL_24K = SpeechMelConfig()
MEL_16K = SpeechMelConfig(sampling_rate=16000, n_fft=1024, hop_length=160, win_length=640)


def speech_mel(
    waveform: Float[np.ndarray, " W"], config: SpeechMelConfig = MEL_24K, *, name: str = "The recording"
) -> Float[np.ndarray, "T M"]:
    """Natural-log mel float32 [W // hop_length, bins], 100 frames a second. See `SpeechMelConfig`.

    Args:
        waveform: mono, at the rate of `config`, in [-1, 1].
        name: for errors.

    Raises:
        MediaError: too short for one window (38 ms), or not finite.
    """
    waveform = np.asarray(waveform, np.float32)
    count = len(waveform) // config.hop_length
    waveform = waveform[: count * config.hop_length]
    left = (config.n_fft - config.hop_length) // 2
    if len(waveform) <= left + 1:
        seconds = len(waveform) / config.sampling_rate
        raise MediaError(f"{name} lasts {seconds:.3f} s, less than one window of its mel. Give at least 0.04 s.")
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name} holds values that are not finite. Record it again.")
    padded = np.pad(waveform, (left, config.n_fft - config.hop_length - left), mode="reflect")
    spectrum = librosa.stft(
        padded, n_fft=config.n_fft, hop_length=config.hop_length, win_length=config.win_length, center=False
    )
    energies = _bank(config) @ np.abs(spectrum) * config.scale
    return np.log(np.maximum(energies, config.floor)).T.astype(np.float32)


@lru_cache(maxsize=4)
def _bank(config: SpeechMelConfig) -> np.ndarray:
    """Slaney mel filters, float32 [bins, n_fft // 2 + 1]: they cost more than the transform of a short clip."""
    return librosa.filters.mel(
        sr=config.sampling_rate, n_fft=config.n_fft, n_mels=config.num_mel_bins, fmax=config.fmax
    )
