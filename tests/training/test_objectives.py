"""Scores of tokens, made a chunk at a time, equal those of all logits at once; sums by group and by segment."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.training.objectives import TokenScores, score_tokens


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(1, 1, 4), (3, 13, 5), (2, 8, 4), (2, 6, 16)]), st.integers(0, 2**31 - 1))
def test_scores_by_chunks_are_those_of_all_logits(sizes, seed):
    batch, length, chunk = sizes
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(batch, length, 8)), rng.normal(size=(8, 5))
    labels, weights = rng.integers(0, 5, (batch, length)), rng.integers(0, 3, (batch, length)) / 2
    scores = score_tokens(
        jnp.asarray(hidden, jnp.float32),
        jnp.asarray(head, jnp.float32),
        jnp.asarray(labels),
        jnp.asarray(weights, jnp.float32),
        chunk=chunk,
    )
    logits = hidden @ head
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0] * (weights > 0)
    right = logits.argmax(-1) == labels
    np.testing.assert_allclose(scores.losses, losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores.right, right)
    np.testing.assert_allclose(scores.accuracy.loss, (right * weights).sum())
    np.testing.assert_allclose(scores.total.loss, (losses * weights).sum(), rtol=1e-4, atol=1e-5)


SCORES = TokenScores(
    losses=jnp.asarray([[1.0, 2, 4, 8, 16, 0], [32, 64, 0, 128, 256, 0]]),
    right=jnp.zeros((2, 6)),
    weights=jnp.asarray([[1.0, 0.5, 1, 1, 2, 0], [1, 1, 0, 1, 1, 0]]),
)


def test_sums_of_groups_add_up_to_the_total():
    groups = jnp.asarray([[0, 0, 0, 2, 2, 2], [1, 1, 1, 1, 0, 0]])
    totals = SCORES.by_group(groups, ("first", "second", "third", "fourth"))
    assert {name: (float(total.loss), float(total.weight)) for name, total in totals.items()} == {
        "first": (1 + 1 + 4 + 256, 3.5),
        "second": (32 + 64 + 128, 3),
        "third": (8 + 32, 3),
        "fourth": (0, 0),
    }
    assert sum(total.loss for total in totals.values()) == SCORES.total.loss


def test_a_segments_log_probability_counts_each_token_once_and_padding_never():
    segment_ids = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 3, 3, 3, 0, 0]])
    log_probs, counts = SCORES.by_segment(segment_ids, jnp.asarray([[2, 1, 0], [3, 0, 7]]))
    np.testing.assert_array_equal(log_probs, [[-24, -7, 0], [-192, 0, 0]])
    np.testing.assert_array_equal(counts, [[2, 3, 0], [2, 0, 0]])


def test_the_gradient_of_one_groups_loss_is_that_of_its_positions_alone():
    rng = np.random.default_rng(0)
    hidden, head = jnp.asarray(rng.normal(size=(1, 6, 8))), jnp.asarray(rng.normal(size=(8, 5)))
    labels, groups = jnp.asarray([[0, 1, 2, 3, 4, 0]]), jnp.asarray([[0, 1, 1, 0, 1, 0]])

    def of_group(hidden):
        return score_tokens(hidden, head, labels, jnp.ones((1, 6)), chunk=4).by_group(groups, "ab")["b"].loss

    def weighted(hidden):
        return score_tokens(hidden, head, labels, groups.astype(jnp.float32), chunk=4).total.loss

    np.testing.assert_allclose(jax.grad(of_group)(hidden), jax.grad(weighted)(hidden), rtol=1e-6)
