"""Spectrograms on the device are those of the host, and discriminators see every sample."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soxr

from input_pipeline.speech_mel import MEL_16K, MEL_24K, speech_mel
from input_pipeline.voice_mel import voice_mel
from omni_jax.config import DiscriminatorConfig, SpeechMelConfig
from omni_jax.config_json import read_config, write_config
from omni_jax.errors import MediaError
from omni_jax.layers.spectrogram import frames_of, log_mel, magnitudes
from omni_jax.models.discriminators import Tower, init_params, judge
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset
from tests.training.fitting import random_params
from tests.training.spoken_sounds import voice

TINY = DiscriminatorConfig(periods=(2, 3), period_channels=(4, 8), resolutions=((256, 60, 200),), resolution_channels=4)
FULL_BAND = SpeechMelConfig(n_fft=1024, win_length=1024, num_mel_bins=100, fmax=12000.0)


@pytest.mark.parametrize("config", [MEL_24K, MEL_16K, FULL_BAND], ids=["24 kHz", "16 kHz", "full band"])
def test_the_mel_of_the_device_is_that_of_librosa(config):
    sound = voice(0.5, config.sampling_rate)
    ours, expected = np.asarray(log_mel(jnp.asarray(sound[None]), config))[0], speech_mel(sound, config)
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), atol=3e-6 * np.exp(expected).max())
    # near the floor a logarithm shows what a transform in single precision does not know
    np.testing.assert_allclose(ours, expected, atol=0.05)
    np.testing.assert_allclose(ours[expected > -8], expected[expected > -8], atol=2e-3)
    assert ours.shape == (50, config.num_mel_bins)


@pytest.mark.parametrize(("n_fft", "hop", "window"), [(1024, 120, 600), (512, 50, 240), (256, 256, 256)])
def test_magnitudes_are_those_of_librosa(n_fft, hop, window):
    sound = voice(0.2, 24000)[: 4800 // hop * hop]
    padded = np.pad(sound, ((n_fft - hop) // 2, n_fft - hop - (n_fft - hop) // 2), mode="reflect")
    expected = np.abs(librosa.stft(padded, n_fft=n_fft, hop_length=hop, win_length=window, center=False)).T
    ours = np.asarray(magnitudes(jnp.asarray(sound[None]), n_fft, hop, window))[0]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_frames_lie_a_hop_apart_about_their_own_middle():
    frames = np.asarray(frames_of(jnp.arange(12.0)[None], 6, 4))[0]
    np.testing.assert_array_equal(frames, [[1, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [7, 8, 9, 10, 11, 10]])


def test_the_mel_of_speech_is_that_of_a_voice_and_the_same_at_both_rates():
    """So that the reference mel, the DiT's mel and the vocoder's input are of one kind."""
    sound = soxr.resample(voice(2.0, 24000), 24000, 16000).astype(np.float32)
    again = soxr.resample(sound, 16000, 24000)[:48000]
    at_16k, at_24k = speech_mel(sound, MEL_16K), speech_mel(again)
    np.testing.assert_array_equal(at_16k, voice_mel(sound))
    assert at_24k.shape == at_16k.shape
    inner = np.abs(at_24k - at_16k)[4:-4, :74]  # without the resampler's edges and its slope below 8 kHz
    assert inner.mean() < 0.01 and inner.max() < 0.3


def test_silence_is_the_floor_and_has_a_slope():
    silence = jnp.zeros((1, 4800))
    np.testing.assert_allclose(log_mel(silence, MEL_24K), np.log(1e-5), atol=1e-5)
    slope = jax.jit(jax.grad(lambda x: magnitudes(x, 256, 60, 200).sum()))(silence)
    assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.parametrize("sound", [np.zeros(500), np.full(9600, np.nan)], ids=["short", "not finite"])
def test_sound_without_a_mel_is_refused(sound):
    with pytest.raises(MediaError):
        speech_mel(sound)


@pytest.fixture(scope="module")
def discriminator():
    params = random_params(nn.unbox(jax.eval_shape(lambda: init_params(jax.random.key(0), TINY))))
    return params, jax.jit(lambda params, x: judge(params, TINY, x))


def test_each_discriminator_scores_each_row_by_itself(discriminator):
    params, judged = discriminator
    sound = jnp.asarray(np.stack([voice(0.05, 24000, seed=seed) for seed in (0, 1)]))
    both, other = judged(params, sound), judged(params, sound.at[1].set(0))
    assert len(both.scores) == len(both.features) == 3
    for ours, changed in zip(jax.tree.leaves(both), jax.tree.leaves(other)):
        np.testing.assert_allclose(ours[0], changed[0], rtol=1e-5, atol=1e-6)
    assert all((one[1] != two[1]).any() for one, two in zip(both.scores, other.scores))


def test_every_sample_counts_for_every_discriminator(discriminator):
    """Of 1201 samples, which no period divides; a spectrogram has whole hops of 60."""
    params, _ = discriminator

    @jax.jit
    def slopes(sound):
        return jax.jacrev(lambda x: jnp.stack([jnp.sum(s**2) for s in judge(params, TINY, x).scores]))(sound)

    moved = np.asarray(slopes(jnp.asarray(voice(0.1, 24000)[:1201][None])))[:, 0] != 0
    assert moved[:2].all() and moved[2, :1200].all()


def test_spectrograms_are_seen_widely_and_shortened_along_time_and_keep_their_bins():
    """BigVGAN: kernels 9 wide and 2 apart in time, 3 wide in frequency, which [frequency, time] lists as (3, 9)."""
    layers = ((1, (9, 3), (1, 1)), (1, (9, 3), (2, 1)), (1, (9, 3), (2, 1)), (1, (9, 3), (2, 1)))
    judges = dataclasses.replace(TINY, periods=(), resolutions=((256, 60, 200),), resolution_channels=1)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(jax.random.key(0), judges)))["resolution_256_60"]
    kernels = [shapes[f"conv_{i}"]["kernel"].shape[:2] for i in range(6)]
    assert kernels == [(9, 3)] * 4 + [(3, 3)] * 2
    params = random_params({"resolution_256_60": shapes})
    judged = jax.jit(lambda x: judge(params, judges, x))(jnp.zeros((1, 9600)))
    sizes = [feature.shape[1:3] for feature in judged.features[0]]
    assert sizes == [(160, 129), (80, 129), (40, 129), (20, 129), (20, 129), (20, 129)]  # [time, bins]

    # what one place of the fourth layer sees: 1 + 8 · (1 + 1 + 2 + 4) frames, 1 + 2 · 4 bins
    ones = jax.tree.map(jnp.ones_like, random_params({f"conv_{i}": shapes[f"conv_{i}"] for i in range(4)}))
    tower = Tower(layers, jnp.float32)
    seen = jax.jacrev(lambda x: tower.apply({"params": ones}, x)[1][-1][0, 10, 64, 0])(jnp.zeros((1, 160, 129, 1)))
    frames, bins = np.nonzero(np.asarray(seen)[0, ..., 0])[:2]
    assert (np.ptp(frames) + 1, np.ptp(bins) + 1) == (65, 9)


def test_the_length_of_a_kernel_is_its_scale(discriminator):
    params, judged = discriminator
    sound = jnp.asarray(voice(0.05, 24000)[None])
    longer = jax.tree_util.tree_map_with_path(lambda p, x: x * 3 if p[-1].key == "kernel" else x, params)
    for ours, same in zip(judged(params, sound).scores, judged(longer, sound).scores):
        np.testing.assert_allclose(ours, same, rtol=1e-4, atol=1e-6)


def test_the_default_is_that_of_the_papers_and_the_configuration_can_say_otherwise(tmp_path):
    config = preset("tiny")
    _, shapes = logical_axes(config, ["discriminator"])
    towers = shapes["discriminator"]
    assert sorted(towers) == sorted(
        [*(f"period_{p}" for p in (2, 3, 5, 7, 11)), "resolution_1024_120", "resolution_2048_240", "resolution_512_50"]
    )
    assert towers["period_2"]["conv_4"]["kernel"].shape == (5, 1, 1024, 1024)
    small = dataclasses.replace(config, discriminator_config=TINY)
    write_config(small, tmp_path)
    assert read_config(tmp_path) == small
    names, shapes = logical_axes(small, ["discriminator"])
    assert len(shapes["discriminator"]) == 3
    is_names = dict(is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert jax.tree.structure(jax.tree.map(len, names, **is_names)) == jax.tree.structure(shapes)
