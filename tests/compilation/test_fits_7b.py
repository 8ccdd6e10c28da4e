"""The published 7B model, bfloat16, with the caches of a 60-second film: the whole of speech fits small slices."""

import os

import pytest

from omni_jax.compilation.targets import parse_target
from omni_jax.compilation.toolchain import CompilerError, check_compiler, run_worker


def report_of(target: str, **request):
    try:
        check_compiler(parse_target(target))
    except CompilerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    common = {"preset": "qwen2.5-omni-7b", "workload": "speech", "target": target}
    return run_worker(common | request, parse_target(target))


@pytest.mark.slow  # minutes a target: the vocoder and the sort of the vocabulary compile slowly
@pytest.mark.parametrize("target", ["v6e-1", "v5e-4"])
def test_speech_fits_with_the_film(target):
    report = report_of(target)
    assert report["fits"], report.get("suggestion")
    assert report["units"] == 12
    assert {one["name"] for one in report["programs"]} >= {"encode_vision", "think", "converse", "vocode_windows"}


def test_speech_does_not_fit_one_v5e():
    report = report_of("v5e-1", programs=["converse"])
    assert not report["fits"]
    assert "v5e-4 with tensor=4" in report["suggestion"]
