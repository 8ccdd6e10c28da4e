"""The compilers of other chips, in a process of their own.

libtpu and the CUDA plug-in need not be installed beside JAX, where every command would load them (and the CUDA plug-in
complains where there is no GPU): they may lie in the folder `compilers` of the Python environment, which only the
compiling process looks into.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.compilation.targets import CompileTarget
from omni_jax.errors import OmniError

# Folder in which `executables.py` keeps what it learnt of programs.
CACHE_VARIABLE = "OMNI_JAX_COMPILE_CACHE"
# What has to be importable, and what to install for it.
_NEEDS = {
    "tpu": (("libtpu",), ("libtpu==0.0.42.*",)),
    "gpu": (
        ("jax_plugins.xla_cuda13", "nvidia"),
        ("jax-cuda13-plugin=={jax}", "jax-cuda13-pjrt=={jax}", "nvidia-cuda-nvcc", "nvidia-nvvm"),
    ),
}
_MARK = "OMNI-JAX-REPORT "  # before the worker's answer: compilers print whatever they like


class CompilerError(OmniError):
    """A compiler is missing or failed."""


def compilers_folder() -> Path:
    """Where compilers may lie apart; it need not exist."""
    return Path(sys.prefix) / "compilers"


def check_compiler(target: CompileTarget) -> None:
    """Raises CompilerError, with the command that installs it, if there is no compiler for `target`."""
    modules, packages = _NEEDS[target.platform]
    if all(_found(module) for module in modules):
        return
    jax = importlib.metadata.version("jax")
    names = " ".join(f"'{package.format(jax=jax)}'" for package in packages)
    raise CompilerError(
        f"The compiler for {target.name} is not installed. Install it where only `omni-jax compile` sees it:\n"
        f"{sys.executable} -m pip install --no-deps --target {compilers_folder()} {names}"
    )


def _found(module: str) -> bool:
    if compilers_folder().joinpath(*module.split(".")).exists():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def environment(target: CompileTarget) -> dict[str, str]:
    """Variables of the compiling process."""
    env = dict(os.environ)
    root = str(Path(__file__).parents[2])
    paths = [str(compilers_folder())] if compilers_folder().exists() else []
    env["PYTHONPATH"] = os.pathsep.join([*paths, root, *filter(None, [env.get("PYTHONPATH")])])
    env.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_MIN_LOG_LEVEL="2")
    env["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # libtpu otherwise locks others out, as if it held a TPU
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache = _cache_folder(env)
    if cache is not None:
        env.setdefault(CACHE_VARIABLE, str(cache))
    # settings of tests, of a real TPU beside us, and of a cache that cannot be read without a device
    for name in ("JAX_DEFAULT_MATMUL_PRECISION", "TPU_LIBRARY_PATH", "JAX_COMPILATION_CACHE_DIR"):
        env.pop(name, None)
    env["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"  # any will do: the topology is given by name
    return env


def _cache_folder(env: Mapping[str, str]) -> Path | None:
    """Where reports of compiled programs are kept: beside the compiled programs themselves, see `console.setup_jax`."""
    if env.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(env["JAX_COMPILATION_CACHE_DIR"]) / "ahead_of_time"
    wanted = env.get("OMNI_JAX_CACHE", "")
    if wanted.lower() == "off":
        return None
    return (Path(wanted) if wanted else Path.home() / ".cache" / "omni_jax") / "ahead_of_time"


def run_worker(request: Mapping[str, Any], target: CompileTarget, *, timeout: float | None = None) -> dict[str, Any]:
    """Compiles in a process of its own; see `omni_jax/compilation/worker.py` for request and answer.

    Raises:
        CompilerError: the compiler is missing, or broke; the text ends with its last words.
        OmniError: what the worker found wrong with the request.
    """
    check_compiler(target)
    done = subprocess.run(
        [sys.executable, "-m", "omni_jax.compilation.worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment(target),
        timeout=timeout,
    )
    answers = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not answers:
        words = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise CompilerError(f"The compiler for {target.name} broke (exit status {done.returncode}). It said:\n{words}")
    answer = json.loads(answers[-1])
    if "error" in answer:
        raise _error(answer["error"], answer["message"])
    return answer


def answer(value: Mapping[str, Any]) -> None:
    """Prints the worker's answer."""
    print(_MARK + json.dumps(value), flush=True)


def _error(name: str, message: str) -> OmniError:
    """The error that the worker met, as if it had been met here."""
    from omni_jax import errors

    kind = getattr(errors, name, CompilerError)
    return kind(message) if isinstance(kind, type) and issubclass(kind, OmniError) else CompilerError(message)
