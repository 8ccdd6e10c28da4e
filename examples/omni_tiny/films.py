"""Films by recipe: a handwritten digit appears and moves, and something is heard. 56x56 pixels, h264 and AAC in mp4.

    {"digit": 17, "way": "left", "appears": 0.0, "sound": "sound/human/0123.flac", "at": 1.2, "seconds": 3.0, "seed": 5}

"sound" is the path of a recording, or one of `questions.SOUNDS`. With "mute" nothing is heard, with "blank" nothing is
seen; both leave tracks and lengths as they are, to tell what an answer was taken from.
"""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from examples.omni_tiny.chance import generator
from examples.omni_tiny.files import recipe_name, whole
from examples.omni_tiny.pictures import SIDE, changed_digit, paint
from omni_jax.errors import DataError

FPS, RATE = 10, 16_000
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def film_path(recipe: Mapping[str, Any]) -> str:
    """Where the film of a recipe lies, from the folder of the data."""
    name = recipe_name(recipe)
    return f"films/{name[:2]}/{name}.mp4"


def make_film(recipe: Mapping[str, Any], folder: Path, handwriting: np.ndarray) -> None:
    sound = np.zeros(round(recipe["seconds"] * RATE), np.float32)
    if not recipe.get("mute"):
        heard = sound_of(recipe["sound"], folder, recipe["seed"])
        start = round(recipe["at"] * RATE)
        heard = heard[: max(len(sound) - start, 0)]
        sound[start : start + len(heard)] = heard
    with whole(folder / film_path(recipe)) as partial:
        write_film(partial, draw_frames(recipe, handwriting), sound)


def draw_frames(recipe: Mapping[str, Any], handwriting: np.ndarray) -> np.ndarray:
    """uint8 [T, 56, 56, 3], ten a second. The digit crosses half of the picture while it is seen."""
    count = round(recipe["seconds"] * FPS)
    first, step = round(recipe["appears"] * FPS), np.array(_STEPS[recipe["way"]])
    place = generator(recipe["seed"], "film")
    scale, start = float(place.uniform(1.1, 1.4)), place.uniform(-6, 6, 2)
    frames = []
    for frame in range(count):
        rng = generator(recipe["seed"], "drawing")  # the same in each frame: only its place changes
        coverage = np.zeros((SIDE, SIDE), np.float32)
        if frame >= first and not recipe.get("blank"):
            done = (frame - first) / max(count - 1 - first, 1) - 0.5
            centre = SIDE / 2 + start * (step == 0) + 28 * done * step
            coverage = changed_digit(handwriting[recipe["digit"]], rng, scale, tuple(centre), (SIDE, SIDE))
        frames.append(paint(coverage, recipe["ink"], recipe["ground"], generator(recipe["seed"], "paint")))
    return np.stack(frames)


def sound_of(sound: str, folder: Path, seed: int) -> np.ndarray:
    """What a film's recipe names, float32 [W] at 16 kHz."""
    if sound.endswith(".flac"):
        if not (folder / sound).is_file():
            raise DataError(
                f"{folder / sound} is missing. Make the groups 'digits' and 'human' before films.", "missing media"
            )
        heard, rate = soundfile.read(folder / sound, dtype="float32")
        assert rate == RATE, sound
        return heard
    rng = generator(seed, "sound")
    time = np.arange(round(float(rng.uniform(0.4, 0.7)) * RATE)) / RATE
    base = float(rng.uniform(400, 900))
    if sound == "beep":
        wave = np.sin(2 * np.pi * base * time)
    elif sound == "siren":
        wave = np.sin(2 * np.pi * (base * time + 60 * np.sin(2 * np.pi * 4 * time)))
    elif sound == "drum":
        beat = time % 0.2
        wave = np.sin(2 * np.pi * base / 6 * beat) * np.exp(-beat / 0.04) * 2
    else:
        assert sound == "noise", sound
        wave = rng.normal(0, 0.5, len(time))
    return (0.4 * wave * np.minimum(1, 20 * np.minimum(time, time[-1] - time))).astype(np.float32)


def write_film(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "16"})
        picture.width, picture.height, picture.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        picture.codec_context.thread_count = 1  # several threads would each make another file
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        audio.bit_rate = 48_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for start in range(0, len(sound), 1024):
            samples = np.ascontiguousarray(sound[None, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
