"""`omni-jax parity`: do our numbers equal PyTorch's?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import published_checkpoint
from omni_jax.errors import ConfigError


@dataclass(frozen=True)
class ParityArgs:
    """Compare every part with PyTorch, number by number, and print one table: a row for each component, from mel
    features to greedy tokens.

    A row that fails names the first tensor that differs, and where. The exit status is then 1. PyTorch comes with
    pip install 'omni-jax[parity]'.

    example:
      omni-jax parity --random tiny
      omni-jax parity --checkpoint Qwen2.5-Omni-7B --json
    """

    random: Literal["tiny", "small"] | None = None
    """Make a random PyTorch model of this size, import it and compare (tiny, unless --checkpoint is given)."""
    checkpoint: Annotated[Path | None, arg(metavar="DIR")] = None
    """Compare on this published folder (config.json and safetensors), a decoder layer in memory at a time."""
    seed: int = 0
    """Of the random weights, and of the pictures, sounds and films that are made for the comparison."""
    json: bool = False
    """End standard output with one JSON object: pass, rows."""


def run(args: ParityArgs) -> int:
    if args.random is not None and args.checkpoint is not None:
        raise ConfigError("--random and --checkpoint exclude each other. Give one of them.")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed {args.seed} is out of range. Give a value from 0 to {2**32 - 1}.")
    if args.checkpoint is not None:
        published_checkpoint(args.checkpoint)
    console.setup_jax()
    from omni_jax.interop.parity import checkpoint_parity, random_parity

    out = console.Output(args.json)
    with console.Progress("parity") as bar:
        if args.checkpoint is not None:
            report = checkpoint_parity(args.checkpoint, seed=args.seed, progress=bar)
        else:
            report = random_parity(args.random or "tiny", seed=args.seed, progress=bar)
    out.write(report.to_text())
    out.result(report.to_json())
    return console.OK if report.passed else console.FAILED
