"""Speech codes and their sound for tests of the commands and of the stages that learn from them."""

import json
from pathlib import Path
from typing import Any

from omni_jax.cli.main import main

TEXTS = ("Oh, a cat.", "So why not?")
PAIRS = ("--voices", "Ethan", "Chelsie", "--samples", "1", "--batch", "1", "--shuffled-codes", "0.5", "--seed", "3")
PAIRS += ("--max-codes", "40", "--solver", "euler", "--steps", "2", "--temperature", "2")


def make_pairs(checkpoint: Path, texts: Path, folder: Path, *options: str) -> int:
    paths = ["--checkpoint", str(checkpoint), "--texts", str(texts), "--to", str(folder)]
    return main(["speech-pairs", *paths, *options])


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(file: Path, lines: list[Any]) -> Path:
    """Lines that are strings are written as they are."""
    file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return file


def linked_checkpoint(source: Path, target: Path, **settings: Any) -> Path:
    """A checkpoint folder with other settings in its config.json."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    content = json.loads((source / "config.json").read_text()) | settings
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(content))
    return target


def add_tokenizer(source: Path, target: Path) -> Path:
    """A checkpoint with a tiny speech tokenizer that has learnt nothing."""
    import jax

    from omni_jax.config_json import read_config
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.training.checkpoints_model import save_model
    from omni_jax.training.run_stages import SpeechTokenizerStage, fresh, model_of

    stage = SpeechTokenizerStage(size="tiny", from_audio_encoder=False)
    model = model_of(stage, read_config(source))
    params = {"speech_tokenizer": fresh(stage, "speech_tokenizer", model, lambda name: {}, jax.random.key(0))}
    save_model(target, params, model, source=source, mesh=make_mesh(fsdp=1), about={})
    return target
