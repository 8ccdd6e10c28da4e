"""`omni-jax import`: a published PyTorch checkpoint becomes one that JAX loads."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import published_checkpoint


@dataclass(frozen=True)
class ImportArgs:
    """Turn a published checkpoint (config.json and safetensors) into one for JAX.

    Every tensor is checked; if one is missing, left over, of the wrong shape or not finite, nothing is written.

    example:
      omni-jax import --from Qwen2.5-Omni-3B --to omni-3b
    """

    source: Annotated[Path, arg(name="from", metavar="DIR")]
    """The published folder."""
    destination: Annotated[Path, arg(name="to", metavar="DIR")]
    """The folder to write."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Store all parameters so. None keeps each as it was published."""
    overwrite: bool = False
    """Replace the folder if it holds something."""
    json: bool = False
    """End standard output with one JSON object: tensors, parameters, bytes, seconds."""


def run(args: ImportArgs) -> int:
    published_checkpoint(args.source)
    console.setup_jax()
    from omni_jax.interop.import_checkpoint import import_checkpoint
    from omni_jax.interop.restore import load_checkpoint_info

    out, started, size = console.Output(args.json), time.perf_counter(), 0
    with console.Progress("import", unit="B") as bar:

        def report(done: int, total: int) -> None:
            nonlocal size
            size = total
            bar("import", done, total)

        parameters = import_checkpoint(
            args.source, args.destination, dtype=args.dtype, overwrite=args.overwrite, progress=report
        )
    seconds = time.perf_counter() - started
    tensors = len(load_checkpoint_info(args.destination).source_dtypes)
    out.write(f"Imported {tensors} tensors, {size / 1e6:.1f} MB, in {seconds:.1f} s into {args.destination}")
    out.result({"tensors": tensors, "parameters": parameters, "bytes": size, "seconds": seconds})
    return console.OK
