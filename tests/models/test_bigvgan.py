"""The vocoder equals the published one, row by row, and its receptive field is the declared one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omni_jax.config import BigVGANConfig
from omni_jax.interop import table_token2wav
from omni_jax.interop.weight_table import flatten, jax_shapes, torch_shapes
from omni_jax.models.bigvgan import BigVGAN, init_params, normalise_log_mel, receptive_field_frames, samples_per_frame
from tests.models.token2wav_reference import BIGVGAN, meta_state, our_params, published_model

# Every kind of layer, few of each: most of the time goes into compiling.
TINY = BigVGANConfig(
    mel_dim=4,
    upsample_initial_channel=32,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(7, 4),
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 3), (2,)),
)


FRAMES = 73  # of the small model: the receptive field and two frames on either side of the middle


def log_mel(batch, frames, config=BIGVGAN, seed=0):
    return np.random.default_rng(seed).normal(-4, 3, (batch, frames, config.mel_dim)).astype(np.float32)


def test_mel_is_normalised_as_published():
    mel = jnp.array([0.0, -5.0, 2.302586, 9.0, -10.95, -40.0]).reshape(1, 1, -1)
    np.testing.assert_allclose(normalise_log_mel(mel)[0, 0], [0.65217, -0.10312, 1, 1, -1, -1], atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return published_model(BIGVGAN)


@pytest.fixture(scope="module")
def vocoder(model):
    variables = {"params": our_params(model, BIGVGAN)["bigvgan"]}
    return jax.jit(lambda mel: BigVGAN(BIGVGAN).apply(variables, mel))


def test_the_waveform_matches(model, vocoder):
    mel = log_mel(1, FRAMES)
    with torch.no_grad():
        want = model(torch.tensor(mel).transpose(1, 2)).numpy()
    ours = vocoder(mel)
    assert ours.shape == (1, FRAMES * 240)
    assert 0.05 < want.std() < 0.6  # neither silent nor saturated
    np.testing.assert_allclose(ours[0], want, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    params = jax.jit(lambda key: init_params(key, TINY))(jax.random.key(0))
    return jax.jit(lambda mel, lengths=None: BigVGAN(TINY).apply({"params": params}, mel, lengths))


def test_a_row_in_a_batch_is_what_it_is_alone(tiny):
    lengths = [1, 20, 13]
    mel = log_mel(3, 20, TINY)
    together = tiny(mel, jnp.array(lengths))
    for row, length in enumerate(lengths):
        samples = length * samples_per_frame(TINY)
        np.testing.assert_allclose(together[row, :samples], tiny(mel[row : row + 1, :length])[0], atol=1e-5)
        assert not together[row, samples:].any()


def test_what_lies_beyond_a_row_cannot_be_heard(tiny):
    mel = log_mel(1, 20, TINY)
    dirty = mel.copy()
    dirty[:, 9:] = np.nan
    np.testing.assert_array_equal(tiny(mel, jnp.array([9])), tiny(dirty, jnp.array([9])))


def touched_frames(vocoder, config, frames, at):
    """Frames whose samples a not-a-number in one mel frame reaches: it spreads as far as the arithmetic does."""
    mel = np.zeros((1, frames, config.mel_dim), np.float32)
    mel[0, at] = np.nan
    wave = np.asarray(vocoder(mel)).reshape(frames, -1)
    return np.flatnonzero(np.isnan(wave).any(axis=1))


def test_the_declared_receptive_field_is_the_true_one(vocoder):
    field = receptive_field_frames(BIGVGAN)
    assert field == receptive_field_frames(BigVGANConfig()) == 34  # channels play no part
    touched = touched_frames(vocoder, BIGVGAN, FRAMES, FRAMES // 2)
    assert (touched[0] - FRAMES // 2, touched[-1] - FRAMES // 2) == (-field, field)


def test_a_crop_with_the_receptive_field_around_it_is_exact(tiny):
    field, hop = receptive_field_frames(TINY), samples_per_frame(TINY)
    frames = 2 * field + 40
    mel = log_mel(1, frames, TINY)
    whole = tiny(mel).reshape(-1, hop)
    start, stop = field + 8, frames - field - 8
    crop = tiny(mel[:, start - field : stop + field]).reshape(-1, hop)
    np.testing.assert_allclose(crop[field:-field], whole[start:stop], atol=1e-6)
    touched = touched_frames(tiny, TINY, frames, frames // 2)
    assert touched[-1] - frames // 2 == field


def test_the_trace_holds_every_stage():
    def traced(mel):
        return BigVGAN(TINY).apply({"params": init_params(jax.random.key(0), TINY)}, mel, trace=True)

    waveform, stages = jax.eval_shape(traced, log_mel(1, 5, TINY))
    assert [stage.shape for stage in stages] == [(1, 15, 16), (1, 30, 8)]
    assert waveform.shape == (1, 30)


@pytest.mark.parametrize("config", [BIGVGAN, BigVGANConfig()], ids=["small", "published"])
def test_the_table_covers_every_tensor_and_no_other(config):
    table = table_token2wav.bigvgan(config)
    assert torch_shapes(table) == meta_state(config)

    tree = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    tree = jax.tree.map(lambda box: box.value.shape, tree, is_leaf=lambda leaf: hasattr(leaf, "names"))
    assert {f"bigvgan/{path}": shape for path, shape in flatten(tree)} == jax_shapes(table)


def test_the_published_size():
    table = table_token2wav.bigvgan(BigVGANConfig())
    assert (len(torch_shapes(table)), sum(entry.size for entry in table)) == (449, 115_443_504)
