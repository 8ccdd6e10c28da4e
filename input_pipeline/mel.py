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
    frames, log_power = _log_power(waveform, cfg, name)
    peak = log_power.max() if maximum is None else np.float32(maximum)
    features = np.maximum(log_power[:frames], peak - np.float32(_RANGE))
    features += 4.0
    features *= 0.25
    return np.ascontiguousarray(features.T)


def log_mel_maximum(waveform: np.ndarray, cfg: ProcessorConfig, *, name: str = "audio") -> float:
    """The clip maximum (log10 of mel power, at least -10) that `log_mel` would use for this waveform."""
    return float(_log_power(waveform, cfg, name)[1].max())


def num_mel_frames(samples: int, cfg: ProcessorConfig) -> int:
    """Valid mel frames of a clip of `samples` samples."""
    return -(-samples // cfg.hop_length)


def _log_power(waveform: np.ndarray, cfg: ProcessorConfig, name: str) -> tuple[int, np.ndarray]:
    """-> number of valid frames, and log10 mel power float32 [all frames that touch a sample, num_mel_bins].

    A frame past the last sample still sees the end of the clip through its window and counts for the maximum. All
    later frames of the padded clip are silent: log10(1e-10), which no maximum is below anyway.
    """
    waveform = _checked(waveform, cfg, name)
    hop, half = cfg.hop_length, cfg.n_fft // 2
    limit = cfg.max_audio_seconds * cfg.sampling_rate
    valid = num_mel_frames(len(waveform), cfg)
    total = min(valid + -(-half // hop), limit // hop)

    # Frame t sees samples [t*hop - half, t*hop + half). The padded clip is mirrored at both of its ends; the right
    # one (at `limit`) is in sight only of clips that nearly fill it.
    length = (total - 1) * hop + cfg.n_fft
    padded = np.zeros(max(length, half + len(waveform)), np.float32)
    padded[half : half + len(waveform)] = waveform
    padded[:half] = padded[half + 1 : 2 * half + 1][::-1]
    beyond = length - half - limit
    if beyond > 0:
        padded[half + limit : length] = padded[half + limit - 1 - beyond : half + limit - 1][::-1]

    windows = np.lib.stride_tricks.sliding_window_view(padded, cfg.n_fft)[: length - cfg.n_fft + 1 : hop]
    window, filters = _hann(cfg.n_fft), _filters(cfg.sampling_rate, cfg.n_fft, cfg.num_mel_bins)
    mel = np.empty((total, cfg.num_mel_bins), np.float32)
    for start in range(0, total, _BLOCK):
        spectrum = np.fft.rfft(windows[start : start + _BLOCK] * window)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        np.matmul(power, filters, out=mel[start : start + _BLOCK])
    return valid, np.log10(np.maximum(mel, _FLOOR, out=mel), out=mel)


def _checked(waveform: np.ndarray, cfg: ProcessorConfig, name: str) -> np.ndarray:
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or waveform.dtype.kind != "f":
        raise MediaError(
            f"{name}: shape {waveform.shape} of {waveform.dtype} is not a waveform. Give float32 [samples]; "
            "load_audio makes one."
        )
    seconds = len(waveform) / cfg.sampling_rate
    if seconds > cfg.max_audio_seconds:
        raise MediaError(
            f"{name}: {seconds:.1f} s of sound is over the limit of {cfg.max_audio_seconds} s for one clip. Cut it "
            f"into clips of at most {cfg.max_audio_seconds} s."
        )
    if len(waveform) == 0:
        raise MediaError(f"{name}: the sound has no samples (length 0 s). Give a clip with sound in it.")
    if num_mel_frames(len(waveform), cfg) <= 2:
        raise MediaError(
            f"{name}: {len(waveform)} samples ({seconds * 1000:.0f} ms) are too short for one audio token. Give more "
            f"than {2 * cfg.hop_length} samples, or append silence."
        )
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name}: the sound holds NaN or infinite samples. Clean or export it again.")
    return waveform.astype(np.float32, copy=False)


@lru_cache(maxsize=4)
def _hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window, float32 [n_fft]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


@lru_cache(maxsize=4)
def _filters(sampling_rate: int, n_fft: int, num_mel_bins: int) -> np.ndarray:
    """Slaney mel filter bank up to 8 kHz, float32 [n_fft // 2 + 1, num_mel_bins]."""
    from librosa.filters import mel  # slow to import, and not needed for text

    return np.ascontiguousarray(mel(sr=sampling_rate, n_fft=n_fft, n_mels=num_mel_bins, fmax=8000.0).T)
