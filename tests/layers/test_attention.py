"""Attention equals a plain float64 loop, in every form that sizes and platforms choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.layers import attention
from omni_jax.layers.attention import attend, attend_within_blocks


def plain(query, key, value, mask):
    """[B, T, N, H] by loops."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, _, heads, width = query.shape
    out = np.zeros(query.shape)
    for b in range(batch):
        for n in range(heads):
            kv = n // (heads // key.shape[1])
            scores = query[b, :, n] @ key[b, kv].T / np.sqrt(width)
            scores = np.where(np.broadcast_to(mask[b], scores.shape), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, n] = weights / weights.sum(-1, keepdims=True) @ value[b, kv]
    return out


def random_inputs(batch, length, heads, kv_heads, keys, width, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(batch, length, heads, width)).astype(np.float32)
    key, value = (rng.normal(size=(batch, kv_heads, keys, width)).astype(np.float32) for _ in range(2))
    mask = rng.random((batch, length, keys)) < 0.5
    mask[:, :, 0] = True
    return tuple(jnp.asarray(x) for x in (query, key, value, mask))


@pytest.mark.parametrize(
    ("batch", "length", "heads", "kv_heads", "keys"),
    [(1, 1, 4, 4, 7), (2, 5, 4, 2, 9), (1, 96, 4, 1, 1024), (2, 24, 8, 2, 2048), (1, 2048, 2, 2, 128)],
)
@pytest.mark.parametrize("shared", [False, True])
def test_attention_equals_a_plain_loop(batch, length, heads, kv_heads, keys, shared):
    query, key, value, mask = random_inputs(batch, length, heads, kv_heads, keys, 8)
    mask = mask[:, :1] if shared else mask
    out = jax.jit(attend)(query, key, value, mask)
    np.testing.assert_allclose(out, plain(query, key, value, mask), atol=2e-6)


def test_tiles_equal_the_whole_and_so_do_their_gradients():
    query, key, value, mask = random_inputs(1, 640, 4, 2, 1024, 8)
    assert attention._WORTH_TILING <= 640 * 1024 * 2  # so this runs in tiles on a CPU

    def loss(function):
        return lambda q, k, v: jnp.sum(jnp.sin(function(q, k, v)))

    def whole(q, k, v):
        grouped = q.reshape(1, 640, 2, 2, 8).transpose(0, 2, 3, 1, 4)
        return attention._attend_at_once(grouped, k, v, mask).transpose(0, 3, 1, 2, 4).reshape(q.shape)

    tiled = jax.grad(loss(lambda q, k, v: attend(q, k, v, mask)), (0, 1, 2))(query, key, value)
    for ours, expected in zip(tiled, jax.grad(loss(whole), (0, 1, 2))(query, key, value)):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_tiles_that_the_mask_hides_are_not_counted_forward_or_backward():
    query, key, value, _ = random_inputs(2, 640, 4, 2, 640, 8)
    place = np.arange(640)
    segment = np.where(place < 600, place // 100, -1)  # packed, and padding that may see nothing
    mask = (segment[:, None] == segment) & (place[:, None] >= place) & (segment >= 0)
    mask = jnp.broadcast_to(jnp.asarray(mask), (2, 640, 640))

    def short(q, k, v):  # each sequence alone
        parts = []
        for at in range(0, 600, 100):
            own = slice(at, at + 100)
            parts.append(attend(q[:, own], k[:, :, own], v[:, :, own], mask[:, own, own]))
        return jnp.concatenate(parts, axis=1)

    def packed(q, k, v):
        return attend(q, k, v, mask)[:, :600]

    def loss(function):
        return lambda *inputs: jnp.sum(jnp.sin(function(*inputs)))

    np.testing.assert_allclose(packed(query, key, value), short(query, key, value), atol=2e-6)
    found, expected = (jax.grad(loss(f), (0, 1, 2))(query, key, value) for f in (packed, short))
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_array_equal(attend(query, key, value, mask)[:, 600:], 0)
    # the first 128 queries never reach the last tile: a product with zero would show this
    unread = jax.grad(loss(lambda q, k, v: attend(q, k, v, mask)[:, :128]), (0, 1, 2))(
        query, key.at[:, :, 512:].set(jnp.inf), value.at[:, :, 512:].set(jnp.nan)
    )
    assert jnp.isfinite(unread[0][:, :128]).all()


@pytest.mark.parametrize("form", ["whole", "tiles", "shared", "cache"])
def test_what_may_see_nothing_gives_zeros(form):
    length, keys = (4, 64) if form == "whole" else (1, 512) if form == "cache" else (1024, 512)
    query, key, value, mask = random_inputs(2, length, 4, 2, keys, 8)
    mask = (mask[:, :1] if form == "shared" else mask).at[0].set(False)
    used = jnp.asarray([0, keys]) if form == "cache" else None
    out = attend(query, key, value, mask, used)
    np.testing.assert_array_equal(out[0], 0)
    np.testing.assert_allclose(out[1:], plain(query[1:], key[1:], value[1:], mask[1:]), atol=2e-6)


def test_a_mask_that_all_queries_share_stays_one_row():
    query, key, value, mask = random_inputs(1, 2048, 2, 2, 2048, 8)
    compiled = jax.jit(attend).lower(query, key, value, mask[:, :1]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2048 * 2048  # not a byte for each pair
    gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, mask[:, :1]))), (0, 1, 2)))
    whole = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, mask[:, [0] * 2048]))), (0, 1, 2))
    for ours, expected in zip(gradient(query, key, value), whole(query, key, value)):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_tiles_in_bfloat16_are_as_near_to_float32_as_the_whole_is():
    query, key, value, mask = random_inputs(1, 512, 4, 2, 1024, 32)

    def gradients(function, dtype):
        inputs = [x.astype(dtype) for x in (query, key, value)]
        found = jax.grad(lambda *each: jnp.sum(jnp.sin(function(*each).astype(jnp.float32))), (0, 1, 2))(*inputs)
        return [np.asarray(x, np.float32) for x in (function(*inputs), *found)]

    def whole(q, k, v):
        grouped = q.reshape(1, 512, 2, 2, 32).transpose(0, 2, 3, 1, 4)
        return attention._attend_at_once(grouped, k, v, mask).transpose(0, 3, 1, 2, 4).reshape(q.shape)

    exact = gradients(whole, jnp.float32)
    tiled, plainly = gradients(lambda q, k, v: attend(q, k, v, mask), jnp.bfloat16), gradients(whole, jnp.bfloat16)
    for ours, theirs, true in zip(tiled, plainly, exact):
        assert np.linalg.norm(ours - true) < 1.2 * np.linalg.norm(theirs - true) + 1e-6


