"""What is kept of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from omni_jax.compilation.executables import compile_program
from omni_jax.compilation.measure import _told_bytes
from omni_jax.compilation.targets import parse_target
from omni_jax.compilation.toolchain import CACHE_VARIABLE, environment

TARGET = parse_target("v5e-1")


def lowered(factor: float):
    return jax.jit(lambda x: x * factor).lower(jnp.zeros(8))


def test_a_program_is_compiled_once_for_each_target(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kept"))
    first, again = (compile_program(lowered(2.0), TARGET) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.text == first.text != ""
    assert (again.arguments, again.temporary, again.seconds) == (first.arguments, first.temporary, first.seconds)
    assert not compile_program(lowered(3.0), TARGET).cached
    assert not compile_program(lowered(2.0), parse_target("v5e-4")).cached


def test_nothing_is_kept_without_a_folder(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert not any(compile_program(lowered(4.0), TARGET).cached for _ in range(2))


def test_a_folder_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "kept"))
    assert compile_program(lowered(5.0), TARGET).arguments == 32


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded hbm capacity by 768M.", 16.5),
        ("the total memory required for HLO temporaries (100.00G) exceeds available HBM (15.25G).", 100),
    ],
)
def test_the_compilers_refusal_tells_how_much_is_needed(text, size):
    assert _told_bytes(text) == size * 1024**3


def test_a_refusal_in_other_words_tells_nothing():
    assert _told_bytes("out of memory") is None


def test_the_compiling_process_keeps_away_from_devices_and_from_the_users_settings(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    env = environment(TARGET)
    assert env["JAX_PLATFORMS"] == "cpu"
    assert "JAX_DEFAULT_MATMUL_PRECISION" not in env
    assert "JAX_COMPILATION_CACHE_DIR" not in env  # executables for other chips cannot be read back


def test_reports_are_kept_where_the_user_keeps_programs(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMNI_JAX_CACHE", str(tmp_path))
    assert environment(TARGET)[CACHE_VARIABLE].startswith(str(tmp_path))
    monkeypatch.setenv("OMNI_JAX_CACHE", "off")
    assert CACHE_VARIABLE not in environment(TARGET)
