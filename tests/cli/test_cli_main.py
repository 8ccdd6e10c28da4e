"""The command itself: help, exit statuses, what it imports, and how it fails."""

import os
import re
import subprocess
import sys
import types

import pytest

from omni_jax.cli import console
from omni_jax.cli import main as cli
from omni_jax.errors import MediaError

HEAVY = ("jax", "flax", "torch", "transformers", "av", "orbax", "numpy")


@pytest.fixture
def command(monkeypatch):
    """Makes `omni-jax chat ...` call what the test gives."""

    def install(run):
        module = types.ModuleType("stand_in")
        module.run, module.Nothing = run, type("Nothing", (), {})
        monkeypatch.setitem(sys.modules, "stand_in", module)
        monkeypatch.setitem(cli.COMMANDS, "chat", cli.Command("stand_in", "Nothing", ""))
        monkeypatch.setattr(cli, "_parse", lambda arguments, name, rest: None)

    return install


def raises(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("argv", [["--help"], ["chat", "--help"], ["import", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(argv):
    code = (
        "import sys; from omni_jax.cli.main import main; status = main(sys.argv[1:]); "
        f"print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stderr.strip() == ""
    assert "usage: omni-jax" in run.stdout


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_with_an_example(name, capsys):
    assert cli.main([name, "--help"]) == 0
    example = capsys.readouterr().out.lower().split("example", 1)[1]
    assert re.search(rf"^ *omni-jax {name}\b", example, re.MULTILINE)


def test_the_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["chat", "--nonsense"], ["chat"], ["import", "--from", "x"]])
def test_bad_usage_is_status_2(argv, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err and "Traceback" not in captured.err


def test_an_unknown_command_names_the_known_ones(capsys):
    assert cli.main(["imprt"]) == 2
    assert "'imprt'" in (err := capsys.readouterr().err) and "import" in err


def test_a_command_gives_its_status(command):
    command(lambda args: 1)
    assert cli.main(["chat"]) == 1


def test_errors_of_the_user_are_a_message_and_status_2(command, capsys):
    command(raises(MediaError("a.wav is empty.\nGive another.")))
    assert cli.main(["chat"]) == 2
    assert capsys.readouterr().err == "MediaError: a.wav is empty.\n            Give another.\n"


def test_interruption_is_130(command, capsys):
    command(raises(KeyboardInterrupt()))
    assert cli.main(["chat"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_defects_show_a_traceback_only_on_request(command, capsys, monkeypatch):
    monkeypatch.delenv(console.DEBUG_VARIABLE, raising=False)
    command(raises(ZeroDivisionError("oh")))
    assert cli.main(["chat"]) == 1
    assert "Traceback" not in (err := capsys.readouterr().err)
    assert "ZeroDivisionError: oh" in err and "--debug" in err
    assert cli.main(["--debug", "chat"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv(console.DEBUG_VARIABLE, "1")
    assert cli.main(["chat"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_traceback():
    """As in `omni-jax --help | true`."""
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-u", "-m", "omni_jax.cli.main", "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert run.returncode == 141
    assert run.stderr == ""


def test_a_terminal_without_the_letters_gets_the_rest():
    code = (
        "import sys; from omni_jax.cli import console, main; main.main(['--help']); console.Output(False).write('a你b')"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("a\\u4f60b\n")
