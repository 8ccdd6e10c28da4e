"""The scripts of this example as programs: `python -m examples.omni_tiny.NAME`."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from omni_jax.errors import OmniError

Arguments = TypeVar("Arguments")


def run_main(main: Callable[[Arguments], None], arguments: type[Arguments]) -> None:
    """Calls `main` with what the command line says. An error of ours is told in one line, and the status is 1."""
    try:
        main(tyro.cli(arguments))
    except OmniError as error:
        sys.exit(f"error: {error}")
