"""The stages of configs/ that learn from recordings, in a process of its own; see `stages.py`.

The codes and their sound are those of `omni-jax speech-pairs`; text is read from a simple voice.
"""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import soundfile

from omni_jax.config import DiscriminatorConfig
from omni_jax.presets import speech_tokenizer_preset
from tests.speech_data import linked_checkpoint, read_lines
from tests.training.spoken_sounds import voice
from tests.training.stages import Line, shrunk, train, write_lines

STAGES = ("speech_tokenizer_inversion", "speech_tokenizer_scratch", "token2wav", "vocoder")
JUDGES = DiscriminatorConfig(
    periods=(2, 3), period_channels=(4, 8), resolutions=((512, 120, 480),), resolution_channels=4
)
PAIRS = 3  # clips: enough to be told apart
SPOKEN = ((1.0, "oh"), (0.7, "ja!"))


def lay_out(folder: Path, imported: Path, pairs: Path) -> None:
    """A checkpoint for each route, and `data/` as the configurations name it.

    The tokenizer from scratch begins with the audio encoder, and is as large.
    """
    for route, layers in (("inversion", 3), ("scratch", 2)):
        tokenizer = replace(speech_tokenizer_preset("tiny", route), encoder_layers=layers)
        sizes = {"speech_tokenizer_config": plain(tokenizer), "discriminator_config": plain(JUDGES)}
        linked_checkpoint(imported, folder / "checkpoints" / route, **sizes)
    (folder / "checkpoints" / "qwen2.5-omni-7b").symlink_to("inversion")
    data = folder / "data"
    data.mkdir()
    for name in ("sound", "voices"):
        (data / name).symlink_to(pairs / name)
    for name in ("made_speech", "voiced_codes"):
        write_lines(data / f"{name}.jsonl", read_lines(pairs / "clips.jsonl")[:PAIRS])
    lines: list[Line] = []
    for number, (seconds, text) in enumerate(SPOKEN):
        soundfile.write(data / f"{number}.wav", voice(seconds, 24000, seed=number), 24000)
        lines.append({"audio": f"{number}.wav", "text": text})
    for name in ("transcribed", "recordings"):
        write_lines(data / f"{name}.jsonl", lines)


def plain(config: Any) -> dict[str, Any]:
    """As config.json has it."""
    return {key: value for key, value in json.loads(json.dumps(asdict(config))).items() if key != "source"}


def stages(pairs: int = PAIRS) -> dict[str, Any]:
    tokenizer = dict(learning_rate=4e-3, remat="none")
    inversion = shrunk("speech_tokenizer_inversion", steps=100, rows=pairs, **tokenizer)
    # a random encoder has not learnt to hear: from it, codes are learnt more slowly
    inversion = replace(inversion, stage=replace(inversion.stage, from_audio_encoder=False))
    scratch = shrunk("speech_tokenizer_scratch", steps=40, **tokenizer)
    vocoder = shrunk("vocoder", steps=12, learning_rate=3e-3)
    configs = {
        "speech_tokenizer_inversion": inversion,
        "speech_tokenizer_scratch": replace(scratch, checkpoint="checkpoints/scratch"),
        "token2wav": shrunk("token2wav", steps=14, learning_rate=3e-3, rows=pairs, remat="none"),
        "vocoder": replace(vocoder, stage=replace(vocoder.stage, segment=12)),
    }
    short = {name: 1.0 if name == "vocoder" else 2.0 for name in configs}
    return {
        name: replace(config, data=replace(config.data, clip_seconds=short[name], augment=False))
        for name, config in configs.items()
    }


def encoded(output: str, data: str, target: str) -> Any:
    """What `omni-jax speech-codes` and `speech-report` say with the model of a run."""
    from omni_jax.cli.main import main as omni

    model = ["--checkpoint", f"{output}/model"]
    assert omni(["speech-codes", *model, "--data", data, "--to", target]) == 0
    return [line["codes"] for line in read_lines(Path(target))]


def main(folder: str, *names: str) -> None:
    import time

    os.chdir(folder)
    results = {}
    for name, config in stages().items():
        if names and name not in names:
            continue
        started = time.process_time()
        results[name] = {"rows": train(config)}
        if name.startswith("speech_tokenizer"):
            results[name]["codes"] = encoded(config.output, config.data.sources[0].path, f"data/{name}.jsonl")
        print(name, time.process_time() - started, file=sys.stderr)
        Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
