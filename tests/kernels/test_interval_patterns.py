"""Bounds of the attention patterns say the same as the masks that the models use."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.kernels import patterns

few = settings(max_examples=30, deadline=None)


def mask_of(bounds, keys):
    start, stop = (np.asarray(x)[:, None] for x in bounds)
    assert start.dtype == stop.dtype == np.int32
    index = np.arange(keys)
    return (start <= index) & (index < stop)


@few
@given(valid=st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_a_place_of_a_block_sees_the_valid_places_of_its_block(valid):
    mask = mask_of(patterns.within_blocks(jnp.array(valid), 7), 7 * len(valid))
    place = np.arange(7 * len(valid))
    expected = (place[:, None] // 7 == place // 7) & (place % 7 < np.array(valid)[place // 7])
    np.testing.assert_array_equal(mask, expected)


@few
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6), padding=st.integers(0, 5))
def test_packed_blocks_see_themselves_and_padding_sees_nothing(lengths, padding):
    owner = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), np.full(padding, -1)]).astype(int)
    if not owner.size:
        return
    mask = mask_of(patterns.packed_blocks(jnp.array(lengths), owner.size), owner.size)
    np.testing.assert_array_equal(mask, (owner[:, None] == owner) & (owner[:, None] >= 0))


@few
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    look_back=st.integers(0, 2),
    look_ahead=st.integers(0, 2),
)
def test_a_frame_sees_the_blocks_around_its_own_in_its_own_row(lengths, look_back, look_ahead):
    time, block = 20, 4
    bounds = patterns.neighbouring_blocks(
        jnp.array(lengths), time, block_size=block, look_back=look_back, look_ahead=look_ahead
    )
    mask = mask_of(bounds, time * len(lengths))
    frame = np.arange(time * len(lengths))
    row, block_of = frame // time, frame % time // block
    away = block_of - block_of[:, None]
    expected = (row[:, None] == row) & (-look_back <= away) & (away <= look_ahead)
    expected &= frame % time < np.array(lengths)[row]
    np.testing.assert_array_equal(mask, expected)


@few
@given(lengths=st.lists(st.integers(0, 5), min_size=2, max_size=5))
def test_a_token_sees_its_segment_up_to_itself_and_padding_takes_no_part(lengths):
    ids = np.concatenate([np.repeat(np.arange(1, len(lengths)), lengths[:-1]), np.zeros(lengths[-1], int)])
    if not ids.size:
        return
    mask = mask_of(patterns.causal_segments(jnp.array(ids)), ids.size)
    place = np.arange(ids.size)
    expected = (ids[:, None] == ids) & (place <= place[:, None]) & (ids[:, None] != 0)
    np.testing.assert_array_equal(mask, expected)


def test_folded_rows_stay_apart():
    start, stop = patterns.fold(jnp.array([[0, 1], [0, 2]]), jnp.array([[2, 3], [3, 2]]), keys=3)
    np.testing.assert_array_equal(start, [0, 1, 3, 0])
    np.testing.assert_array_equal(stop, [2, 3, 6, 0])
