"""Conversations and real media files for tests of training data."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import soundfile

from input_pipeline.example_context import ExampleContext, speech_codes
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.training_batch import Example, RowShape
from omni_jax.config import ProcessorConfig
from omni_jax.presets import preset
from tests.input_pipeline import tiny_tokenizer
from tests.input_pipeline.media_files import numbered_frame, picture, tone, write_film, write_image

CONFIG = preset("tiny")
AREA = 28 * 28
PROCESSOR = ProcessorConfig(
    image_min_pixels=AREA, image_max_pixels=64 * AREA, video_min_pixels=4 * AREA, video_max_pixels=16 * AREA
)
ROOM = RowShape(tokens=4096, audio_blocks=64, patches=16384, speech=4096, pairs=1)
VOICES = {"Chelsie": 1110, "Ethan": 1111}


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(tiny_tokenizer.write(Path(folder)))


def context(**options: Any) -> ExampleContext:
    return ExampleContext(tokenizer(), CONFIG, PROCESSOR, voices=VOICES, num_codes=speech_codes(CONFIG), **options)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **options: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **options}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def said(text: str, **speech: Any) -> dict[str, Any]:
    return assistant([{"type": "text", "text": text}, {"type": "speech", "voice": "Chelsie", **speech}])


def learned(example: Example) -> str:
    """The tokens that count for the loss, as text."""
    return tokenizer().decode(example.token_ids[example.weights > 0], skip_special_tokens=False)


def write_media(folder: Path) -> Path:
    """cat.png, beep.wav, loud.mp4 (with sound), silent.mp4 and broken.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / "cat.png", picture(60, 90))  # 2 x 3 cells, 24 patches
    soundfile.write(folder / "beep.wav", tone(2.5, 16000), 16000)  # 250 mel frames, 2 blocks, 62 tokens
    frames = [numbered_frame(i, 56, 56) for i in range(20)]
    write_film(folder / "loud.mp4", frames, fps=10, sound=tone(1.9, 48000))
    write_film(folder / "silent.mp4", frames, fps=10)
    (folder / "broken.png").write_bytes((folder / "cat.png").read_bytes()[:200])
    return folder


def write_lines(file: Path, lines: list[Any]) -> Path:
    """JSON lines; strings are written as they are."""
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    file.write_text("\n".join(text) + "\n", encoding="utf-8")
    return file


def mixed_lines() -> list[Any]:
    """Five lines that can be used, of every kind, and three that cannot: numbers 3, 5 and 7."""
    return [
        {"messages": [user("<image>What?"), assistant("A cat.")], "images": ["cat.png"]},
        {"text": "A plain text, to be learned as it is."},
        {"messages": [user("Hello")]},
        {"messages": [user("<audio>"), assistant("A beep."), user("Sure?"), assistant("Yes.")], "audios": ["beep.wav"]},
        "{not json",
        {"messages": [user("<video>What?"), assistant("Numbers.")], "videos": ["loud.mp4"]},
        {"messages": [user("<image>What?"), assistant("Nothing.")], "images": ["broken.png"]},
        {"messages": [user("Say it."), said("It.", codes=[5, 6, 7, 8])]},
    ]
