"""The model that comes with the program: it is small, and its answers in the demo are right."""

import json

import pytest

from omni_jax.cli.demo import MODEL, SCENES
from omni_jax.cli.demo_scenes import read_scenes
from omni_jax.cli.main import main
from omni_jax.config_json import read_config
from omni_jax.presets import preset

MOST_BYTES = 60_000_000


def test_it_is_the_small_preset_and_fits_into_the_repository():
    config, wanted = read_config(MODEL), preset("omni-tiny")
    assert config.thinker_config == wanted.thinker_config and config.talker_config == wanted.talker_config
    assert config.token2wav_config == wanted.token2wav_config
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) <= MOST_BYTES


@pytest.fixture(scope="module")
def answers():
    from omni_jax.sampling.load import load_sampler
    from omni_jax.sampling.options import SamplingOptions

    sampler, greedy = load_sampler(MODEL, chunk=128), SamplingOptions(max_new_tokens=40)
    scenes = read_scenes(SCENES)
    return {scene.name: sampler.generate([sampler.prepare(scene.messages)], greedy)[0].text for scene in scenes}


@pytest.mark.parametrize("scene", read_scenes(SCENES), ids=lambda scene: scene.name)
def test_its_answers_are_right(scene, answers):
    assert scene.is_right(answers[scene.name]), f"{answers[scene.name]!r}, but {scene.truth!r}"


@pytest.mark.slow
def test_it_speaks_all_of_them(tmp_path, capsys):
    assert main(["demo", "--folder", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == len(read_scenes(SCENES))
    assert [row["name"] for row in result["rows"] if not row["right"]] == []
    for row in result["rows"]:
        assert row["speech_reason"] == "stop" and 0.4 < row["sound_seconds"] < 7.6, row["name"]
        assert row["offline"]["same"]
