"""Makes small real media files for tests, with PyAV and PIL.

Every frame of a film carries its own number (`frame_number` reads it back after lossy coding), and the sound is a tone
that starts at a known time, so that tests can tell which frames were taken and whether sound and picture agree.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

AUDIO_CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus", "m4a": "aac"}
VIDEO_CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "mkv": "libx264", "avi": "mpeg4"}
SOUND_CODECS = {"mp4": "aac", "webm": "libopus", "mkv": "flac", "avi": "libmp3lame"}


def tone(seconds: float, rate: int, *, hertz: float = 440.0, starts_at: float = 0.0, level: float = 0.5) -> np.ndarray:
    """A sine, float32 [seconds * rate], silent before `starts_at`."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * time) * (time >= starts_at)).astype(np.float32)


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Smooth colours with some detail, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 20) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(3, 20)) for _ in range(3)]
    noise = rng.normal(0, 8, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def numbered_frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame that holds `number` as ten black or white stripes, least significant bit at the left."""
    bits = (number >> np.arange(10)) & 1
    row = np.repeat(bits, -(-width // 10))[:width] * 255
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8).copy()


def frame_number(frame: np.ndarray) -> int:
    """The number that `numbered_frame` wrote."""
    stripe = -(-frame.shape[1] // 10)
    centres = np.minimum(np.arange(10) * stripe + stripe // 2, frame.shape[1] - 1)
    bits = frame[frame.shape[0] // 2, centres].mean(-1) > 127
    return int((bits << np.arange(10)).sum())


def write_audio(path: Path, samples: np.ndarray, rate: int) -> Path:
    """Sound file of the kind that the suffix names; samples float32 [W] or [W, 2]."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        channels = samples.shape[1] if samples.ndim == 2 else 1
        codec = AUDIO_CODECS[path.suffix[1:]]
        stream = container.add_stream(
            codec, rate=48000 if codec == "libopus" else rate, layout="stereo" if channels == 2 else "mono"
        )
        _encode_sound(container, stream, samples, rate)
    return path


def write_film(
    path: Path,
    frames: list[np.ndarray],
    *,
    fps: int = 10,
    times: list[float] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 48000,
    sound_start: float = 0.0,
    turn: int = 0,
    live: bool = False,
) -> Path:
    """Film of the kind that the suffix names.

    `times` (s) gives it a variable frame rate, `turn` a display rotation; a `live` mkv or webm states no duration.
    """
    kind = path.suffix[1:]
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as container:
        height, width = frames[0].shape[:2]
        video = container.add_stream(VIDEO_CODECS[kind], rate=fps)
        even = height % 2 == 0 and width % 2 == 0
        video.width, video.height, video.pix_fmt = width, height, "yuv420p" if even else "yuv444p"
        if kind == "webm":
            video.options = {"crf": "20", "cpu-used": "8", "deadline": "realtime", "lag-in-frames": "0"}
        elif kind in ("mp4", "mkv"):
            video.options = {"crf": "16", "preset": "ultrafast"}
        if times is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        if turn:
            video.set_display_rotation(turn)
        audio = None
        if sound is not None:
            audio = container.add_stream(SOUND_CODECS[kind], rate=sound_rate, layout="mono")
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            _encode_sound(container, audio, sound, sound_rate, start=sound_start)
    return path


def _encode_sound(container, stream, samples: np.ndarray, rate: int, *, start: float = 0.0) -> None:
    channels = samples.shape[1] if samples.ndim == 2 else 1
    layout = "stereo" if channels == 2 else "mono"
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=stream.codec_context.rate)
    block = 960
    for first in range(0, len(samples), block):
        piece = np.ascontiguousarray(samples[first : first + block].reshape(1, -1), np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = first + round(start * rate)
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    for converted in resampler.resample(None):
        container.mux(stream.encode(converted))
    container.mux(stream.encode(None))


def write_image(path: Path, array: np.ndarray, **options) -> Path:
    """Picture file of the kind that the suffix names, from uint8 [H, W, 3] or [H, W, 4]."""
    Image.fromarray(array).save(path, **options)
    return path
