"""Sound for tests, written to wav files and read back: a simple voice, and a decoder whose codes are known."""

from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from input_pipeline.media_audio import load_audio
from tests.input_pipeline.media_files import write_audio

VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # formants, Hz
TONES = 16


def voice(seconds: float, rate: int, *, seed: int = 0, pitch: float = 120.0) -> np.ndarray:
    """A new vowel every 0.1 s, some of them whispered, float32 [seconds * rate] (source and filter, Fant 1960)."""
    rng = np.random.default_rng(seed)
    piece, pieces, phase = rate // 10, [], 0.0
    for _ in range(-(-round(seconds * rate) // piece)):
        phases = phase + np.cumsum(np.full(piece, pitch * rng.uniform(0.9, 1.1) / rate))
        source = np.diff(np.floor(phases), prepend=np.floor(phase)) + 0.01 * rng.normal(size=piece)
        if rng.random() < 0.2:
            source = 0.1 * rng.normal(size=piece)
        phase = phases[-1]
        for formant in VOWELS[rng.integers(len(VOWELS))]:
            radius = np.exp(-np.pi * 90 / rate)
            angle = 2 * np.pi * formant / rate
            source = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], source)
        pieces.append(source / (np.abs(source).max() + 1e-9) * rng.uniform(0.2, 0.7))
    return np.concatenate(pieces)[: round(seconds * rate)].astype(np.float32)


def recorded(folder: Path, name: str, samples: np.ndarray, rate: int) -> np.ndarray:
    """The samples by way of a 16-bit wav file, at the same rate."""
    return load_audio(write_audio(folder / f"{name}.wav", samples, rate), sampling_rate=rate)


def sound_of_codes(codes: np.ndarray, rate: int = 16000, *, seed: int = 0, noise: float = 0.003) -> np.ndarray:
    """A decoder that anyone could invert: each of `TONES` codes is 20 ms of a tone of its own, with a little noise."""
    hertz = 300 * (4000 / 300) ** (np.asarray(codes) / (TONES - 1))
    phase = np.cumsum(np.repeat(hertz, rate // 50) / rate)
    hiss = noise * np.random.default_rng(seed).normal(size=len(phase))
    return (0.3 * np.sin(2 * np.pi * phase) + hiss).astype(np.float32)
