"""Sound: any track or array becomes one channel of float32 at the model's rate."""

from itertools import groupby
from pathlib import Path

import numpy as np
import soxr

from input_pipeline.media_source import (
    MediaFile,
    audio_stream,
    decode,
    finite_rate,
    media_file,
    open_container,
    video_stream,
)
from omni_jax.errors import MediaError, MediaLengthError

AudioSource = str | Path | bytes | np.ndarray | tuple[np.ndarray, int | float]

_GAP_SECONDS = 0.1  # containers round time stamps to 1 ms and encoders jitter; a longer step is a real gap


def load_audio(source: AudioSource, *, sampling_rate: int = 16000, max_seconds: float | None = None) -> np.ndarray:
    """One channel of sound as float32 [W] at `sampling_rate`; nominal range -1 to 1.

    Channels are averaged, then resampled with soxr HQ (what librosa.load does).

    Args:
        source: path, `file://` or base64 `data:` URL, or bytes of a sound file or of a film; a `(samples, rate)` pair;
            or a mono array at 16 kHz. Integer samples of 8, 16 or 32 bits are scaled to -1..1. In 2-D arrays the
            shorter axis is the channels.
        max_seconds: refuse longer sound while decoding, before it fills the memory.

    Raises:
        MediaError: missing, empty or damaged; no sound track; no samples; NaN or infinity. MediaLengthError: too long.
    """
    if isinstance(source, (np.ndarray, tuple)):
        return _from_array(source, sampling_rate, max_seconds)
    return decode_audio(media_file(source), sampling_rate, max_seconds=max_seconds)


def decode_audio(
    file: MediaFile, sampling_rate: int, *, start: float | None = None, max_seconds: float | None = None
) -> np.ndarray:
    """The first sound track of `file` as float32 [W].

    `start` is the container time (s) that becomes sample 0, so that sound and picture stay together: earlier sound is
    cut off, and silence fills up a late start and gaps inside. With None the decoded samples are simply joined.
    """
    with open_container(file) as container:
        stream = audio_stream(container)
        if stream is None:
            film = "film has" if video_stream(container) is not None else "file has"
            raise MediaError(f"{file.name}: the {film} no sound track. Add one, or give a sound file.")
        pieces = []  # (rate, mono samples)
        seconds = 0.0  # length so far
        for frame in decode(container, stream, file.name):
            samples = _mono(frame.to_ndarray(), frame.layout.nb_channels, planar=frame.format.is_planar)
            rate = frame.sample_rate
            if start is not None and frame.time is not None:
                offset = frame.time - start - seconds
                if not pieces or offset > _GAP_SECONDS:
                    _check_length(file.name, seconds + offset, max_seconds)
                    lead = round(offset * rate)
                    samples = np.pad(samples, (lead, 0)) if lead > 0 else samples[-lead:]
            if len(samples):
                pieces.append((rate, samples))
                seconds += len(samples) / rate
            _check_length(file.name, seconds, max_seconds)
    runs = [(rate, np.concatenate([s for _, s in run])) for rate, run in groupby(pieces, key=lambda piece: piece[0])]
    resampled = [_resample(samples, rate, sampling_rate) for rate, samples in runs]
    waveform = np.concatenate(resampled) if resampled else np.zeros(0, np.float32)
    return _checked(waveform, file.name)


def has_audio_track(source) -> bool:
    """Whether a film or sound file (path, bytes, data URL) has a sound track. Arrays: True for sound, False for films.

    Raises:
        MediaError: the source is missing, empty or not a media file.
    """
    if isinstance(source, (np.ndarray, tuple)):
        array = source[0] if isinstance(source, tuple) else source
        return np.ndim(array) <= 2
    with open_container(media_file(source)) as container:
        return audio_stream(container) is not None


def _from_array(source: np.ndarray | tuple, sampling_rate: int, max_seconds: float | None) -> np.ndarray:
    name = "audio array"
    if isinstance(source, tuple):
        if len(source) != 2:
            raise MediaError(f"{name}: a tuple must be (samples, rate), not {len(source)} items.")
        samples, rate = source
    else:
        samples, rate = source, 16000
    rate = finite_rate(rate, f"{name}: the sampling rate")
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise MediaError(
            f"{name}: shape {samples.shape} of {samples.dtype} is not sound. Give numbers of shape [samples] or "
            "[samples, channels]."
        )
    if samples.dtype.kind != "f" and samples.dtype.itemsize > 4:
        raise MediaError(
            f"{name}: samples of {samples.dtype} do not tell what full scale is. Convert them to the type that they "
            "were recorded in, such as int16, or to floats of -1 to 1."
        )
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if samples.size == 0:
        samples = np.zeros(0, np.float32)
    _check_length(name, len(samples) / rate, max_seconds)
    channels = samples.shape[1] if samples.ndim == 2 else 1
    mono = _mono(samples.reshape(1, -1), channels, planar=False)
    return _checked(_resample(_checked(mono, name), rate, sampling_rate), name)


def _mono(samples: np.ndarray, channels: int, *, planar: bool) -> np.ndarray:
    """PyAV's [channels, n] (planar) or [1, n*channels] (interleaved), of any sample type -> float32 [n]."""
    samples = samples if planar else samples.reshape(-1, channels).T
    kind, bits = samples.dtype.kind, samples.dtype.itemsize * 8
    if kind == "f":
        return samples.mean(axis=0, dtype=np.float32)
    middle = 2 ** (bits - 1) if kind == "u" else 0
    return ((samples.mean(axis=0, dtype=np.float64) - middle) / 2 ** (bits - 1)).astype(np.float32)


def _resample(samples: np.ndarray, rate: float, sampling_rate: int) -> np.ndarray:
    if rate == sampling_rate or len(samples) == 0:
        return samples
    return soxr.resample(samples, rate, sampling_rate, quality="HQ").astype(np.float32, copy=False)


def _check_length(name: str, seconds: float, max_seconds: float | None) -> None:
    if max_seconds is not None and seconds > max_seconds + 1e-6:
        raise MediaLengthError(
            f"{name}: the sound is longer than the limit of {max_seconds:g} s. Cut it into clips of at most "
            f"{max_seconds:g} s."
        )


def _checked(waveform: np.ndarray, name: str) -> np.ndarray:
    if len(waveform) == 0:
        raise MediaError(f"{name}: the sound has no samples (length 0 s). Give a clip with sound in it.")
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name}: the sound holds NaN or infinite samples. Clean or export it again.")
    return waveform
