"""Each stage of the Talker in configs/ learns a handful of spoken answers, and then says them code for code.

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
    return run_in_child("tests.training.stages_talker", folder)


@pytest.mark.parametrize("stage", ["talker_icl", "talker_speaker"])
def test_a_stage_learns_its_answers_and_says_them_code_for_code(stage, results):
    found = results[stage]
    assert found["rows"][0]["loss"] > 3
    assert np.mean([row["loss"] for row in found["rows"][-3:]]) < 0.05
    assert found["said"] == [[codes, "stop"] for codes in found["wanted"]]


def test_a_text_sounds_otherwise_in_another_voice(results):
    said = [codes for codes, _ in results["talker_speaker"]["said"]]
    assert said[0] != said[1] and said[2] != said[3]  # the same words, by Chelsie and by Ethan


def test_preferences_begin_at_log_2_and_all_pairs_are_told_apart_in_the_end(results):
    first, last = results["talker_dpo"]["rows"][0], results["talker_dpo"]["rows"][-1]
    # the reference is the policy that training begins with; 0.1 is the configuration's sft_weight
    assert first["loss"] - 0.1 * first["sft"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    assert last["accuracy"] == 1 and last["margin"] > 1
    assert last["loss"] - 0.1 * last["sft"] < 0.1
    assert last["sft"] < first["sft"]


def test_only_the_talker_moves_and_the_rows_of_voices(folder, results):
    begun = {"talker_icl": "checkpoints/qwen2.5-omni-7b", "talker_dpo": "runs/talker_icl/model",
             "talker_speaker": "runs/talker_dpo/model"}  # fmt: skip
    for stage, start in begun.items():
        before, after = parameters(folder / start), parameters(folder / "runs" / stage / "model")
        changed = {path for path in before if before[path] != after[path]}
        assert before.keys() == after.keys() and changed
        voices = {"thinker/embed/embedding"} if stage == "talker_speaker" else set()
        assert {path for path in changed if not path.startswith("talker/")} == voices
