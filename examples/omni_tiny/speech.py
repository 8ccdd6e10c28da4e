"""Sound files by recipe: somebody speaks, or a human says digits; clean, or as a room and a telephone change it.

    {"voice": "pico:en-GB", "text": "Four.", "rate": 16000, "speed": 1.1, "pitch": 1.0, "warp": 0.95, "changed": 7}
    {"voice": "flite:slt", "words": ["Four.", "Seven."], "gaps": [0.2], "rate": 16000, "speed": 0.8, "changed": null}
    {"human": ["4_theo_7", "7_theo_12"], "gaps": [0.1], "rate": 16000, "changed": null}
    {"prompts": ["digits/4", "digits/7"], "gaps": [0.1], "rate": 16000}

"warp" above 1 plays faster and higher, another speaker; "changed" is the seed of noise, room, channel and loudness.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from examples.omni_tiny import voices
from examples.omni_tiny.files import recipe_name, whole
from examples.omni_tiny.packages import PROMPTS
from omni_jax.errors import DataError

_MARGIN = 0.1  # seconds of silence that are left before and after
_QUIET = 0.02  # of the loudest sample: below is silence
_PEAK = 0.5


def speech_path(recipe: Mapping[str, Any]) -> str:
    """Where the sound of a recipe lies, from the folder of the data."""
    who = recipe.get("voice", "human" if "human" in recipe else "prompts").replace(":", "_").partition("+")[0]
    return f"sound/{who}/{recipe_name(recipe)}.flac"


def make_speech(recipe: Mapping[str, Any], folder: Path, tools: Path, human: Path | None) -> None:
    """Writes the FLAC file of a recipe, 16 bits.

    Args:
        folder: of the data. tools: where Kokoro's files are. human: recordings of the spoken digits.

    Raises:
        DataError: the voice gave no sound.
    """
    if "human" in recipe:
        pieces = [_recording(human / f"{name}.wav") for name in recipe["human"]]
        sound = joined(pieces, recipe["gaps"], recipe["rate"])
    elif "prompts" in recipe:
        pieces = [_prompt(PROMPTS / f"{name}.g722") for name in recipe["prompts"]]
        sound = joined(pieces, recipe["gaps"], recipe["rate"])
    elif "words" in recipe:
        pieces = [trimmed(_spoken(recipe, word, tools), recipe["rate"]) for word in recipe["words"]]
        if not all(map(len, pieces)):  # the text would name a word more than is said
            raise DataError(f"no sound came of a word of {recipe}. Try the voice by itself.", "corrupt media")
        sound = joined([(piece, recipe["rate"]) for piece in pieces], recipe["gaps"], recipe["rate"])
    else:
        sound = _spoken(recipe, recipe["text"], tools)
    sound = trimmed(sound, recipe["rate"])
    if not len(sound):
        raise DataError(f"no sound came of {recipe}. Try the voice by itself.", "corrupt media")
    if recipe.get("changed") is not None:
        from input_pipeline.augment import augment  # takes a second to import

        sound = augment(sound, recipe["rate"], np.random.default_rng(recipe["changed"]))
    write_sound(folder / speech_path(recipe), sound, recipe["rate"])


def write_sound(path: Path, sound: np.ndarray, rate: int) -> None:
    with whole(path) as partial:
        soundfile.write(partial, np.clip(sound, -1, 1), rate, format="FLAC", subtype="PCM_16")


def at_rate(wave: voices.Wave, rate: int, warp: float = 1.0) -> np.ndarray:
    """float32 [W] at `rate`, `warp` times as fast and as high."""
    sound, given = wave
    return soxr.resample(np.asarray(sound, np.float32), given * warp, rate).astype(np.float32)


def trimmed(sound: np.ndarray, rate: int) -> np.ndarray:
    """Without the silence before and after but for a margin, at a peak of one half; empty if there is only silence."""
    level = float(np.abs(sound).max(initial=0.0))
    if level < 1e-4:
        return np.zeros(0, np.float32)
    loud = np.flatnonzero(np.abs(sound) > _QUIET * level)
    margin = round(_MARGIN * rate)
    padded = np.pad(sound[loud[0] : loud[-1] + 1], margin)
    real = sound[max(loud[0] - margin, 0) : loud[-1] + 1 + margin]  # what is there of it, and not silence instead
    start = max(margin - int(loud[0]), 0)
    padded[start : start + len(real)] = real
    return (padded * (_PEAK / level)).astype(np.float32)


def joined(pieces: list[voices.Wave], gaps: list[float], rate: int) -> np.ndarray:
    """Recordings one after the other, equally loud, with `gaps` seconds between them."""
    out = []
    for piece, gap in zip(pieces, [*gaps, 0.0], strict=True):
        sound = at_rate(piece, rate)
        level = float(np.abs(sound).max(initial=0.0))
        out += [sound * (_PEAK / max(level, 1e-3)), np.zeros(round(gap * rate), np.float32)]
    return np.concatenate(out).astype(np.float32)


def _spoken(recipe: Mapping[str, Any], text: str, tools: Path) -> np.ndarray:
    wave = voices.speak(recipe["voice"], text, tools, speed=recipe.get("speed", 1.0), pitch=recipe.get("pitch", 1.0))
    return at_rate(wave, recipe["rate"], recipe.get("warp", 1.0))


def _recording(path: Path) -> voices.Wave:
    return soundfile.read(path, dtype="float32")


def _prompt(path: Path) -> voices.Wave:
    import av

    with av.open(str(path), format="g722") as container:
        pieces = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(pieces).astype(np.float32) / 32768, 16_000
