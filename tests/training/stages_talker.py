"""Every stage of the Talker, one after the other, in a process of its own; see `stages.py`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.training_batch import RowShape
from tests.training.stages import Line, asked, codes, few_sizes, line, shrunk, train, write_lines

SPOKEN, TEXT = RowShape(tokens=256, audio_blocks=3, patches=64, speech=512), RowShape(tokens=128, speech=256)
PAIRED = RowShape(tokens=128, speech=256, pairs=4)
COUNT = 8  # codes of an answer
VOICES = ("Chelsie", "Ethan")


def drawn(seed: int, count: int = COUNT) -> list[int]:
    return np.random.default_rng(seed).integers(0, 128, count).tolist()


def of_every_medium() -> list[Line]:
    prompts = [
        asked("cat.png", "What is it?"),
        asked("drum.wav", "What is it?"),
        asked("loud.mp4", "What is it?", use_audio=True),
        asked(None, "Who are you?"),
    ]
    words = ("A cat.", "A drum.", "She runs.", "A small model, and what I say is longer than what you hear.")
    given = enumerate(zip(prompts, words))
    return [line(prompt, text, voice="Chelsie", codes=drawn(seed)) for seed, (prompt, text) in given]


def in_both_voices() -> list[Line]:
    said = ("Who are you?", "A small model."), ("Where?", "Here.")
    pairs = [(text, voice) for text in said for voice in VOICES]
    given = enumerate(pairs, start=10)
    return [line(asked(None, text[0]), text[1], voice=voice, codes=drawn(n)) for n, (text, voice) in given]


def preferences() -> list[Line]:
    questions = ("Who are you?", "Where?", "Why?")
    return [
        line(asked(None, question), "So it is.", voice="Ethan", chosen=drawn(20 + n), rejected=drawn(30 + n, 6))
        for n, question in enumerate(questions)
    ]


def stages() -> dict[str, Any]:
    return {
        "talker_icl": shrunk("talker_icl", steps=40, learning_rate=5e-3, shape=SPOKEN, rows=1),
        "talker_dpo": shrunk("talker_dpo", steps=16, learning_rate=1e-3, shape=PAIRED, rows=1),
        "talker_speaker": shrunk("talker_speaker", steps=80, learning_rate=5e-3, shape=TEXT, rows=1),
    }


def with_references(checkpoint: str) -> None:
    """The pairs with their log-probabilities under the policy that training begins with."""
    from input_pipeline.example_context import ExampleContext, speech_codes
    from input_pipeline.tokenizer import Tokenizer
    from omni_jax.config_json import read_config, read_processor_config
    from omni_jax.sampling.voices import load_speakers
    from omni_jax.training.reference import write_references

    write_lines(Path("data/pairs.jsonl"), preferences())
    model = read_config(checkpoint)
    voices = {name: each.token_id for name, each in load_speakers(checkpoint, model).items()}
    tokenizer, processor = Tokenizer.load(checkpoint), read_processor_config(checkpoint)
    context = ExampleContext(tokenizer, model, processor, voices=voices, num_codes=speech_codes(model))
    assert write_references(Path("data/pairs.jsonl"), Path("data/preferences.jsonl"), checkpoint, context) == 3


def main(folder: str, *names: str) -> None:
    os.chdir(folder)
    few_sizes()
    lines = {"talker_icl": of_every_medium(), "talker_speaker": in_both_voices()}
    write_lines(Path("data/spoken_conversations"), lines["talker_icl"])
    write_lines(Path("data/speakers"), lines["talker_speaker"])
    results = {}
    for name, config in stages().items():
        if names and name not in names:
            continue
        if name == "talker_dpo":
            with_references(config.checkpoint)
        results[name] = {"rows": train(config)}
        if name in lines:
            results[name]["wanted"] = [each["messages"][-1]["content"][1]["codes"] for each in lines[name]]
            results[name]["said"] = codes(config.output, lines[name])
        Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
