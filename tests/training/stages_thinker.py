"""Every stage of the Thinker, one after the other, in a process of its own; see `stages.py`."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from input_pipeline.training_batch import RowShape
from omni_jax.training.lora import LoraConfig
from omni_jax.training.run_config import SourceConfig
from tests.training.stages import SHAPE, Line, answers, asked, few_sizes, line, shrunk, train, write_lines

PARTS = ("source/", "modality/")
WHAT = "What is it?"
PICTURES = [line(asked("cat.png", WHAT), "A cat."), line(asked("house.png", WHAT), "A red house.")]
SOUNDS = [line(asked("drum.wav", WHAT), "A drum."), line(asked("bird.wav", WHAT), "Two birds.")]
FILMS = [line(asked("calm.mp4", WHAT), "He says hello."), line(asked("loud.mp4", WHAT), "She runs.")]
WORDS = [line(asked(None, "Who are you?"), "A small model."), line(asked(None, "Where?"), "Here.")]


def renamed(lines: list[Line]) -> list[Line]:
    """The same questions with other answers: each with its words in reverse."""
    turned = []
    for each in lines:
        text = each["messages"][-1]["content"][0]["text"]
        turned.append(line(each["messages"][:-1], " ".join(reversed(text.split()))))
    return turned


SOURCES = {
    "image_text": PICTURES,
    "audio_text": SOUNDS,
    "text": [{"text": "A plain text, to be learned as it is."}, *WORDS],
    "image_video": PICTURES,
    "audio": SOUNDS,
    "video_audio": FILMS,
    "long_text": renamed(WORDS),
    "long_video_audio": renamed(FILMS),
    "long_audio": renamed(SOUNDS),
    "adapted": WORDS,
    "conversations": [*PICTURES, *SOUNDS, *renamed(FILMS), *WORDS],
}


def heard(lines: list[Line]) -> list[Line]:
    """With films that say themselves that they are heard, for runs that do not hear all of them."""
    text = json.dumps(lines).replace('.mp4"', '.mp4", "use_audio": true')
    return json.loads(text)


def stages() -> dict[str, Any]:
    adapted = shrunk("sft", steps=30, learning_rate=1e-2, shape=RowShape(tokens=256), rows=1, freeze=())
    return {
        "pretrain1_adapters": shrunk("pretrain1_adapters", steps=16, learning_rate=1e-2),
        "pretrain1_encoders": shrunk("pretrain1_encoders", steps=16, learning_rate=4e-3),
        # two micro-batches, as the configuration says, decoded by a process of their own
        "pretrain2": shrunk(
            "pretrain2", steps=40, learning_rate=4e-3, rows=1, shape=replace(SHAPE, audio_blocks=2), workers=1
        ),
        # one micro-batch in place of four: convolutions within a loop are slow on CPU
        "pretrain3": shrunk("pretrain3", steps=40, learning_rate=4e-3, accumulate=1),
        "sft": shrunk("sft", steps=28, learning_rate=4e-3),
        "lora": replace(
            adapted,
            output="runs/lora",
            lora=LoraConfig(("^thinker/",), rank=8),
            data=replace(adapted.data, sources=(SourceConfig("data/adapted"),)),
        ),
    }


def main(folder: str, *names: str) -> None:
    os.chdir(folder)
    few_sizes()
    for name, lines in SOURCES.items():
        write_lines(Path("data", name), heard(lines) if name == "conversations" else lines)
    results = {}
    for name, config in stages().items():
        if names and name not in names:
            continue
        rows = train(config)
        files = [Path(source.path).name for source in config.data.sources]
        questions = [each for file in files for each in SOURCES[file] if "messages" in each]
        results[name] = {
            "losses": [row["loss"] for row in rows],
            "reported": {part: value for row in rows[-5:] for part, value in row.items() if part.startswith(PARTS)},
            "wanted": [each["messages"][-1]["content"][0]["text"] for each in questions],
            "answers": [] if name.startswith("pretrain1") else answers(config.output, questions),
        }
        Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
