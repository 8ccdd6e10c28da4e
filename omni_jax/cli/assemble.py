"""`omni-jax assemble`: where pre-training begins, one checkpoint from three published ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from omni_jax.cli import console
from omni_jax.cli.folders import published_checkpoint
from omni_jax.cli.writing import Target, tell, write_watched


@dataclass(frozen=True)
class AssembleArgs:
    """Put a model together from a language model, a vision encoder and an audio encoder, to train it from there.

    Each is read from its own published folder (config.json and safetensors). What has no source is random: the audio
    encoder's projection, the Talker, and every part that is left out. The folder that is written is like one of
    omni-jax import.

    example:
      omni-jax assemble --language Qwen2.5-7B --vision Qwen2.5-VL-7B-Instruct --audio whisper-large-v3 --to omni-base
    """

    target: OmitArgPrefixes[Target]
    language: Annotated[Path | None, arg(metavar="DIR")] = None
    """A Qwen2.5, with its tokenizer."""
    vision: Annotated[Path | None, arg(metavar="DIR")] = None
    """A Qwen2.5-VL, whose vision encoder is taken."""
    audio: Annotated[Path | None, arg(metavar="DIR")] = None
    """A Whisper, whose encoder is taken."""
    speech_from: Annotated[Path | None, arg(metavar="DIR")] = None
    """A published Qwen2.5-Omni, whose voices and whose way from speech codes to sound are taken."""
    talker: Literal["random", "none"] = "random"
    """none: the model cannot speak."""
    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """Sizes of the Talker and of parts that are left out: qwen2.5-omni-7b or qwen2.5-omni-3b. None is the one as wide
    as the language model."""
    seed: int = 0
    """Of what is random."""


def run(args: AssembleArgs) -> int:
    given = {name: getattr(args, name) for name in ("language", "vision", "audio", "speech_from")}
    for folder in given.values():
        if folder is not None:
            published_checkpoint(folder)
    console.setup_jax()
    from omni_jax.interop.assemble import assemble_checkpoint

    options = {"talker": args.talker == "random", "preset": args.preset, "seed": args.seed, **given}
    assembled, written = write_watched("assemble", assemble_checkpoint, args.target, **options)
    out = console.Output(args.target.json)
    for name in assembled.parameters:
        out.write(f"{name:<16} {assembled.origin(name)}")
    counts = {"parameters": assembled.parameters, "random": assembled.random}
    tell(args.target, f"Assembled {sum(assembled.parameters.values()):,} parameters", counts, written)
    return console.OK
