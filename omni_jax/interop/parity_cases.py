"""What parity is measured on: small media, made on the spot, encoded and decoded for real, and prompts with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from input_pipeline.request import Request, prepare
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig, ProcessorConfig

_RATE = 16000
_FILM_RATE, _FILM_FRAMES, _FILM_SIZE = 10, 24, (96, 128)  # frames a second, frames, height and width


@dataclass(frozen=True)
class MediaFiles:
    """Files of every kind that a prompt may hold."""

    picture: Path
    strip: Path  # of another size and shape than `picture`
    recording: Path
    film: Path  # with a sound track


def make_media(folder: Path, *, seed: int = 0) -> MediaFiles:
    """Writes two pictures, a recording of 3.3 s and a film of 2.4 s with sound into `folder`.

    The recording is no multiple of the audio encoder's 2 s block, and its last block holds an odd number of frames.
    Codecs are those that every FFmpeg has.
    """
    rng = np.random.default_rng(seed)
    files = MediaFiles(folder / "picture.png", folder / "strip.jpg", folder / "recording.wav", folder / "film.mp4")
    Image.fromarray(_picture(rng, 150, 200)).save(files.picture)
    Image.fromarray(_picture(rng, 70, 260)).save(files.strip, quality=95)
    with av.open(str(files.recording), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=_RATE, layout="mono")
        _encode_sound(container, stream, _speechlike(rng, 3.27))
    with av.open(str(files.film), "w") as container:
        video = container.add_stream("mpeg4", rate=_FILM_RATE)
        (video.height, video.width), video.pix_fmt = _FILM_SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=_RATE, layout="mono")
        scenery = _picture(rng, _FILM_SIZE[0], _FILM_SIZE[1] + 8 * _FILM_FRAMES)
        for index in range(_FILM_FRAMES):  # the camera pans
            view = np.ascontiguousarray(scenery[:, 8 * index : 8 * index + _FILM_SIZE[1]])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, _FILM_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        _encode_sound(container, audio, _speechlike(rng, _FILM_FRAMES / _FILM_RATE))
    return files


def conversations(media: MediaFiles) -> dict[str, list[dict[str, Any]]]:
    """One conversation for each kind of prompt, by name. Within one, pictures come before films."""
    image = {"type": "image", "image": media.picture}
    strip = {"type": "image", "image": media.strip}
    recording = {"type": "audio", "audio": media.recording}

    def film(heard: bool) -> dict[str, Any]:
        return {"type": "video", "video": media.film, "use_audio": heard}

    contents = {
        "text": ["Hello! Name three rivers, and say where the longest of them ends."],
        "image": [image, "What is in this picture?"],
        "two images": [image, "This is the first, ", strip, "and this the second. Compare them."],
        "audio": [recording, "What do you hear?"],
        "film": [film(False), "Describe the film."],
        "film with sound": [film(True), "Describe the film and its sound."],
        "mixture": [image, "and ", strip, recording, "and ", film(True), "What have they in common?"],
    }
    return {name: [{"role": "user", "content": _items(content)}] for name, content in contents.items()}


def prepare_cases(
    messages: Mapping[str, list[dict[str, Any]]],
    tokenizer: Tokenizer,
    config: OmniConfig,
    processor: ProcessorConfig,
) -> dict[str, Request]:
    """Requests of the conversations, by name."""
    return {name: prepare(each, tokenizer, config, processor) for name, each in messages.items()}


def _items(content: list[Any]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]


def _picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colours with some grain, uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(4, 25) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(4, 25)) for _ in range(3)]
    grain = rng.normal(0, 8, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


def _speechlike(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A gliding tone with overtones, in syllables, over faint noise: float32 [seconds * 16000]."""
    time = np.arange(round(seconds * _RATE)) / _RATE
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6))) / _RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * np.abs(np.sin(2 * np.pi * 1.9 * time))
    return (0.2 * voice + 0.003 * rng.standard_normal(len(time))).astype(np.float32)


def _encode_sound(container, stream, samples: np.ndarray) -> None:
    """Samples float32 [W] at 16 kHz into `stream`."""
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=_RATE)
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = _RATE, Fraction(1, _RATE), start
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    for converted in resampler.resample(None):
        container.mux(stream.encode(converted))
    container.mux(stream.encode(None))
