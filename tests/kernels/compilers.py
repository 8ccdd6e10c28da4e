"""Runs a script that compiles ahead of time for a chip that is not here, in a process of its own.

The compilers are Python packages that must not be in the environment itself, where JAX would look for the chips:
they lie in {sys.prefix}/compilers, put there with `pip install --no-deps --target` (see the CI's set-up).
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(sys.prefix) / "compilers"


@functools.cache
def compiled(script: str, package: str, *arguments: str) -> dict:
    """What the script prints as the last line of its output, a JSON object; skips where the compiler is missing."""
    if not (FOLDER / package).exists() and importlib.util.find_spec(package) is None:
        message = f"The compiler package {package} is missing: install it into {FOLDER}."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    # the settings of this process's JAX (precision, cache of compiled programs) are not those of the programs
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"PYTHONPATH": f"{FOLDER}:{ROOT}", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
