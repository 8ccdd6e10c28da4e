"""A picture, a recording and a film with sound, drawn and synthesised on the spot and encoded as real files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

_SOUND_RATE = 24000
_FPS = 25
_BOUNCES = (0.5, 1.5, 2.5, 3.5)  # s, when the ball of the film meets the ground


def write_picture(path: Path) -> Path:
    """A house under the sun, as the suffix of `path` says."""
    image = Image.new("RGB", (336, 252), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 190, 336, 252), fill="forestgreen")
    draw.ellipse((260, 22, 306, 68), fill="gold")
    draw.rectangle((90, 112, 210, 202), fill="firebrick")
    draw.polygon(((79, 112), (150, 60), (221, 112)), fill="saddlebrown")
    draw.rectangle((135, 154, 165, 202), fill="beige")
    image.save(path)
    return path


def write_recording(path: Path) -> Path:
    """Four bell notes in 3 s, as FLAC."""
    sound = sum(bell(hertz, 3.0, start=0.6 * number) for number, hertz in enumerate((523.3, 659.3, 784.0, 1046.5)))
    with av.open(str(path), "w") as container:
        _encode_sound(container, container.add_stream("flac", rate=_SOUND_RATE, layout="mono"), sound)
    return path


def write_film(path: Path, *, seconds: float = 4.0) -> Path:
    """A ball that bounces, with a note at each bounce: H.264 and AAC."""
    width, height = 320, 240
    sound = sum(bell(440.0, seconds, start=bounce) for bounce in _BOUNCES)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast", "crf": "20"})
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=_SOUND_RATE, layout="mono")
        for number in range(round(seconds * _FPS)):
            frame = av.VideoFrame.from_ndarray(_ball(number / _FPS, width, height), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        _encode_sound(container, audio, sound)
    return path


def bell(hertz: float, seconds: float, *, start: float) -> np.ndarray:
    """A note that is struck at `start` (s) and dies away: float32 [seconds * rate], within -0.25..0.25."""
    time = np.arange(round(seconds * _SOUND_RATE)) / _SOUND_RATE - start
    wave = np.sin(2 * np.pi * hertz * time) + 0.3 * np.sin(4 * np.pi * hertz * time)
    return np.where(time < 0, 0.0, 0.19 * wave * np.exp(-5 * np.maximum(time, 0))).astype(np.float32)


def _ball(time: float, width: int, height: int) -> np.ndarray:
    """The film's picture at `time` (s), uint8 [H, W, 3]; each bounce takes a second."""
    image = Image.new("RGB", (width, height), "lightyellow")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 200, width, height), fill="dimgray")
    phase = (time - _BOUNCES[0]) % 1.0
    x, y = 40 + 60 * time, 175 - 4 * 140 * phase * (1 - phase)
    draw.ellipse((x - 25, y - 25, x + 25, y + 25), fill="crimson")
    return np.asarray(image)


def _encode_sound(container: av.container.OutputContainer, stream: av.AudioStream, sound: np.ndarray) -> None:
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=_SOUND_RATE)
    block = 1024
    for first in range(0, len(sound), block):
        frame = av.AudioFrame.from_ndarray(sound[None, first : first + block], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = _SOUND_RATE, first, Fraction(1, _SOUND_RATE)
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    for converted in resampler.resample(None):
        container.mux(stream.encode(converted))
    container.mux(stream.encode(None))
