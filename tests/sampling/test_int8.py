"""A checkpoint loaded with weights in int8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.errors import ConfigError
from omni_jax.layers.weight_only import is_quantised
from omni_jax.sampling.load import load_sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint):
    return load_sampler(tiny_checkpoint[1], chunk=64, weights="int8", unrolled=False)


def test_matrices_are_loaded_as_int8_and_stand_for_those_of_the_checkpoint(sampler, tiny_checkpoint):
    exact = load_sampler(tiny_checkpoint[1], chunk=64, unrolled=False).params
    pairs = zip(jax.tree.leaves(sampler.params, is_leaf=is_quantised), jax.tree.leaves(exact))
    quantised = 0
    for ours, theirs in pairs:
        if is_quantised(ours):
            quantised += theirs.size
            assert ours.qvalue.dtype == jnp.int8
            ours = ours.qvalue * ours.scale
            assert np.all(np.abs(ours - theirs) <= 0.01 * np.abs(theirs).max())
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert quantised > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(exact))


def test_it_answers_to_a_picture(sampler):
    picture = np.random.default_rng(0).integers(0, 255, (80, 120, 3)).astype(np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    request = sampler.prepare([{"role": "user", "content": content}])
    (answer,) = sampler.generate([request], SamplingOptions(max_new_tokens=6))
    assert len(answer.token_ids) == 6


def test_a_talker_beside_it_is_stored_alike_and_the_sound_is_not(sampler, tiny_checkpoint):
    speech = Speech.from_checkpoint(tiny_checkpoint[1], sampler)
    assert is_quantised(speech.params["layers"]["mlp"]["up"]["kernel"])
    assert not any(is_quantised(leaf) for leaf in jax.tree.leaves(speech.token2wav.dit, is_leaf=is_quantised))


def test_another_form_is_refused(tiny_checkpoint):
    with pytest.raises(ConfigError, match="cannot be stored as 'int3'"):
        load_sampler(tiny_checkpoint[1], weights="int3")
