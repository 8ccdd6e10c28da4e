"""The shared parts of the command line: the bar, JSON output, the compilation cache."""

import io
import json
import os
import subprocess
import sys
import time

import jax
import pytest

from omni_jax.cli import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_is_no_bar(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with console.Progress("work", patience=0.0) as bar:
        bar("work", 1, 2)
        time.sleep(0.05)
    assert stream.getvalue() == ""


def test_short_work_has_no_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with console.Progress("work", patience=60.0) as bar:
        bar("work", 1, 2)
    assert stream.getvalue() == ""


def test_long_work_has_a_bar_that_is_gone_at_the_end(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with console.Progress("opening", patience=0.0) as bar:
        for stage, done, total in [("opening", 0, 0), ("prefill", 3, 8)]:
            bar(stage, done, total)
            deadline = time.time() + 20
            while stage not in stream.getvalue() and time.time() < deadline:
                time.sleep(0.01)
    shown = stream.getvalue()
    assert "opening" in shown and "prefill" in shown and "3/8" in shown
    assert shown.split("\r")[-1].strip() == ""


def test_json_alone_goes_to_standard_output(capsys):
    out = console.Output(as_json=True)
    out.write("words")
    out.result({"text": "é"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"text": "é"}
    assert captured.err == "words\n"


def test_words_go_to_standard_output_without_json(capsys):
    out = console.Output(as_json=False)
    out.write("words")
    out.result({"text": "é"})
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("words\n", "")


@pytest.fixture
def no_cache():
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_compiled_programs_are_kept_at_home(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(console.CACHE_VARIABLE, raising=False)
    console.setup_jax()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "omni_jax" / "xla")


def test_or_where_the_user_says(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv(console.CACHE_VARIABLE, str(tmp_path / "a" / "b"))
    console.setup_jax()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")
    monkeypatch.setenv(console.CACHE_VARIABLE, str(tmp_path / "other"))
    console.setup_jax()  # what JAX was told before stays
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")


def test_or_not_at_all(no_cache, monkeypatch):
    monkeypatch.setenv(console.CACHE_VARIABLE, "off")
    console.setup_jax()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_written_is_not_fatal(no_cache, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(console.CACHE_VARIABLE, str(tmp_path / "file" / "xla"))
    console.setup_jax()
    assert jax.config.jax_compilation_cache_dir is None
    assert "cannot be written" in capsys.readouterr().err


_LEVEL = "--xla_backend_optimization_level"
_FLAGS = """
import os, sys
from omni_jax.cli import console
if "imported" in sys.argv:
    import jax
console.compile_quickly()
print(os.environ.get("XLA_FLAGS", ""))
"""


@pytest.mark.parametrize(
    ("platforms", "flags", "words", "expected"),
    [
        ("cpu", "", (), f"{_LEVEL}=1"),
        ("CPU", "--xla_dump_to=there", (), f"--xla_dump_to=there {_LEVEL}=1"),
        ("cpu", f"{_LEVEL}=3", (), f"{_LEVEL}=3"),
        ("tpu,cpu", "", (), ""),
        ("cpu", "", ("imported",), ""),  # too late: JAX reads its flags once
    ],
)
def test_programs_compile_quickly_on_a_cpu_alone(platforms, flags, words, expected):
    environment = os.environ | {"JAX_PLATFORMS": platforms, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", _FLAGS, *words]
    assert (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip() == expected
    )


@pytest.mark.parametrize(
    ("modules", "plugins", "expected"),
    [((), (), True), (("libtpu",), (), False), (("jax_plugins",), (), False), ((), ("cuda",), False)],
)
def test_without_a_word_of_the_user_plugins_tell_whether_there_is_more_than_a_cpu(
    modules, plugins, expected, monkeypatch
):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(console.importlib.metadata, "entry_points", lambda group: plugins)
    assert console._only_cpu() == expected
