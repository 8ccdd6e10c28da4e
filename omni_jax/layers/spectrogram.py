"""Spectrograms of waveforms on the device, differentiable: for losses, discriminators and mel inputs made there."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omni_jax.config import SpeechMelConfig

_POWER_FLOOR = 1e-12  # under the root of the power, whose slope at zero is infinite


def frames_of(waveform: Float[Array, "B W"], size: int, hop: int) -> Float[Array, "B T S"]:
    """Every `size` samples, `hop` apart, of a waveform mirrored at its ends so that T = W // hop and frame t is centred
    on the middle of samples t * hop … (t + 1) * hop.

    Slices of the waveform cut into hops, side by side: no gather, whose gradient would be a scatter.
    """
    count, hops = waveform.shape[1] // hop, -(-size // hop)
    left = (size - hop) // 2
    padded = jnp.pad(waveform[:, : count * hop], ((0, 0), (left, size - hop - left)), mode="reflect")
    padded = jnp.pad(padded, ((0, 0), (0, (count + hops - 1) * hop - padded.shape[1])))
    pieces = padded.reshape(len(waveform), -1, hop)
    return jnp.concatenate([pieces[:, i : i + count] for i in range(hops)], axis=-1)[..., :size]


def magnitudes(waveform: Float[Array, "B W"], n_fft: int, hop: int, win_length: int) -> Float[Array, "B T K"]:
    """Absolute short-time Fourier transform under a Hann window in the middle of each frame; K = n_fft / 2 + 1.

    W must exceed (n_fft - hop) / 2, because the ends are mirrored.
    """
    spectrum = jnp.fft.rfft(frames_of(waveform.astype(jnp.float32), n_fft, hop) * _window(n_fft, win_length))
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + _POWER_FLOOR)


def log_mel(waveform: Float[Array, "B W"], config: SpeechMelConfig) -> Float[Array, "B T M"]:
    """What `input_pipeline.speech_mel.speech_mel` computes on the host; T = W // hop_length."""
    from librosa.filters import mel  # slow to import

    bank = mel(sr=config.sampling_rate, n_fft=config.n_fft, n_mels=config.num_mel_bins, fmax=config.fmax).T
    spectrum = magnitudes(waveform, config.n_fft, config.hop_length, config.win_length) * config.scale
    energies = jnp.einsum("btk,km->btm", spectrum, jnp.asarray(bank), precision="highest")
    return jnp.log(jnp.maximum(energies, config.floor))


def _window(n_fft: int, win_length: int) -> np.ndarray:
    """Periodic Hann window of `win_length`, in the middle of `n_fft`."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    return np.pad(hann, (left, n_fft - win_length - left)).astype(np.float32)
