"""Processed logits equal those of transformers' warpers, in its order."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omni_jax.errors import PromptError
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.warpers import WarperOptions, draw, warp

VOCAB = 64


def options(rows: int, **values) -> WarperOptions:
    defaults = dict(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=0)
    kinds = dict(temperature=np.float32, top_k=np.int32, top_p=np.float32, repetition_penalty=np.float32, seed=np.int32)
    return WarperOptions(
        **{name: jnp.full(rows, values.get(name, default), kinds[name]) for name, default in defaults.items()}
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(1, VOCAB),
    top_p=st.floats(0.05, 1.0),
    penalty=st.floats(0.5, 2.0),
)
def test_processed_logits_equal_the_reference(seed, temperature, top_k, top_p, penalty):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, VOCAB)).astype(np.float32) * 3
    history = rng.integers(0, VOCAB, (3, 10))
    suppressed = np.zeros(VOCAB, bool)
    suppressed[5] = True
    seen = np.zeros((3, VOCAB), bool)
    seen[np.arange(3)[:, None], history] = True

    steps = [RepetitionPenaltyLogitsProcessor(penalty), SuppressTokensLogitsProcessor([5])]
    steps += [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k)]
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = LogitsProcessorList(steps)(torch.from_numpy(history), torch.from_numpy(logits.copy())).numpy()

    chosen = options(3, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    ours = np.asarray(warp(jnp.asarray(logits), jnp.asarray(seen), chosen, jnp.asarray(suppressed)))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_a_greedy_row_beside_a_sampled_one_is_untouched():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, VOCAB)), jnp.float32)
    mixed = options(2, top_k=3).replace(temperature=jnp.asarray([0.0, 1.0]))
    warped = warp(logits, jnp.zeros((2, VOCAB), bool), mixed)
    np.testing.assert_array_equal(warped[0], logits[0])
    assert np.isfinite(warped[1]).sum() == 3
    assert draw(warped, mixed, jnp.zeros(2, jnp.int32))[0] == jnp.argmax(logits[0])


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.2]]))
    rows = 4000
    chosen = options(rows, temperature=1.0).replace(seed=jnp.arange(rows, dtype=jnp.int32))
    tokens = draw(jnp.tile(logits, (rows, 1)), chosen, jnp.zeros(rows, jnp.int32))
    np.testing.assert_allclose(np.bincount(tokens, minlength=3) / rows, [0.5, 0.3, 0.2], atol=0.03)


def test_a_draw_depends_on_seed_and_step_alone():
    logits = jnp.zeros((4, VOCAB))
    chosen = options(4, temperature=1.0).replace(seed=jnp.asarray([1, 2, 1, 1]))
    tokens = draw(logits, chosen, jnp.asarray([0, 0, 0, 1]))
    assert tokens[0] == tokens[2]
    assert len({int(tokens[0]), int(tokens[1]), int(tokens[3])}) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_an_option_out_of_range_is_named(wrong):
    with pytest.raises(PromptError, match=next(iter(wrong))):
        SamplingOptions(**wrong)
