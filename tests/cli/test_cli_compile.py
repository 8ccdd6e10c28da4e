"""`omni-jax compile`: tiny workloads for real targets, and what is refused."""

import json
import os

import pytest

from omni_jax.cli import main as cli
from omni_jax.compilation.targets import parse_target
from omni_jax.compilation.toolchain import CompilerError, check_compiler

KEYS = {
    "fits", "peak_bytes", "hbm_bytes", "arguments_bytes", "temporary_bytes", "flops", "bytes_moved", "roofline_seconds",
    "bound_by", "collectives", "compile_seconds",
}  # fmt: skip


def compile_(capsys, *argv) -> tuple[int, dict, str]:
    try:
        check_compiler(parse_target("v5e-1"))
    except CompilerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    status = cli.main(["compile", "--preset", "tiny", "--context", "1024", *argv, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]), err


@pytest.mark.parametrize(
    ("workload", "programs"),
    [
        ("prefill", {"encode_audio", "prefill"}),
        ("decode", {"decode"}),
        # the vocoder's compile takes minutes, whatever its size: see test_fits_7b.py
        ("speech", {"hear", "talk", "mel_windows"}),
    ],
)
def test_a_tiny_workload_fits_one_chip(capsys, workload, programs):
    chosen = [word for name in sorted(programs) for word in ("--program", name)]
    status, report, text = compile_(capsys, "--workload", workload, "--target", "v5e-1", *chosen)
    assert status == 0
    assert report.keys() >= KEYS
    assert report["fits"]
    assert report["peak_bytes"] == report["arguments_bytes"] + report["temporary_bytes"] < report["hbm_bytes"]
    assert report["arguments_bytes"] >= report["parameters_bytes"] + report["cache_bytes"]
    assert report["roofline_seconds"] > 0 and report["bound_by"] in ("compute", "memory")
    assert report["collectives"] == {}
    assert {one["name"] for one in report["programs"]} == programs
    assert f"{workload} on v5e-1" in text and "fits" in text


def test_on_several_chips_heads_are_split_and_sums_cross_the_network(capsys):
    status, report, _ = compile_(capsys, "--workload", "decode", "--target", "v5e-4")
    assert status == 0
    assert (report["devices"], report["mesh"]) == (4, {"tensor": 4})
    assert report["collectives"]["all-reduce"] > 0
    assert (
        report["parameters_bytes"]
        < 0.5 * compile_(capsys, "--workload", "decode", "--target", "v5e-1")[1]["parameters_bytes"]
    )


def test_what_does_not_fit_is_refused_with_changes_that_would_do(capsys):
    argv = ["--preset", "qwen2.5-omni-7b", "--context", "32768", "--workload", "decode", "--target", "v5e-1"]
    status, report, text = compile_(capsys, *argv)
    assert status == 1
    assert not report["fits"]
    assert report["peak_bytes"] > report["hbm_bytes"]
    assert "v5e-4 with tensor=4 would need" in report["suggestion"]
    assert report["suggestion"] in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "tiny", "--target", "v9-8"], "no target 'v9-8'"),
        (["--preset", "tiny", "--workload", "sing"], "Workloads: prefill, decode, speech"),
        (["--preset", "huge"], "no preset 'huge'"),
        ([], "--preset"),
        (["--preset", "tiny", "--checkpoint", "here"], "either --preset"),
        (["--preset", "tiny", "--batch", "0"], "--batch 0"),
        (["--preset", "tiny", "--context", "-4"], "--context -4"),
        (["--preset", "tiny", "--memory", "0"], "--memory 0"),
        (["--preset", "tiny", "--mesh", "tensor:4"], "not of the form"),
        (["--preset", "tiny", "--mesh", "devices=4"], "no axis 'devices'"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_compiled(argv, words, capsys, monkeypatch):
    monkeypatch.setattr("omni_jax.compilation.toolchain.subprocess.run", pytest.fail)
    assert cli.main(["compile", *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--target", "v5e-4", "--mesh", "tensor=3"], "needs 3 devices, but there are 4"),
        (["--target", "v5e-8", "--mesh", "tensor=8"], "do not divide"),
        (["--target", "v5e-1", "--program", "sing"], "programs decode, not sing"),
        (["--target", "v5e-1", "--context", "40000"], "40000 is more than the largest cache"),
        (["--target", "v5e-1", "--batch", "33"], "33 requests"),
    ],
)
def test_what_the_compiling_process_finds_wrong_is_told(argv, words, capsys):
    check = ["compile", "--preset", "tiny", "--workload", "decode", *argv]
    assert cli.main(check) == 2
    assert words in capsys.readouterr().err


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setattr("omni_jax.compilation.toolchain._found", lambda module: False)
    assert cli.main(["compile", "--preset", "tiny", "--target", "h100"]) == 2
    err = capsys.readouterr().err
    assert "pip install" in err and "jax-cuda13-plugin==" in err
