"""Every stage of training is a workload, built from its configuration."""

import jax
import pytest

from omni_jax.compilation.stage_workload import stage
from omni_jax.compilation.workloads import STAGES, Options, check_workload, stage_file
from omni_jax.errors import ConfigError
from omni_jax.presets import preset


def options(name: str, **changes) -> Options:
    choices = {"context": 512, "batch": 2, "dtype": "float32", "extra": {"run": str(stage_file(name))}} | changes
    return Options(preset("tiny"), jax.devices()[:1], **choices)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_parameters_moments_and_batch(name):
    workload = stage(options(name))
    state, batch = workload.programs[0].args
    assert workload.resident == {"parameters": state.params, "optimiser": state.optimizer_state, "batch": batch}
    assert workload.units > 0
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer_state)) / 2
    everything = sum(leaf.size for leaf in state.params.values())
    assert 0 < trained <= everything + 10
    frozen = {"pretrain1_adapters", "pretrain1_encoders", "sft", "talker_icl", "talker_dpo", "talker_speaker"}
    assert (trained < 0.95 * everything) == (name in frozen)


def test_rows_and_their_length_can_be_given_anew():
    batch = stage(options("sft", context=1024, batch=6)).programs[0].args[1]
    assert batch.token_ids.shape == (6, 1024)
    assert batch.vision.patches.shape[1] == 16384 * 1024 // 8192
    assert batch.audio.frames.shape == (6, 64 * 1024 // 8192)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="training keeps its weights in float32"):
        stage(options("sft", weights="int8"))
    with pytest.raises(ConfigError, match=r"Workloads: prefill, decode, speech, train, pretrain1_adapters"):
        check_workload("pretrain9")


def test_the_first_stage_stands_for_its_larger_half():
    assert stage_file("pretrain1").name == "pretrain1_encoders.py"
    assert stage_file("decode") is None
