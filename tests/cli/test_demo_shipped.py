"""The model that comes with the program: it is small, and its answers in the demo are right."""

import json

import pytest

from omni_jax.cli.demo import MODEL, SCENES
from omni_jax.cli.demo_scenes import read_scenes
from omni_jax.cli.main import main
from omni_jax.config_json import read_config
from omni_jax.presets import preset

MOST_BYTES = 60_000_000
pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="the small model is still in training")


def test_it_is_the_small_preset_and_fits_into_the_repository():
    config, wanted = read_config(MODEL), preset("omni-tiny")
    assert config.thinker_config == wanted.thinker_config and config.talker_config == wanted.talker_config
    assert config.token2wav_config == wanted.token2wav_config
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) <= MOST_BYTES


def test_its_answers_are_right():
    from omni_jax.sampling.load import load_sampler
    from omni_jax.sampling.options import SamplingOptions

    sampler, wrong = load_sampler(MODEL, chunk=128), []
    for scene in read_scenes(SCENES):
        (answer,) = sampler.generate([sampler.prepare(scene.messages)], SamplingOptions(max_new_tokens=40))
        if not scene.is_right(answer.text):
            wrong.append(f"{scene.name}: {answer.text!r}, but {scene.truth!r}")
    assert not wrong


@pytest.mark.slow
def test_it_speaks_all_of_them(tmp_path, capsys):
    assert main(["demo", "--folder", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["right"] == len(result["rows"]) == len(read_scenes(SCENES))
    for row in result["rows"]:
        assert row["speech_reason"] == "stop" and 0.4 < row["sound_seconds"] < 7.6, row["name"]
        assert row["offline"]["same"]
