"""The scripts as programs: what the command line says, and how an error ends them."""

import sys
from dataclasses import dataclass

import pytest

from examples.omni_tiny.program import run_main
from omni_jax.errors import DataError


@dataclass(frozen=True)
class Args:
    steps: int = 1


def test_the_command_line_is_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--steps", "3"])
    given = []
    run_main(given.append, Args)
    assert given == [Args(3)]


def test_an_error_of_ours_is_one_line_and_any_other_is_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])

    def fail(args: Args) -> None:
        raise DataError("no such file.")

    with pytest.raises(SystemExit, match="^error: no such file.$"):
        run_main(fail, Args)
    with pytest.raises(ZeroDivisionError):
        run_main(lambda args: 1 // 0, Args)
