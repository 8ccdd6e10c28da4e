"""`omni-jax export`: back into the form that PyTorch loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.cli.writing import Target, tell, write_watched


@dataclass(frozen=True)
class ExportArgs:
    """Turn a JAX checkpoint into the published form (config.json and safetensors), which transformers loads.

    A checkpoint that was imported and not trained comes back bit for bit.

    example:
      omni-jax export --from omni-3b --to Qwen2.5-Omni-3B-mine
    """

    source: Annotated[Path, arg(name="from", metavar="DIR")]
    """The JAX checkpoint."""
    target: OmitArgPrefixes[Target]


def run(args: ExportArgs) -> int:
    imported_checkpoint(args.source)
    console.setup_jax()
    from omni_jax.interop.export_checkpoint import export_checkpoint

    tensors, written = write_watched("export", export_checkpoint, args.target, args.source)
    tell(args.target, f"Exported {tensors} tensors", {"tensors": tensors}, written)
    return console.OK
