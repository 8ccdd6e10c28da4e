"""Preferences: equation 1 of the paper, in numpy and from whole batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.errors import ConfigError
from omni_jax.training.dpo import DpoTask, PairLogProbs, dpo_loss
from tests.training.packed_batches import VOICE, case, compiled, model_of, pack


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return model_of(tiny_checkpoint[1])


@pytest.fixture(scope="module")
def task(model):
    return DpoTask(model[0], beta=0.3, chunk=64)


@pytest.fixture(scope="module")
def rows(model):
    """Two pairs in one row, one in the other, beside conversations that are not compared."""
    config = model[0]
    first = [case(config, seed=1, codes=(5, 7)), case(config, seed=2), case(config, seed=3, codes=(4, 4))]
    return [first, [case(config, "audio", seed=4, codes=(3,)), case(config, seed=5, codes=(6, 2))]]


@pytest.fixture(scope="module")
def log_probs_of(model, task):
    run = jax.jit(task.sequence_log_probs)
    return lambda batch: run({name: model[1][name] for name in task.components}, batch)


def with_reference(batch, chosen, rejected):
    preferences = replace(
        batch.preferences,
        reference_chosen=np.asarray(chosen, np.float32),
        reference_rejected=np.asarray(rejected, np.float32),
    )
    return replace(batch, preferences=preferences)


logs = st.floats(-300, 0)


@settings(max_examples=50, deadline=None)
@given(logs, logs, logs, logs, st.floats(0.01, 2))
def test_the_loss_and_its_gradients_are_those_of_equation_1(chosen, rejected, reference_w, reference_l, beta):
    margin = beta * ((chosen - reference_w) - (rejected - reference_l))
    expected = np.logaddexp(0, -margin)
    falling = -beta * np.exp(-np.logaddexp(0, margin))  # -beta * sigmoid(-margin)

    def loss(chosen, rejected, reference):
        return dpo_loss(PairLogProbs(chosen, rejected), reference, beta=beta)[0][0, 0]

    def ours(dtype):
        given = [jnp.asarray(value, dtype).reshape(1, 1) for value in (chosen, rejected, reference_w, reference_l)]
        return jax.value_and_grad(loss, argnums=(0, 1))(*given[:2], PairLogProbs(*given[2:]))

    # float64 and float32, whose margins of hundreds are exact to about 1e-4
    for dtype, relative, absolute in ((jnp.float64, 1e-9, 1e-300), (jnp.float32, 2e-3, 2e-4)):
        with jax.enable_x64(dtype == jnp.float64):
            value, gradients = ours(dtype)
            assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=relative, atol=absolute)
        np.testing.assert_allclose(np.ravel(gradients), [falling, -falling], rtol=relative, atol=absolute)


def test_the_reference_policy_itself_loses_log_2(model, task, rows, log_probs_of):
    batch = pack(rows, model[0])
    own = log_probs_of(batch)
    losses, gradients = compiled(task)(model[1], with_reference(batch, own.chosen, own.rejected))
    assert losses.total.mean == pytest.approx(np.log(2), abs=1e-6)
    assert losses.total.weight == 3
    assert losses.parts["margin"].mean == pytest.approx(0, abs=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients["talker"])) > 0
    words = np.array(gradients["thinker"]["embed"].pop("embedding"))
    assert np.flatnonzero(words.any(axis=1)).tolist() == [VOICE]  # the voice is the Talker's own
    for frozen in ("thinker", "audio_encoder", "vision_encoder"):  # detached
        jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), gradients[frozen])


def test_losses_and_rewards_of_a_batch_are_means_over_its_pairs(model, task, rows, log_probs_of):
    batch = pack(rows, model[0])
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), log_probs_of(batch))
    moved = np.array([[-4.0, 3.0], [1.0, 50.0]])  # the last is no pair
    batch = with_reference(batch, own.chosen - moved, own.rejected - 1.0)
    losses = compiled(task)(model[1], batch)[0]
    chosen, rejected = 0.3 * moved[[0, 0, 1], [0, 1, 0]], 0.3 * np.ones(3)
    expected = {
        "accuracy": 1 / 3,
        "margin": np.mean(chosen - rejected),
        "reward/chosen": np.mean(chosen),
        "reward/rejected": np.mean(rejected),
    }
    assert losses.total.mean == pytest.approx(np.mean(np.logaddexp(0, rejected - chosen)), rel=1e-4)
    assert {name: float(part.mean) for name, part in losses.parts.items()} == pytest.approx(
        expected, rel=1e-3, abs=1e-5
    )


def test_log_probabilities_are_sums_over_codes_that_count(model, rows, log_probs_of):
    batch = pack(rows, model[0])
    before = log_probs_of(batch)
    assert before.chosen[1, 1] == before.rejected[1, 1] == 0  # no pair
    speech = batch.speech
    ignored = np.where(speech.weights == 0, 17, speech.labels)
    same = log_probs_of(replace(batch, speech=replace(speech, labels=ignored)))
    jax.tree.map(np.testing.assert_array_equal, same, before)

    place = np.flatnonzero((speech.weights[0] > 0) & (speech.segment_ids[0] == 2))[0]  # of the first rejected answer
    other = speech.labels.copy()
    other[0, place] += 1
    after = log_probs_of(replace(batch, speech=replace(speech, labels=other)))
    np.testing.assert_array_equal(after.chosen, before.chosen)
    assert after.rejected[0, 0] != before.rejected[0, 0]
    assert after.rejected[0, 1] == before.rejected[0, 1]

    shorter = speech.weights.copy()
    shorter[0, place] = 0
    assert log_probs_of(replace(batch, speech=replace(speech, weights=shorter))).rejected[0, 0] > before.rejected[0, 0]


def test_cross_entropy_of_the_chosen_answer_is_a_mean_over_its_codes(model, task, rows, log_probs_of):
    batch = pack(rows, model[0])
    own = log_probs_of(batch)
    batch = with_reference(batch, own.chosen, own.rejected)
    losses = compiled(replace(task, sft_weight=0.5))(model[1], batch)[0]
    codes = np.array([5 + 1, 4 + 1, 6 + 1])
    sft = np.mean(-np.asarray(own.chosen)[[0, 0, 1], [0, 1, 0]] / codes)
    assert losses.parts["sft"].mean == pytest.approx(sft, rel=1e-5)
    assert losses.total.mean == pytest.approx(np.log(2) + 0.5 * sft, rel=1e-5)


def test_preferences_need_a_talker_and_pairs(model, task, rows):
    with pytest.raises(ConfigError, match="has no Talker"):
        replace(task, config=replace(model[0], talker_config=None))
    batch = replace(pack(rows, model[0]), preferences=None)
    with pytest.raises(ConfigError, match="The batch has no pairs"):
        task.loss(model[1], batch)
