"""Each stage of configs/ that learns from recordings learns a handful of them: codes are found again code for code, and
sound comes near to what it should be.

All begin with the tiny checkpoint, the vocoder's with a smaller one in it.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.training.stages import parameters, run_in_child
from tests.training.stages_sound import STAGES, lay_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint, speech_pairs) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "here"
    lay_out(folder, tiny_checkpoint[1], speech_pairs)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return run_in_child("tests.training.stages_sound", folder)


def losses(results, stage, name="loss"):
    return [row[name] for row in results[stage]["rows"] if name in row]


def test_the_codes_that_made_a_sound_are_found_again_code_for_code(results):
    found = results["speech_tokenizer_inversion"]
    assert losses(results, "speech_tokenizer_inversion")[0] > 3  # of 128 codes: log(128) = 4.9
    assert np.mean(losses(results, "speech_tokenizer_inversion")[-3:]) < 0.1
    assert losses(results, "speech_tokenizer_inversion", "accuracy")[-1] == 1
    assert found["codes"] == found["wanted"]


def test_from_scratch_the_loss_falls_and_many_codes_are_in_use(results):
    """Nothing collapses, and what the run says of its codes is what `omni-jax speech-codes` then makes."""
    found, last = results["speech_tokenizer_scratch"], results["speech_tokenizer_scratch"]["rows"][-1]
    for name, fraction in (("loss", 0.6), ("text", 0.6), ("mel", 0.7)):
        values = losses(results, "speech_tokenizer_scratch", name)
        assert np.mean(values[-3:]) < fraction * values[0]
    codes = [code for clip in found["codes"] for code in clip]
    _, often = np.unique(codes, return_counts=True)
    share = often / len(codes)
    assert len(often) >= 10 and np.prod(share**-share) > 6  # of 85 codes; in the first steps 2 or 3 are left
    # the last step's figures were made just before its update
    assert last["usage"] * 8192 == pytest.approx(len(often), rel=0.2)
    assert last["perplexity"] == pytest.approx(np.prod(share**-share), rel=0.2)


def test_the_flow_makes_the_mel_of_its_codes(results):
    """By our own solver, from noise."""
    assert results["token2wav"]["after"] < 0.5 * results["token2wav"]["before"]
    values = losses(results, "token2wav")
    assert values[0] > 10 and np.mean(values[-3:]) < 3  # 1 and more is of the noise, which so small a network hides


def test_the_vocoder_makes_sound_of_its_mel(results):
    before, after = (np.mean(results["vocoder"][when]) for when in ("before", "after"))
    assert after < 0.7 * before and after < 1.5
    assert losses(results, "vocoder", "mel")[-1] < 0.7 * losses(results, "vocoder", "mel")[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_moves_only_its_own_parts(folder, results, stage):
    own = {"token2wav": {"speaker_encoder", "dit"}, "vocoder": {"bigvgan", "discriminator"}}
    begun = {"speech_tokenizer_scratch": "scratch", "vocoder": "vocoder"}.get(stage, "inversion")
    before = parameters(folder / "checkpoints" / begun)
    after = parameters(folder / "runs" / stage / "model")
    changed = {path for path in after if before.get(path) != after[path]}
    assert before.keys() <= after.keys()
    assert {path.split("/")[0] for path in changed} == own.get(stage, {"speech_tokenizer"})
