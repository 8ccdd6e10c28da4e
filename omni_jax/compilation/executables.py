"""Compiles a lowered program, or finds what the same compiler said of the same program before.

JAX's own cache of executables cannot be read back without a device, so what a report needs is kept instead: the sizes
and the optimised text. The key is the lowered program, the target and the compiler's version.
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from omni_jax.compilation.targets import CompileTarget
from omni_jax.compilation.toolchain import CACHE_VARIABLE


@dataclass(frozen=True)
class Executable:
    """What is known of a compiled program. Sizes are bytes of one device, -1 and no text where it was refused.

    seconds: that compiling took, when it was compiled. refused: why there is no program, for lack of memory.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    seconds: float
    text: str = ""
    refused: str = ""
    cached: bool = False


def compile_program(lowered: jax.stages.Lowered, target: CompileTarget) -> Executable:
    """Compiles, unless $OMNI_JAX_COMPILE_CACHE names a folder that knows the answer.

    Raises:
        jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    file = Path(folder) / f"{_key(lowered, target)}.json.gz" if folder else None
    if file is not None and file.is_file():
        with contextlib.suppress(OSError, ValueError, TypeError, EOFError):  # a damaged file is made again
            return Executable(**json.loads(gzip.decompress(file.read_bytes())) | {"cached": True})
    found = _compile(lowered)
    if file is not None:
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time, nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.getpid()}")
            aside.write_bytes(gzip.compress(json.dumps(asdict(found)).encode()))
            aside.replace(file)  # whole or not at all
    return found


def _compile(lowered: jax.stages.Lowered) -> Executable:
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Executable(-1, -1, -1, -1, time.perf_counter() - started, refused=str(error))
    memory = compiled.memory_analysis()
    return Executable(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        time.perf_counter() - started,
        compiled.as_text(),
    )


def _key(lowered: jax.stages.Lowered, target: CompileTarget) -> str:
    compiler = "jax-cuda13-plugin" if target.platform == "gpu" else "libtpu"
    versions = [importlib.metadata.version("jaxlib")]
    try:
        versions.append(importlib.metadata.version(compiler))
    except importlib.metadata.PackageNotFoundError:
        versions.append("unknown")
    flags = [os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    parts = [lowered.as_text(), target.name, target.topology, *versions, *flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
