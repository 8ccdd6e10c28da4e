"""Changes of a recording that leave what is said as it is, for training the speech tokenizer.

Every function takes a mono waveform float32 [W] and gives one of the same length, in which everything happens when it
did before: codes and text stay true. All chance comes from the `numpy.random.Generator` that is given, so that a seed
gives the same sound everywhere.
"""

from dataclasses import dataclass

import librosa
import numpy as np
import soxr
from jaxtyping import Float

Waveform = Float[np.ndarray, " W"]


@dataclass(frozen=True)
class Augmentation:
    """How often, and within which bounds, each change is made. Bounds are (lowest, highest); draws are uniform.

    room: seconds in which an echo falls by 60 dB.
    noise: signal-to-noise ratio in dB.
    gain: dB.
    bandwidth: highest frequency in Hz that a channel lets through.
    companding: probability that a channel also rounds to 8 bits as telephones do.
    """

    room_probability: float = 0.5
    room: tuple[float, float] = (0.1, 0.6)
    noise_probability: float = 0.5
    noise: tuple[float, float] = (5.0, 40.0)
    channel_probability: float = 0.3
    bandwidth: tuple[float, float] = (3400.0, 7600.0)
    companding: float = 0.5
    gain_probability: float = 1.0
    gain: tuple[float, float] = (-12.0, 6.0)


def augment(waveform: Waveform, rate: int, rng: np.random.Generator, settings: Augmentation | None = None) -> Waveform:
    """Room, noise, channel and gain, in the order in which they happen to a recording.

    Each change has a generator of its own, so that settings of one do not alter the others.
    """
    s = settings or Augmentation()
    room, noise, channel, level = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=4))
    if room.random() < s.room_probability:
        waveform = reverberate(waveform, rate, room, room.uniform(*s.room))
    if noise.random() < s.noise_probability:
        waveform = add_noise(waveform, noise, noise.uniform(*s.noise))
    if channel.random() < s.channel_probability:
        waveform = limit_band(waveform, rate, channel.uniform(*s.bandwidth))
        if channel.random() < s.companding:
            waveform = compand(waveform)
    if level.random() < s.gain_probability:
        waveform = waveform * np.float32(10 ** (level.uniform(*s.gain) / 20))
    return waveform


def add_noise(waveform: Waveform, rng: np.random.Generator, ratio: float) -> Waveform:
    """Coloured noise, `ratio` dB below the waveform; its spectrum falls by 0 to 6 dB an octave (white to brown)."""
    spectrum = np.fft.rfft(rng.normal(size=len(waveform)))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    noise = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1), n=len(waveform))
    power = np.mean(np.square(waveform, dtype=np.float64)) / max(np.mean(np.square(noise)), 1e-12)
    return (waveform + noise * np.sqrt(power * 10 ** (-ratio / 10))).astype(np.float32)


def room_response(rate: int, rng: np.random.Generator, seconds: float) -> Waveform:
    """Impulse response of a room: the direct sound at once, then noise that falls by 60 dB within `seconds`.

    Its energy is 1: a room makes nothing louder. (The simplest model of late reverberation: Moorer, 1979.)
    """
    time = np.arange(1, max(2, round(seconds * rate))) / rate
    tail = rng.normal(size=len(time)) * 10 ** (-3 * time / seconds)
    tail *= np.sqrt(10 ** (rng.uniform(-15, 0) / 10) / np.sum(np.square(tail)))  # reverberant to direct energy
    response = np.concatenate([[1.0], tail])
    return (response / np.linalg.norm(response)).astype(np.float32)


def reverberate(waveform: Waveform, rate: int, rng: np.random.Generator, seconds: float) -> Waveform:
    """The waveform as it sounds in a room; the echo after its end is cut off."""
    response = room_response(rate, rng, seconds)
    size = len(waveform) + len(response) - 1
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)
    return wet[: len(waveform)].astype(np.float32)


def limit_band(waveform: Waveform, rate: int, highest: float) -> Waveform:
    """Only what lies below `highest` Hz, by way of a lower sampling rate."""
    lower = min(2 * highest, rate)
    back = soxr.resample(soxr.resample(waveform, rate, lower), lower, rate)
    return _of_length(back, len(waveform))


def compand(waveform: Waveform) -> Waveform:
    """Rounded to 8 bits on the logarithmic scale of telephones (mu-law, ITU-T G.711)."""
    codes = librosa.mu_compress(np.clip(waveform, -1, 1), mu=255, quantize=True)  # -128 … 128, one too many
    return librosa.mu_expand(np.minimum(codes, 127), mu=255).astype(np.float32)


def change_speaker(waveform: Waveform, rate: int, factor: float) -> Waveform:
    """Another voice says the same at the same pace: pitch and formants times `factor` (0.8 to 1.25 sound human).

    The waveform is played faster or slower by resampling; a phase vocoder gives it its duration back.
    """
    played = soxr.resample(waveform, rate * factor, rate)
    return _of_length(librosa.effects.time_stretch(played, rate=len(played) / len(waveform)), len(waveform))


def random_speaker(waveform: Waveform, rate: int, rng: np.random.Generator, most: float = 1.25) -> Waveform:
    """`change_speaker` by a factor between 1 / most and most, up as likely as down."""
    return change_speaker(waveform, rate, float(most ** rng.uniform(-1, 1)))


def _of_length(waveform: np.ndarray, length: int) -> Waveform:
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32, copy=False)
