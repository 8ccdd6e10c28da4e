"""`omni-jax voices`: who can speak."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint


@dataclass(frozen=True)
class VoicesArgs:
    """List the voices of a checkpoint.

    example:
      omni-jax voices --checkpoint omni-3b
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import wrote."""
    json: bool = False
    """End standard output with one JSON object: voices, default."""


def run(args: VoicesArgs) -> int:
    from omni_jax.config_json import read_config
    from omni_jax.sampling.voices import choose_speaker, load_speakers

    folder = imported_checkpoint(args.checkpoint)
    speakers = load_speakers(folder, read_config(folder))
    default = choose_speaker(speakers).name
    out = console.Output(args.json)
    for name, speaker in speakers.items():
        seconds = len(speaker.ref_mel) / 100
        out.write(f"{name}{'  (default)' if name == default else ''}  reference of {seconds:g} s")
    out.result({"voices": list(speakers), "default": default})
    return console.OK
