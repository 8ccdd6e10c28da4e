"""Recordings for tests: tones of 0.5 s as wav files, with codes, text and a voice, and the lines that tell of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.input_pipeline.media_files import tone

CODES = 25  # of each recording


def write_clips(folder: Path, count: int, *, most_code: int = 127, seconds: float = 0.5) -> list[dict[str, Any]]:
    """Writes 0.wav, 0.npy, … (24 kHz; vectors of 192 numbers) and gives their lines."""
    rng, lines = np.random.default_rng(0), []
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", tone(seconds, 24_000, hertz=200 + 50 * number, level=0.3), 24_000)
        np.save(folder / f"{number}.npy", rng.normal(size=192).astype(np.float32))
        line = {"audio": f"{number}.wav", "codes": rng.integers(0, most_code + 1, round(50 * seconds)).tolist()}
        line |= {"text": f"Tone {number}.", "reference": f"{(number + 1) % count}.wav", "speaker": f"{number}.npy"}
        lines.append(line)
    return lines


def write_lines(path: Path, lines: list[Any]) -> Path:
    """Objects become JSON as people write it, with letters of any script; texts stay as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path
