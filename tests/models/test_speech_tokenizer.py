"""The quantiser counts without gaps, codes know only their block, and checkpoints keep a tokenizer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from omni_jax.config_json import read_config, write_config
from omni_jax.errors import CheckpointError, ConfigError
from omni_jax.interop.restore import load_checkpoint_info, restore_params
from omni_jax.layers import fsq
from omni_jax.models import speech_tokenizer as tokenizer
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset, speech_tokenizer_preset
from tests.training.fitting import random_params

LEVELS = (8, 8, 8, 16)
ROUTES = ("inversion", "scratch")


def test_codes_and_vectors_are_one_to_one_over_the_whole_codebook():
    codes = jnp.arange(8192)
    vectors = fsq.vectors_of(codes, LEVELS)
    assert len(np.unique(np.asarray(vectors), axis=0)) == 8192
    np.testing.assert_array_equal(fsq.codes_of(vectors, LEVELS), codes)
    np.testing.assert_array_equal(vectors[:2], [[-1, -1, -1, -1], [-0.75, -1, -1, -1]])


def test_every_code_can_be_reached_and_quantising_gives_its_vector():
    grids = [np.arctanh(np.clip((np.arange(n) - n // 2 + 0.5) / ((n - 1) / 2), -0.999, 0.999)) for n in LEVELS]
    x = np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 4)
    shift = [np.arctanh(0.5 / ((n - 1) * 0.999 / 2)) for n in LEVELS]
    quantised = fsq.quantise(jnp.asarray(x - np.asarray(shift)), LEVELS)
    codes = np.asarray(fsq.codes_of(quantised, LEVELS))
    np.testing.assert_array_equal(np.sort(codes), np.arange(8192))
    np.testing.assert_allclose(quantised, fsq.vectors_of(jnp.asarray(codes), LEVELS), atol=1e-6)


def test_zero_is_a_level_and_the_levels_are_all_that_comes_out():
    np.testing.assert_array_equal(fsq.quantise(jnp.zeros((1, 4)), LEVELS), 0)
    out = np.asarray(fsq.quantise(10 * jax.random.normal(jax.random.key(0), (4096, 4)), LEVELS))
    for channel, count in enumerate(LEVELS):
        assert np.allclose(np.unique(out[:, channel]), (np.arange(count) - count // 2) / (count // 2), atol=1e-6)


@pytest.mark.parametrize("levels", [(2,), (2, 2, 2), (2, 3, 16)])
def test_two_levels_are_the_sign_and_every_code_can_be_reached(levels):
    x = 3 * jax.random.normal(jax.random.key(0), (4096, len(levels)))
    slopes = jax.vmap(jax.grad(lambda v: fsq.quantise(v, levels).sum()))(x)
    quantised = fsq.quantise(x, levels)
    assert np.isfinite(np.asarray(slopes)).all() and np.asarray(slopes).max() > 0.1
    np.testing.assert_array_equal(quantised[:, 0], np.where(x[:, 0] < 0, -1, 0))
    codes = fsq.codes_of(quantised, levels)
    assert len(np.unique(np.asarray(codes))) == np.prod(levels)
    np.testing.assert_allclose(quantised, fsq.vectors_of(codes, levels), atol=1e-6)


def test_a_channel_of_one_level_is_refused():
    with pytest.raises(ConfigError, match="two levels at least"):
        fsq.quantise(jnp.zeros((1, 2)), (8, 1))


def test_gradients_pass_the_rounding_as_if_it_were_not_there():
    x = jax.random.normal(jax.random.key(0), (64, 4))
    slope = np.asarray(jax.vmap(jax.grad(lambda v: fsq.quantise(v, LEVELS).sum()))(x))
    assert (slope > 0).all()  # rounding alone would have no slope at all
    assert slope.max() <= 1


@pytest.fixture(scope="module", params=ROUTES)
def model(request):
    """Configuration, parameters with clear differences, and the jitted map from mel blocks to codes."""
    config = speech_tokenizer_preset("tiny", request.param)
    params = random_params(nn.unbox(jax.eval_shape(lambda: tokenizer.init_params(jax.random.key(0), config))))
    return config, params, jax.jit(lambda mel, frames: tokenizer.codes(params, config, mel, frames))


def mel(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 200, 128)), jnp.float32)


def test_there_is_a_code_for_every_20_ms_and_none_where_nothing_sounds(model):
    config, _, codes = model
    out = np.asarray(codes(mel(2, 2), jnp.array([[200, 200], [33, 0]])))
    assert out.shape == (2, 200)
    assert (out[0] >= 0).all() and out.max() < config.num_codes
    assert (out[1, :17] >= 0).all() and (out[1, 17:] == tokenizer.NO_CODE).all()  # an odd last frame has a code
    assert len(np.unique(out[0])) > 10


def test_what_lies_beyond_the_sound_changes_nothing(model):
    _, _, codes = model
    frames = jnp.array([[200, 41], [7, 0]])
    one = mel(2, 2)
    other = jnp.where((jnp.arange(200) < frames[..., None])[..., None], one, 9.0)
    np.testing.assert_array_equal(codes(one, frames), codes(other, frames))


def test_a_block_does_not_hear_the_others(model):
    _, _, codes = model
    frames = jnp.full((2, 2), 200)
    one, other = mel(2, 2), mel(2, 2).at[:, 1].add(1.0)
    first, second = np.asarray(codes(one, frames)), np.asarray(codes(other, frames))
    np.testing.assert_array_equal(first[:, :100], second[:, :100])
    assert (first[:, 100:] != second[:, 100:]).any()


@pytest.mark.parametrize("route", ROUTES)
def test_it_can_start_from_an_audio_encoder(route):
    config = dataclasses.replace(preset("tiny").thinker_config.audio_config, encoder_layers=3)
    audio = jax.eval_shape(
        lambda: AudioEncoder(config).init(jax.random.key(0), jnp.zeros((1, 200, 128)), jnp.array([200]))
    )
    audio = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), nn.unbox(audio)["params"])
    ours = speech_tokenizer_preset("tiny", route)
    fresh = nn.unbox(jax.eval_shape(lambda: tokenizer.init_params(jax.random.key(0), ours)))
    taken = tokenizer.from_audio_encoder(fresh, audio, ours)
    assert jax.tree.structure(taken) == jax.tree.structure(fresh)
    assert jax.tree.map(lambda leaf: leaf.shape, taken) == jax.tree.map(lambda leaf: leaf.shape, fresh)
    depth = [len(taken[name]["mlp"]["up"]["kernel"]) for name in ("layers", "upper_layers") if name in taken]
    assert depth == ([3] if route == "inversion" else [1, 2])
    new = {
        name for name in taken if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(taken[name]))
    }
    assert not new & {"conv1", "conv2", "layers", "upper_layers", "final_norm"}


def test_use_of_the_codebook_is_counted():
    counts = tokenizer.code_counts(jnp.array([[0, 0, 1], [1, -1, -1]]), 8)
    np.testing.assert_array_equal(counts, [2, 2, 0, 0, 0, 0, 0, 0])
    share, perplexity = tokenizer.codebook_use(counts)
    assert share == 0.25 and perplexity == pytest.approx(2)
    assert tokenizer.codebook_use(jnp.ones(8))[1] == pytest.approx(8)
    assert tokenizer.codebook_use(jnp.zeros(8)) == (0, 1)


def test_the_published_size_is_that_of_the_audio_encoder_it_starts_from():
    config = dataclasses.replace(preset("qwen2.5-omni-7b"), speech_tokenizer_config=speech_tokenizer_preset("large"))
    _, shapes = logical_axes(config, ["audio_encoder", "speech_tokenizer"])
    assert jax.tree.map(lambda leaf: leaf.shape, shapes["audio_encoder"]["layers"]) == jax.tree.map(
        lambda leaf: leaf.shape, shapes["speech_tokenizer"]["layers"]
    )
    assert shapes["speech_tokenizer"]["head"]["kernel"].shape == (1280, 8192)


def test_a_tokenizer_that_the_configuration_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="speech_tokenizer_preset"):
        logical_axes(preset("tiny"), ["speech_tokenizer"])
    with pytest.raises(ConfigError, match="route"):
        speech_tokenizer_preset("tiny", "guessing")


@pytest.mark.parametrize("route", ROUTES)
def test_a_checkpoint_keeps_its_tokenizer(tmp_path, route):
    config = dataclasses.replace(preset("tiny"), speech_tokenizer_config=speech_tokenizer_preset("tiny", route))
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    _, shapes = logical_axes(config, ["speech_tokenizer"])
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.25, np.float32), shapes)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
    info = load_checkpoint_info(tmp_path)
    assert info.components == ("speech_tokenizer",)
    restored = restore_params(tmp_path, config)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    other = "scratch" if route == "inversion" else "inversion"
    wrong = dataclasses.replace(config, speech_tokenizer_config=speech_tokenizer_preset("tiny", other))
    with pytest.raises(CheckpointError, match="speech_tokenizer/"):
        restore_params(tmp_path, wrong)
    with pytest.raises(CheckpointError, match="no such component"):
        restore_params(tmp_path, preset("tiny"))
