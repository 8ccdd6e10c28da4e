"""`omni-jax import`: a published PyTorch checkpoint becomes one that JAX loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from omni_jax.cli import console
from omni_jax.cli.folders import published_checkpoint
from omni_jax.cli.writing import Target, tell, write_watched


@dataclass(frozen=True)
class ImportArgs:
    """Turn a published checkpoint (config.json and safetensors) into one for JAX.

    Every tensor is checked; if one is missing, left over, of the wrong shape or not finite, nothing is written.

    example:
      omni-jax import --from Qwen2.5-Omni-3B --to omni-3b
    """

    source: Annotated[Path, arg(name="from", metavar="DIR")]
    """The published folder."""
    target: OmitArgPrefixes[Target]


def run(args: ImportArgs) -> int:
    published_checkpoint(args.source)
    console.setup_jax()
    from omni_jax.interop.import_checkpoint import import_checkpoint
    from omni_jax.interop.restore import load_checkpoint_info

    parameters, written = write_watched("import", import_checkpoint, args.target, args.source)
    tensors = len(load_checkpoint_info(args.target.destination).source_dtypes)
    tell(args.target, f"Imported {tensors} tensors", {"tensors": tensors, "parameters": parameters}, written)
    return console.OK