def test_blocks_one_at_a_time_equal_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1500, 2, 8)), jnp.float32) for _ in range(3))
    slots = jnp.asarray(np.where(np.arange(1536) < 1500, np.arange(1536), 1500).reshape(3, 512))
    home = jnp.arange(1500)

    def gradients():
        def loss(*each):
            return jnp.sum(jnp.sin(attend_within_blocks(*each, slots=[slots], home=home)))

        return jax.grad(loss, (0, 1, 2))(query, key, value)

    expected = gradients()
    monkeypatch.setattr(attention, "_SCORE_BUDGET", 512 * 512 * 2)
    for ours, theirs in zip(gradients(), expected):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_pieces_equal_the_whole(monkeypatch):
    query, key, value, mask = random_inputs(1, 64, 4, 2, 32, 8)
    expected = attend(query, key, value, mask)
    monkeypatch.setattr(attention, "_SCORE_BUDGET", 64 * 32)
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-6)


def test_slots_of_a_cache_that_are_not_in_use_are_not_read():
    query, key, value, _ = random_inputs(2, 1, 4, 2, 2048, 8)
    used = jnp.asarray([5, 1500])
    mask = jnp.arange(2048)[None, None] < used[:, None, None]
    expected = plain(query, key, value, mask)
    value = value.at[0, :, 256:].set(jnp.nan)  # a product with zero would show it
    np.testing.assert_allclose(attend(query, key, value, mask, used), expected, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_positions_attend_within_their_own_block_only(sizes, padding):
    """Blocks of any sizes, empty and single-token ones included, with padding after them."""
    sizes = [*sizes, 1]
    length, places = sum(sizes) + padding, max(sizes)
    slots = np.full((len(sizes), places), length)
    home = np.zeros(length, np.int32)
    first = 0
    for block, size in enumerate(sizes):
        slots[block, :size] = np.arange(first, first + size)
        home[first : first + size] = block * places + np.arange(size)
        first += size
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(length, 2, 4)), jnp.float32) for _ in range(3))
    out = attend_within_blocks(query, key, value, slots=[jnp.asarray(slots)], home=jnp.asarray(home))
    first = 0
    for size in sizes:
        here = slice(first, first + size)
        if size:
            own = [x[None, here].swapaxes(1, 2) for x in (key, value)]
            expected = plain(query[None, here], *own, np.ones((1, size, size), bool))[0]
            np.testing.assert_allclose(out[here], expected, atol=2e-6)
        first += size
