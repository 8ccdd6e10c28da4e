"""The flow that is learnt is the flow that is solved, and a small DiT learns codes by heart."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.speech_batch import empty_voiced_row, stacked, voiced_row
from input_pipeline.speech_mel import speech_mel
from omni_jax.errors import DataError
from omni_jax.models import dit
from omni_jax.models.flow import FlowOptions
from omni_jax.presets import preset
from omni_jax.training.token2wav_task import FlowMatchingTask, null_where
from tests.training.fitting import fit, random_params
from tests.training.spoken_sounds import TONES, recorded, sound_of_codes

# Wider than a frame of mel: noise has to pass through it.
CONFIG = dataclasses.replace(
    preset("tiny").token2wav_config.dit_config,
    hidden_size=128,
    head_dim=32,
    num_hidden_layers=2,
    look_ahead_layers=(1,),
    look_backward_layers=(0,),
    dropout=0.0,  # two utterances are to be learnt by heart
)
TASK = FlowMatchingTask(CONFIG, remat=False)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two utterances of 24 and 19 codes, from wav files at 24 kHz."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    clips = []
    for row, count in enumerate((24, 19)):
        codes = rng.integers(0, TONES, count)
        sound = recorded(folder, str(row), sound_of_codes(codes, 24000, noise=0), 24000)
        reference = speech_mel(sound_of_codes(rng.integers(0, TONES, 25), 24000, noise=0))
        clips.append(voiced_row(codes + 1, sound, reference, rng.normal(size=CONFIG.enc_emb_dim), 24))
    return jax.tree.map(jnp.asarray, stacked(clips))


@pytest.fixture(scope="module")
def shapes():
    return nn.unbox(jax.eval_shape(lambda: dit.init_params(jax.random.key(0), CONFIG)))


@pytest.fixture(scope="module")
def params(shapes):
    return random_params(shapes)


@pytest.fixture(scope="module")
def errors():
    return jax.jit(lambda params, t, noise, told, batch: TASK.errors(params, batch, jnp.full(2, t), noise, told))


def test_two_utterances_are_learnt_and_come_back_from_their_codes(batch):
    fresh = nn.unbox(jax.jit(dit.init_params, static_argnums=1)(jax.random.key(0), CONFIG))
    often = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 4), batch)  # more noise and times a step
    params, means = fit(TASK.loss, fresh, often, steps=800, learning_rate=4e-3)
    assert means["total"] < 1.2  # that of the noise alone; 37 at the start
    truth, real = np.asarray(batch.mel), np.arange(48) < np.asarray(batch.lengths)[:, None]

    @jax.jit
    def sample(codes):
        options = FlowOptions("euler", 10)
        inputs = codes, batch.speaker, batch.ref_mel
        return dit.sample_full(params, CONFIG, *inputs, key=jax.random.key(9), lengths=batch.lengths, options=options)

    def distance(mel):
        return np.abs(mel - truth)[real].mean()

    made = np.asarray(sample(batch.codes))
    swapped = np.asarray(sample(batch.codes[:, ::-1]))
    blind = np.broadcast_to(truth[real].mean(axis=0), truth.shape)
    assert distance(made) < 0.9
    assert distance(made) < 0.65 * distance(blind)  # it is the codes that say what sounds
    assert distance(made) < 0.5 * distance(swapped)
    assert (made[~real] == 0).all()


def test_the_target_at_the_start_and_the_end_is_the_same_direction(params, batch, errors):
    """Where the network's velocity is known, the error is its distance from mel - noise, at any time."""
    noise = jax.random.normal(jax.random.key(0), batch.mel.shape)
    told = jnp.array([True, True])
    conditioning = null_where(~told, params, CONFIG, batch)
    for t in (0.0, 0.3, 1.0):
        x = (1 - t) * noise + t * batch.mel
        valid = dit.frame_mask(batch.lengths, x.shape[1])
        velocity = dit.velocity(params, CONFIG, x, jnp.full(2, t), conditioning, valid=valid)
        expected = np.mean(np.square(velocity - (batch.mel - noise)), axis=-1)
        np.testing.assert_allclose(errors(params, t, noise, told, batch), expected, rtol=2e-4, atol=1e-4)


