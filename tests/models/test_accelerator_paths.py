"""What the models hand to the kernels of an accelerator gives what they compute on a CPU.

The kernels themselves are held to their references in tests/kernels; here they run in models whose heads are as wide as
the kernels take them, in Pallas' interpreter.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from input_pipeline.packing import pack_audio, pack_vision
from input_pipeline.patches import Patches
from omni_jax.kernels.target import Target, assume_target
from omni_jax.layers.block_attention import block_attention
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.logical_axes import logical_axes
from omni_jax.models.thinker import Thinker, thinker_cache
from omni_jax.models.vision_encoder import VisionEncoder
from omni_jax.presets import preset
from omni_jax.sampling.generate import vision_layout

_TINY = preset("tiny").thinker_config
# one layer of each kind; two heads of 64
CONFIG = dataclasses.replace(
    _TINY,
    audio_config=dataclasses.replace(
        _TINY.audio_config, d_model=128, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64
    ),
    vision_config=dataclasses.replace(
        _TINY.vision_config, depth=2, hidden_size=128, num_heads=2, fullatt_block_indexes=(1,)
    ),
    text_config=dataclasses.replace(
        _TINY.text_config,
        vocab_size=64,
        hidden_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(8, 12, 12),
    ),
)


@pytest.fixture(scope="module")
def params():
    config = dataclasses.replace(preset("tiny"), thinker_config=CONFIG)
    _, shapes = logical_axes(config, ["thinker", "audio_encoder", "vision_encoder"])
    keys = iter(jax.random.split(jax.random.key(0), 200))
    return jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape), shapes)


@contextlib.contextmanager
def on_tpu():
    jax.clear_caches()  # which do not know the target
    with assume_target(Target("tpu", "v5e")), pltpu.force_tpu_interpret_mode():
        yield
    jax.clear_caches()


def agree(function, rows=slice(None)):
    """`function` gives the same on a CPU and with the paths of a TPU."""
    here = np.asarray(jax.jit(lambda: function())())
    with on_tpu():
        traced = jax.jit(lambda: function()).trace()
        assert "pallas_call" in str(traced.jaxpr)
        there = np.asarray(traced.lower().compile()())
    assert np.isfinite(here[rows]).all()
    np.testing.assert_allclose(there[rows], here[rows], atol=2e-5 * np.abs(here[rows]).max())


def test_audio_blocks_of_unlike_lengths(params):
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(128, frames)).astype(np.float32) for frames in (450, 3, 200)]
    batch = pack_audio(clips, CONFIG.audio_config)
    variables = {"params": params["audio_encoder"]}

    def encode():
        tokens, _ = AudioEncoder(CONFIG.audio_config).apply(
            variables, jnp.asarray(batch.mel), jnp.asarray(batch.frames)
        )
        return tokens.reshape(-1, tokens.shape[-1])

    agree(encode, batch.rows)


def test_windows_and_frames_of_pictures_of_unlike_sizes(params):
    rng = np.random.default_rng(0)
    grids = ((1, 4, 6), (2, 10, 8), (1, 18, 20))
    items = [Patches(rng.normal(size=(t * h * w, 1176)).astype(np.float32), (t, h, w)) for t, h, w in grids]
    batch = pack_vision(items, CONFIG.vision_config)
    variables, layout = {"params": params["vision_encoder"]}, vision_layout(batch)
    agree(
        lambda: VisionEncoder(CONFIG.vision_config).apply(variables, jnp.asarray(batch.patches), layout)[0], batch.rows
    )


def test_packed_segments_and_their_gradients(params):
    text, rng = CONFIG.text_config, np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, text.vocab_size, (2, 40)))
    segments = jnp.asarray([[1] * 7 + [2] + [3] * 30 + [0] * 2, [5] * 40])
    positions = jnp.broadcast_to(jnp.arange(40), (3, 2, 40))
    thinker, real = Thinker(text), (segments > 0)[..., None]

    def logits(tree):
        return jnp.where(real, thinker.apply({"params": tree}, ids, positions, segments), 0)

    agree(lambda: logits(params["thinker"]))
    weights = jnp.asarray(rng.normal(size=(2, 40, text.vocab_size)), jnp.float32)
    gradient = jax.grad(lambda tree: jnp.sum(logits(tree) * weights))
    agree(lambda: gradient(params["thinker"])["layers"]["attention"]["query"]["kernel"])
    agree(lambda: gradient(params["thinker"])["layers"]["attention"]["value"]["kernel"])


@pytest.mark.parametrize("length", [1, 9])
def test_new_tokens_over_a_cache_with_rows_of_unlike_lengths(params, length):
    text, rng = CONFIG.text_config, np.random.default_rng(0)
    cache = thinker_cache(text, batch=2, length=128)
    cache = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), cache)
    ids, start = jnp.asarray(rng.integers(0, text.vocab_size, (2, length))), jnp.asarray([5, 100])
    positions = jnp.broadcast_to(start[:, None] + jnp.arange(length), (3, 2, length))
    thinker, variables = Thinker(text), {"params": params["thinker"]}

    def hidden_states():
        embeddings = thinker.apply(variables, ids, method="embed")
        return thinker.apply(variables, embeddings, positions, cache, start, method="decode").hidden_states

    agree(hidden_states)


@pytest.mark.parametrize(("look_back", "look_ahead"), [(0, 0), (1, 0), (0, 1)])
def test_neighbouring_blocks_of_which_some_do_not_exist(look_back, look_ahead):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(3, 96, 2, 64)), jnp.float32) for _ in range(3))
    at = np.arange(96)
    valid = jnp.asarray(np.stack([at >= 48, at < 61, (at >= 24) & (at < 72)]))
    sizes = dict(block_size=24, look_back=look_back, look_ahead=look_ahead)

    def attended():
        return jnp.where(valid[..., None, None], block_attention(query, key, value, valid, **sizes), 0)

    agree(attended)
