"""Each stage of the Thinker in configs/ learns a handful of samples with media from disk, then answers them right.

The stages run one after the other, each from the model of the one before, as the configurations say.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.training.stages import lay_out, parameters, run_in_child


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "here"
    lay_out(folder, tiny_checkpoint[1])
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return run_in_child("tests.training.stages_thinker", folder)


@pytest.fixture(scope="module")
def models(folder, results):
    """Parameters by run, and of the checkpoint that the first began with."""
    runs = {name: parameters(folder / "runs" / name / "model") for name in results}
    return runs | {"assembled": parameters(folder / "checkpoints" / "assembled")}


def moved(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    assert before.keys() == after.keys()
    return {path for path in before if before[path] != after[path]}


@pytest.mark.parametrize("stage", ["pretrain2", "pretrain3", "sft", "lora"])
def test_a_stage_learns_its_samples_and_answers_them_right(stage, results):
    found = results[stage]
    assert found["losses"][0] > 3
    assert np.mean(found["losses"][-3:]) < 0.1
    assert found["answers"] == found["wanted"]


def test_with_a_frozen_language_model_the_loss_falls_and_falls_on(results):
    adapters, encoders = (results[f"pretrain1_{name}"]["losses"] for name in ("adapters", "encoders"))
    assert np.mean(adapters[-3:]) < 0.5 * adapters[0]
    assert np.mean(encoders[-3:]) < 0.9 * np.mean(adapters[-3:])


def test_frozen_parts_are_the_checkpoints_bit_for_bit(models):
    encoders = ("audio_encoder/", "vision_encoder/")
    adapters = ("vision_encoder/merger/", "audio_encoder/final_norm/", "audio_encoder/projection/")
    expected = {
        "pretrain1_adapters": ("assembled", adapters),
        "pretrain1_encoders": ("pretrain1_adapters", encoders),
        "pretrain2": ("pretrain1_encoders", (*encoders, "thinker/")),
        "sft": ("assembled", ("thinker/",)),
        "lora": ("assembled", ("thinker/",)),
    }
    for stage, (before, prefixes) in expected.items():
        changed = moved(models[before], models[stage])
        assert all(path.startswith(prefixes) for path in changed)
        # each of them has learned, and none of them alone
        assert all(any(path.startswith(prefix) for path in changed) for prefix in prefixes)


def test_losses_are_told_by_source_and_by_modality(results):
    assert {"source/image_text", "source/audio_text"} <= results["pretrain1_adapters"]["reported"].keys()
    modalities = {f"modality/{name}" for name in ("text", "audio", "vision", "audio_vision")}
    assert modalities <= results["sft"]["reported"].keys()
    assert all(value < 0.5 for value in results["sft"]["reported"].values())