def test_a_row_that_is_told_nothing_is_the_null_branch_of_guidance(params, batch):
    voice = dit.make_voice(params, CONFIG, batch.speaker, batch.ref_mel)
    used = dit.condition(params, CONFIG, batch.codes, voice)
    ours = null_where(jnp.array([True, False]), params, CONFIG, batch)
    null = np.broadcast_to(used.null, ours.conditional[0].shape)
    np.testing.assert_allclose(ours.conditional[0], null, atol=1e-4 * np.abs(null).max())
    np.testing.assert_allclose(ours.conditional[1], used.conditional[1], rtol=1e-4, atol=1e-4 * np.abs(null).max())


def test_what_lies_beyond_an_utterance_changes_nothing(params, batch, errors):
    noise = jax.random.normal(jax.random.key(0), batch.mel.shape)
    told, length = jnp.array([True, True]), int(batch.lengths[1])
    codes, mel = batch.codes.at[1, length // 2 :].set(5), batch.mel.at[1, length:].set(3.0)
    other = dataclasses.replace(batch, codes=codes, mel=mel)
    first, second = (errors(params, 0.4, noise, told, each) for each in (batch, other))
    np.testing.assert_allclose(first[1, :length], second[1, :length], rtol=1e-5)
    task = jax.jit(TASK.loss)
    one, two = (task(params, each, jax.random.key(0)).total for each in (batch, other))
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)
    assert one.weight == batch.lengths.sum()


def test_a_row_of_no_length_does_not_count_and_leaves_gradients_finite(params, batch):
    padding = empty_voiced_row(24, batch.ref_mel.shape[1], CONFIG.enc_emb_dim)
    empty = jax.tree.map(lambda leaf, none: leaf.at[1].set(none), batch, padding)
    loud = dataclasses.replace(empty, mel=empty.mel.at[1].set(3.0), ref_mel=empty.ref_mel.at[1].set(-1.0))

    @jax.jit
    def slopes(params, batch):
        def mean(params):
            total = TASK.loss(params, batch, jax.random.key(0)).total
            return total.mean, total

        return jax.grad(mean, has_aux=True)(params)

    (gradient, one), (same, two) = slopes(params, empty), slopes(params, loud)
    assert one.weight == two.weight == batch.lengths[0]
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(same)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max() + 1e-8)  # a NaN is no number
    gradient, none = slopes(params, stacked([padding, padding]))
    assert none.mean == 0 and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_training_drops_out_and_the_key_says_what(params, batch):
    task = dataclasses.replace(TASK, config=dataclasses.replace(CONFIG, dropout=0.5))
    key, loss = jax.random.key(0), jax.jit(task.loss)
    dropped = loss(params, batch, key).total.loss
    assert dropped == loss(params, batch, key).total.loss
    assert abs(dropped / jax.jit(TASK.loss)(params, batch, key).total.loss - 1) > 1e-3  # of the same noise and times


def test_a_fifth_of_the_rows_is_told_nothing_and_the_parts_add_up(params, batch):
    rows = 64
    many = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1]] * rows), batch)
    losses = jax.jit(TASK.loss)(params, many, jax.random.key(3))
    parts = losses.parts
    frames = int(batch.lengths[0])
    assert 4 * frames < parts["null"].weight < 24 * frames
    assert parts["null"].weight + parts["conditional"].weight == losses.total.weight == rows * frames
    np.testing.assert_allclose(parts["null"].loss + parts["conditional"].loss, losses.total.loss, rtol=1e-5)
    again = jax.jit(TASK.loss)(params, many, jax.random.key(3))
    assert again.total.loss == losses.total.loss


def test_codes_that_are_not_of_the_sound_are_refused(batch):
    with pytest.raises(DataError, match="10 codes and 9600 samples at 24 kHz"):
        voiced_row(
            np.ones(10, int), np.zeros(9600, np.float32), *map(np.asarray, (batch.ref_mel[0], batch.speaker[0])), 24
        )
