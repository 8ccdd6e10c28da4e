"""Bounds of the attention patterns say the same as the masks that the models use."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.kernels import patterns

few = settings(max_examples=30, deadline=None)
# sizes are few, since each is a compilation
within_blocks = jax.jit(patterns.within_blocks, static_argnames="block_size")
packed_blocks = jax.jit(patterns.packed_blocks, static_argnames="length")
neighbouring_blocks = jax.jit(
    patterns.neighbouring_blocks, static_argnames=("time", "block_size", "look_back", "look_ahead")
)
causal_segments = jax.jit(patterns.causal_segments)


def lists_of(numbers, *sizes):
    return st.sampled_from(sizes).flatmap(lambda size: st.lists(numbers, min_size=size, max_size=size))


def mask_of(bounds, keys):
    start, stop = (np.asarray(x)[:, None] for x in bounds)
    assert start.dtype == stop.dtype == np.int32
    index = np.arange(keys)
    return (start <= index) & (index < stop)


@few
@given(valid=lists_of(st.integers(0, 7), 1, 2, 5))
def test_a_place_of_a_block_sees_the_valid_places_of_its_block(valid):
    mask = mask_of(within_blocks(jnp.array(valid), block_size=7), 7 * len(valid))
    place = np.arange(7 * len(valid))
    expected = (place[:, None] // 7 == place // 7) & (place % 7 < np.array(valid)[place // 7])
    np.testing.assert_array_equal(mask, expected)


@few
@given(lengths=lists_of(st.integers(0, 6), 1, 6), full=st.booleans())
def test_packed_blocks_see_themselves_and_padding_sees_nothing(lengths, full):
    size = 6 * len(lengths)
    if full:
        lengths = [*lengths[:-1], size - sum(lengths[:-1])]
    owner = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), np.full(size - sum(lengths), -1)]).astype(int)
    mask = mask_of(packed_blocks(jnp.array(lengths), length=size), size)
    np.testing.assert_array_equal(mask, (owner[:, None] == owner) & (owner[:, None] >= 0))


@few
@given(
    lengths=lists_of(st.integers(0, 20), 1, 3),
    look=st.sampled_from([(0, 0), (1, 0), (0, 1), (2, 1), (1, 2)]),
)
def test_a_frame_sees_the_blocks_around_its_own_in_its_own_row(lengths, look):
    time, block = 20, 4
    look_back, look_ahead = look
    bounds = neighbouring_blocks(
        jnp.array(lengths), time=time, block_size=block, look_back=look_back, look_ahead=look_ahead
    )
    mask = mask_of(bounds, time * len(lengths))
    frame = np.arange(time * len(lengths))
    row, block_of = frame // time, frame % time // block
    away = block_of - block_of[:, None]
    expected = (row[:, None] == row) & (-look_back <= away) & (away <= look_ahead)
    expected &= frame % time < np.array(lengths)[row]
    np.testing.assert_array_equal(mask, expected)


@few
@given(lengths=st.lists(st.integers(0, 5), max_size=5), size=st.sampled_from([1, 8, 20]))
def test_a_token_sees_its_segment_up_to_itself_and_padding_takes_no_part(lengths, size):
    ids = np.concatenate([np.repeat(np.arange(1, len(lengths) + 1), lengths), np.zeros(size)]).astype(int)[:size]
    mask = mask_of(causal_segments(jnp.array(ids)), ids.size)
    place = np.arange(ids.size)
    expected = (ids[:, None] == ids) & (place <= place[:, None]) & (ids[:, None] != 0)
    np.testing.assert_array_equal(mask, expected)


def test_folded_rows_stay_apart():
    start, stop = patterns.fold(jnp.array([[0, 1], [0, 2]]), jnp.array([[2, 3], [3, 2]]), keys=3)
    np.testing.assert_array_equal(start, [0, 1, 3, 0])
    np.testing.assert_array_equal(stop, [2, 3, 6, 0])
