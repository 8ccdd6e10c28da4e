"""Whisper-style log-mel features (architecture.md 3.1), computed only where there is sound."""

from functools import lru_cache

import numpy as np

from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError

_FLOOR = 1e-10  # power below which a bin counts as silent
_RANGE = 8.0  # decades kept below the clip's maximum
_BLOCK = 512  # frames transformed at once: small enough to stay in the cache


def log_mel(
    waveform: np.ndarray, cfg: ProcessorConfig, *, maximum: float | None = None, name: str = "audio"
) -> np.ndarray:
    """Mel features of one clip: float32 [W] at `cfg.sampling_rate` -> float32 [num_mel_bins, L], L = ceil(W / hop).

    Equal to the valid frames of the reference, which pads every clip with zeros to `cfg.max_audio_seconds` first.

    Args:
        maximum: clip maximum (log10 of mel power) to use instead of this waveform's own, for sound that arrives in
            pieces; see `log_mel_maximum`.
        name: what errors call the clip.

    Raises:
        MediaError: empty, too short for one audio token (<= 2 frames), longer than `cfg.max_audio_seconds`, not one
            dimension, or not finite.
    """
    waveform = _checked(waveform, cfg, name)
    power = log_power(waveform, 0, num_windows(len(waveform), cfg), cfg)
    peak = power.max() if maximum is None else np.float32(maximum)
    return scaled(power[: num_mel_frames(len(waveform), cfg)], peak)


def log_mel_maximum(waveform: np.ndarray, cfg: ProcessorConfig, *, name: str = "audio") -> float:
    """The clip maximum (log10 of mel power, at least -10) that `log_mel` would use for this waveform."""
    waveform = _checked(waveform, cfg, name)
    return float(log_power(waveform, 0, num_windows(len(waveform), cfg), cfg).max())


def num_mel_frames(samples: int, cfg: ProcessorConfig) -> int:
    """Valid mel frames of a clip of `samples` samples."""
    return -(-samples // cfg.hop_length)


def num_windows(samples: int, cfg: ProcessorConfig) -> int:
    """Frames whose window touches a clip of `samples` samples: the valid ones and up to two after them.

    The latter still see the end of the clip and count for its maximum. All later frames of the padded clip are silent:
    log10(1e-10), which no maximum is below anyway.
    """
    half, limit = cfg.n_fft // 2, cfg.max_audio_seconds * cfg.sampling_rate
    return min(num_mel_frames(samples, cfg) + -(-half // cfg.hop_length), limit // cfg.hop_length)


def log_power(samples: np.ndarray, first: int, frames: int, cfg: ProcessorConfig) -> np.ndarray:
    """log10 mel power of `frames` frames of a clip from frame `first` on: float32 [frames, num_mel_bins], at least -10.

    Args:
        samples: float32, all of the clip from sample max(0, first * hop - n_fft / 2) on as far as these frames see, or
            to its end, after which it is silent.
    """
    mel = np.empty((frames, cfg.num_mel_bins), np.float32)
    if not frames:
        return mel
    window, filters = _hann(cfg.n_fft), _filters(cfg.sampling_rate, cfg.n_fft, cfg.num_mel_bins)
    padded = _padded(samples, first, frames, cfg)
    windows = np.lib.stride_tricks.sliding_window_view(padded, cfg.n_fft)[:: cfg.hop_length]
    # blocks end at the same frames of a clip wherever its computation starts, so that pieces give what the whole gives
    for start in [0, *range(_BLOCK - first % _BLOCK, frames, _BLOCK)]:
        stop = min(start + _BLOCK - (first + start) % _BLOCK, frames)
        spectrum = np.fft.rfft(windows[start:stop] * window)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        np.matmul(power, filters, out=mel[start:stop])
    return np.log10(np.maximum(mel, _FLOOR, out=mel), out=mel)


def scaled(power: np.ndarray, peak: np.float32) -> np.ndarray:
    """Log power [L, bins] -> features [bins, L]: clamped 8 decades below `peak`, then (x + 4) / 4."""
    features = np.maximum(power, peak - np.float32(_RANGE))
    features += 4.0
    features *= 0.25
    return np.ascontiguousarray(features.T)


def check_samples(samples: np.ndarray, name: str) -> np.ndarray:
    """One dimension of floating-point numbers as float32 [W]; raises `MediaError` for anything else."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise MediaError(
            f"{name}: shape {samples.shape} of {samples.dtype} is not a waveform. Give float32 [samples]; "
            "load_audio makes one."
        )
    return samples.astype(np.float32, copy=False)


def check_finite(samples: np.ndarray, name: str) -> None:
    """Raises `MediaError` where samples are NaN or infinite."""
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: the sound holds NaN or infinite samples. Clean or export it again.")


def check_not_too_short(samples: int, cfg: ProcessorConfig, name: str) -> None:
    """Raises `MediaError` for a clip that gives no audio token."""
    if samples == 0:
        raise MediaError(f"{name}: the sound has no samples (length 0 s). Give a clip with sound in it.")
    if num_mel_frames(samples, cfg) <= 2:
        raise MediaError(
            f"{name}: {samples} samples ({samples / cfg.sampling_rate * 1000:.0f} ms) are too short for one audio "
            f"token. Give more than {2 * cfg.hop_length} samples, or append silence."
        )


def _padded(samples: np.ndarray, first: int, frames: int, cfg: ProcessorConfig) -> np.ndarray:
    """What the frames see: float32 [(frames - 1) * hop + n_fft].

    Frame t sees samples [t*hop - half, t*hop + half) of the clip. The clip, padded with silence to the limit, is
    mirrored at both of its ends; the far one is in sight only of clips that nearly fill it.
    """
    begin = first * cfg.hop_length - cfg.n_fft // 2
    length = (frames - 1) * cfg.hop_length + cfg.n_fft
    lead = max(-begin, 0)
    padded = np.zeros(max(length, lead + len(samples)), np.float32)
    padded[lead : lead + len(samples)] = samples
    padded[:lead] = padded[lead + 1 : 2 * lead + 1][::-1]
    end = cfg.max_audio_seconds * cfg.sampling_rate - begin
    beyond = length - end
    if beyond > 0:
        padded[end:length] = padded[end - 1 - beyond : end - 1][::-1]
    return padded[:length]


def _checked(waveform: np.ndarray, cfg: ProcessorConfig, name: str) -> np.ndarray:
    waveform = check_samples(waveform, name)
    seconds = len(waveform) / cfg.sampling_rate
    if seconds > cfg.max_audio_seconds:
        raise MediaError(
            f"{name}: {seconds:.1f} s of sound is over the limit of {cfg.max_audio_seconds} s for one clip. Cut it "
            f"into clips of at most {cfg.max_audio_seconds} s."
        )
    check_not_too_short(len(waveform), cfg, name)
    check_finite(waveform, name)
    return waveform


@lru_cache(maxsize=4)
def _hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window, float32 [n_fft]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


@lru_cache(maxsize=4)
def _filters(sampling_rate: int, n_fft: int, num_mel_bins: int) -> np.ndarray:
    """Slaney mel filter bank up to 8 kHz, float32 [n_fft // 2 + 1, num_mel_bins]."""
    from librosa.filters import mel  # slow to import, and not needed for text

    return np.ascontiguousarray(mel(sr=sampling_rate, n_fft=n_fft, n_mels=num_mel_bins, fmax=8000.0).T)
