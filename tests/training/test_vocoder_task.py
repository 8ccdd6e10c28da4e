"""The vocoder learns the sound of a mel; each side of the game gets only its own gradient."""

import dataclasses
from operator import itemgetter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.speech_batch import SoundedMel, empty_sounded_row, sounded_row, stacked
from omni_jax.config import BigVGANConfig, DiscriminatorConfig
from omni_jax.errors import ConfigError
from omni_jax.layers.spectrogram import log_mel
from omni_jax.models import bigvgan, discriminators
from omni_jax.training.vocoder_task import OWN_MEL, VocoderTask, mel_error, pieces
from tests.training.fitting import fit, random_params
from tests.training.spoken_sounds import recorded, voice

VOCODER = BigVGANConfig(
    upsample_initial_channel=64,
    upsample_rates=(15, 16),
    upsample_kernel_sizes=(31, 32),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
)
JUDGES = DiscriminatorConfig(
    periods=(2, 3), period_channels=(4, 8), resolutions=((256, 60, 200),), resolution_channels=4
)
TASK = VocoderTask(VOCODER, JUDGES, segment=16)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    sounds = [recorded(folder, str(i), voice(s, 24000, seed=i), 24000) for i, s in enumerate((0.3, 0.22))]
    return jax.tree.map(jnp.asarray, stacked([sounded_row(sound, 30) for sound in sounds]))


@pytest.fixture(scope="module")
def params():
    def boxed():
        return {
            "bigvgan": bigvgan.init_params(jax.random.key(0), VOCODER),
            "discriminator": discriminators.init_params(jax.random.key(1), JUDGES),
        }

    return random_params(nn.unbox(jax.eval_shape(boxed)))


@pytest.fixture(scope="module")
def slopes():
    """Gradients, of the whole loss and of two of its parts, with those means."""

    def means(params, batch):
        losses = TASK.loss(params, batch, jax.random.key(0))
        found = jnp.stack([losses.total.mean, losses.parts["adversarial"].mean, losses.parts["discriminator"].mean])
        return found, found

    return jax.jit(jax.jacrev(means, has_aux=True))


@pytest.fixture(scope="module")
def gradients(params, batch, slopes):
    rows, _ = slopes(params, batch)
    total, adversarial, discriminator = (jax.tree.map(itemgetter(i), rows) for i in range(3))
    return {None: total, "adversarial": adversarial, "discriminator": discriminator}


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_each_side_gets_only_its_own_gradient(gradients):
    assert largest(gradients["adversarial"]["discriminator"]) == 0 < largest(gradients["adversarial"]["bigvgan"])
    assert largest(gradients["discriminator"]["bigvgan"]) == 0 < largest(gradients["discriminator"]["discriminator"])
    for ours, own in zip(
        jax.tree.leaves(gradients[None]["discriminator"]), jax.tree.leaves(gradients["discriminator"]["discriminator"])
    ):
        np.testing.assert_allclose(ours, own, rtol=1e-3, atol=1e-5)


def test_the_sound_of_two_recordings_is_learnt(params, batch):
    hop = bigvgan.samples_per_frame(VOCODER)
    speak = jax.jit(lambda params: bigvgan.BigVGAN(VOCODER).apply({"params": params["bigvgan"]}, batch.mel))

    def error(params):  # of the row that has no silence
        return float(mel_error(speak(params), batch.waveform, (OWN_MEL,))[0])

    before = error(params)
    after, means = fit(TASK.loss, params, batch, steps=150, learning_rate=4e-3)
    assert means["mel"] < 1.0
    assert error(after) < min(1.0, 0.5 * before)
    assert 0 < means["discriminator"] < 3  # it has been learning too: 3 judges that say 0 to all lose 1 each
    assert speak(after).shape == (2, 30 * hop)


def test_the_mel_and_the_sound_of_a_piece_belong_together(batch):
    mel, sound = pieces(batch, 16, 240, jax.random.key(1))
    again = np.asarray(log_mel(sound, OWN_MEL))
    np.testing.assert_allclose(again[:, 4:-4], mel[:, 4:-4], atol=0.05)  # near the floor; elsewhere far less
    np.testing.assert_allclose(np.exp(again[:, 4:-4]), np.exp(mel[:, 4:-4]), atol=1e-5)


def test_pieces_lie_within_their_rows_and_reach_every_place():
    length, rows = np.array([20, 16, 9]), 3
    mel = jnp.broadcast_to(jnp.arange(24.0)[None, :, None], (rows, 24, 1))
    numbered = SoundedMel(mel, jnp.repeat(mel[..., 0], 240, axis=1), jnp.asarray(length))
    cut = jax.jit(lambda key: pieces(numbered, 16, 240, key)[0][:, 0, 0])
    starts = np.stack([cut(jax.random.key(seed)) for seed in range(60)])
    assert set(starts[:, 0]) == {0, 1, 2, 3, 4}
    assert set(starts[:, 1]) == set(starts[:, 2]) == {0}  # too short a row goes on in silence


def test_a_row_of_no_length_does_not_count(params, batch):
    loss = jax.jit(TASK.loss)
    one = loss(params, dataclasses.replace(batch, lengths=batch.lengths.at[1].set(0)), jax.random.key(0))
    other = dataclasses.replace(
        batch, lengths=batch.lengths.at[1].set(0), waveform=batch.waveform.at[1].set(0.5), mel=batch.mel.at[1].set(0)
    )
    other = loss(params, other, jax.random.key(0))
    assert one.total.weight == other.total.weight == 1
    np.testing.assert_allclose(one.total.loss, other.total.loss, rtol=1e-5)


def test_rows_of_padding_leave_gradients_finite(params, batch, slopes):
    """Silence must have a slope, though a logarithm and a root are taken of it."""
    padding = empty_sounded_row(30)
    empty = jax.tree.map(lambda leaf, none: leaf.at[1].set(none), batch, padding)
    gradient, means = slopes(params, empty)
    assert means[0] > 0 and all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradient))
    gradient, means = slopes(params, stacked([padding, padding]))
    assert (means == 0).all() and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_a_piece_too_short_for_the_longest_transform_is_refused():
    with pytest.raises(ConfigError, match="at least 7"):
        VocoderTask(VOCODER, JUDGES, segment=6)
    with pytest.raises(ConfigError, match="at least 9"):
        VocoderTask(VOCODER, DiscriminatorConfig(), segment=8)
    with pytest.raises(ConfigError, match="60 samples"):
        VocoderTask(dataclasses.replace(VOCODER, upsample_rates=(15, 4), upsample_kernel_sizes=(31, 8)), JUDGES)
