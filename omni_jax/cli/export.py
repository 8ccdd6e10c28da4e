"""`omni-jax export`: back into the form that PyTorch loads."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint


@dataclass(frozen=True)
class ExportArgs:
    """Turn a JAX checkpoint into the published form (config.json and safetensors), which transformers loads.

    A checkpoint that was imported and not trained comes back bit for bit.

    example:
      omni-jax export --from omni-3b --to Qwen2.5-Omni-3B-mine
    """

    source: Annotated[Path, arg(name="from", metavar="DIR")]
    """The JAX checkpoint."""
    destination: Annotated[Path, arg(name="to", metavar="DIR")]
    """The folder to write."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of every tensor. None gives each the dtype that it was published with."""
    overwrite: bool = False
    """Replace the folder if it holds something."""
    json: bool = False
    """End standard output with one JSON object: tensors, bytes, seconds."""


def run(args: ExportArgs) -> int:
    imported_checkpoint(args.source)
    console.setup_jax()
    from omni_jax.interop.export_checkpoint import export_checkpoint

    out, started, size = console.Output(args.json), time.perf_counter(), 0
    with console.Progress("export", unit="B") as bar:

        def report(done: int, total: int) -> None:
            nonlocal size
            size = total
            bar("export", done, total)

        tensors = export_checkpoint(
            args.source, args.destination, dtype=args.dtype, overwrite=args.overwrite, progress=report
        )
    seconds = time.perf_counter() - started
    out.write(f"Exported {tensors} tensors, {size / 1e6:.1f} MB, in {seconds:.1f} s into {args.destination}")
    out.result({"tensors": tensors, "bytes": size, "seconds": seconds})
    return console.OK
