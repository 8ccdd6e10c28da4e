"""The block decoders: what a window depends on, what its ends are, and how both relate to the whole utterance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.models import dit, dit_block, dit_carried
from omni_jax.models.flow import FlowOptions
from tests.models.token2wav_reference import DIT, our_params, published_model

OPTIONS = FlowOptions("euler", 3)
SIZE, FRAMES = 12, 24  # codes and mel frames of a block


@pytest.fixture(scope="module")
def params():
    return our_params(published_model(DIT), DIT)


@pytest.fixture(scope="module")
def voice(params):
    rng = np.random.default_rng(1)
    speakers = jnp.asarray(rng.normal(size=(2, DIT.enc_emb_dim)), jnp.float32)
    ref_mels = jnp.asarray(rng.normal(-4, 2, (2, 20, DIT.mel_dim)), jnp.float32)
    return dit.stack_voices([dit.make_voice(params, DIT, speakers, ref_mels)])


@pytest.fixture(scope="module")
def modulation(params):
    return dit.modulate_solver(params, DIT, OPTIONS)


@pytest.fixture(scope="module")
def window(params, voice, modulation):
    """Mel [2, 24, M] of two windows with the same seed, one of each voice."""

    def solve(codes, index, frames, back=2):
        seeds = jnp.array([5, 5])
        return dit_block.solve_windows(params, DIT, modulation, codes, index, frames, voice, seeds, OPTIONS, back=back)

    compiled = jax.jit(solve, static_argnames="back")

    def run(codes, index, frames=4 * FRAMES, **options):
        codes = jnp.broadcast_to(jnp.asarray(codes, jnp.int32), (2, len(codes)))
        return np.asarray(compiled(codes, jnp.full(2, index), jnp.full(2, frames), **options))

    return run


@pytest.fixture(scope="module")
def full(params, voice):
    """Mel [T, M] of whole utterances of the first voice, from the same noise."""

    @jax.jit
    def solve(codes):
        first = jax.tree.map(lambda a: a[:1], voice)
        noise = dit_block.window_noise(jnp.array([5]), jnp.array([0]), codes.shape[1] // SIZE, DIT)
        return dit.solve(params, DIT, noise, dit.condition(params, DIT, codes, first), OPTIONS)[0]

    return lambda codes: np.asarray(solve(jnp.asarray(codes, jnp.int32)[None]))


def some_codes(blocks, seed=0):
    return np.random.default_rng(seed).integers(0, DIT.num_embeds, blocks * SIZE)


def test_the_published_window_is_four_blocks():
    assert dit_block.context_blocks(DIT) == (2, 1)
    assert (dit_block.window_blocks(DIT), dit_block.block_codes(DIT), dit_carried.carried_blocks(DIT)) == (4, 12, 2)


@pytest.mark.parametrize("index, blocks_before", [(0, 0), (1, 1)])
def test_blocks_before_the_start_play_no_part(window, index, blocks_before):
    own = some_codes(blocks_before + 2)
    missing = (2 - blocks_before) * SIZE
    here = window(np.concatenate([np.zeros(missing, int), own]), index)
    np.testing.assert_array_equal(window(np.concatenate([np.full(missing, 9), own]), index), here)


def test_the_first_block_needs_no_room_for_a_past(window):
    own = some_codes(2)
    long = window(np.concatenate([np.zeros(2 * SIZE, int), own]), 0)
    np.testing.assert_allclose(window(own, 0, 2 * FRAMES, back=0), long, atol=1e-5)


@pytest.mark.parametrize("real", [2 * SIZE + 1, 2 * SIZE + 7, 3 * SIZE, 3 * SIZE + 5])
def test_codes_after_the_end_play_no_part_and_have_no_mel(window, real):
    codes, other = some_codes(4), some_codes(4, seed=1)
    other[:real] = codes[:real]
    mel = window(codes, 6, 2 * real)
    np.testing.assert_array_equal(window(other, 6, 2 * real), mel)
    own = min(2 * real - 2 * FRAMES, FRAMES)
    assert np.abs(mel[:, :own]).min(axis=(0, 2)).max() > 0 and not mel[:, own:].any()
    assert np.abs(window(codes, 6) - mel)[:, :own].max() > 1e-6  # where it ends is heard


def test_every_code_of_the_window_plays_a_part(window):
    codes = some_codes(4)
    mel = window(codes, 6)
    for block in range(4):
        other = codes.copy()
        other[block * SIZE : (block + 1) * SIZE] += 1
        assert np.abs(window(other, 6) - mel).max() > 0


def test_a_row_has_its_own_voice_and_place(window):
    codes = some_codes(4)
    mel = window(codes, 6)
    assert np.abs(mel[0] - mel[1]).max() > 0.1  # same codes, same noise, another voice
    assert np.abs(window(codes, 7) - mel).max() > 0.1  # other noise


def test_the_noise_is_that_of_the_whole_utterance():
    whole = dit_block.window_noise(jnp.array([5]), jnp.array([0]), 6, DIT)[0]
    part = dit_block.window_noise(jnp.array([7, 5]), jnp.array([-2, 2]), 4, DIT)
    np.testing.assert_array_equal(part[1], whole[2 * FRAMES :])
    assert np.isfinite(part).all()


def carry(params, voice, modulation, codes):
    """Mel [T, M] of the first voice, block after block."""

    @jax.jit
    def step(state, codes, frames):
        seeds = jnp.array([5, 5])
        return dit_carried.step(params, DIT, modulation, state, codes, frames, voice, seeds, OPTIONS)

    state, out = dit_carried.initial_state(DIT, OPTIONS, 2), []
    for start in range(0, len(codes), SIZE):
        own = codes[start : start + 2 * SIZE]
        both = jnp.broadcast_to(jnp.asarray(np.pad(own, (0, 2 * SIZE - len(own))), jnp.int32), (2, 2 * SIZE))
        state, mel = step(state, both, jnp.full(2, 2 * len(own)))
        out.append(mel[0])
    return np.concatenate(out)


def test_two_blocks_are_solved_as_the_whole(window, full, params, voice, modulation):
    """Neither decoder cuts anything off there: all that the first block and the second know of fits."""
    codes = some_codes(2)
    whole = full(codes)
    np.testing.assert_allclose(window(codes, 0, 2 * FRAMES, back=0)[0], whole[:FRAMES], atol=1e-4)
    second = window(np.concatenate([np.zeros(SIZE, int), codes, np.zeros(SIZE, int)]), 1, 3 * FRAMES)
    np.testing.assert_allclose(second[0], whole[FRAMES:], atol=1e-4)
    carried = carry(params, voice, modulation, codes)
    np.testing.assert_allclose(carried, whole, atol=1e-4)


def test_what_is_carried_is_the_exact_past(params, voice, modulation):
    """In a network that never looks ahead, carrying the past is solving the whole, to any depth."""
    blind = dataclasses.replace(DIT, look_ahead_layers=())
    codes = some_codes(5)
    first = jax.tree.map(lambda a: a[:1], voice)
    noise = dit_block.window_noise(jnp.array([5]), jnp.array([0]), 5, blind)
    conditioning = dit.condition(params, blind, jnp.asarray(codes, jnp.int32)[None], first)
    whole = np.asarray(dit.solve(params, blind, noise, conditioning, OPTIONS)[0])

    @jax.jit
    def step(state, codes):
        frames, seeds = jnp.array([FRAMES]), jnp.array([5])
        return dit_carried.step(params, blind, modulation, state, codes, frames, first, seeds, OPTIONS)

    state, out = dit_carried.initial_state(blind, OPTIONS, 1), []
    for start in range(0, len(codes), SIZE):
        state, mel = step(state, jnp.asarray(codes[start : start + SIZE], jnp.int32)[None])
        out.append(mel[0])
    np.testing.assert_allclose(np.concatenate(out), whole, atol=1e-4)


def test_a_step_wants_a_block_and_its_look_ahead(params, voice, modulation):
    state = dit_carried.initial_state(DIT, OPTIONS, 2)
    codes, frames = jnp.zeros((2, SIZE), jnp.int32), jnp.full(2, 48)
    with pytest.raises(ValueError, match="24 codes, not 12"):
        dit_carried.step(params, DIT, modulation, state, codes, frames, voice, jnp.zeros(2, jnp.int32), OPTIONS)
