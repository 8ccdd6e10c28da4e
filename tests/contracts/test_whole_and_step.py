"""Every stream: steps equal the whole, and an output depends on exactly the blocks that the stream declares."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.streams import audio_encoder_stream, thinker_stream
from omni_jax.models.thinker import Thinker
from omni_jax.presets import preset

CONFIG = preset("tiny").thinker_config
BLOCKS = 5


def scaled_up(params):
    """Fresh parameters are so small that far influence would drown in rounding."""
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, nn.unbox(params)["params"])


def audio():
    encoder = AudioEncoder(CONFIG.audio_config)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 200, 128)), jnp.array([200]))
    return audio_encoder_stream(CONFIG.audio_config), scaled_up(params), 128


def thinker():
    config = CONFIG.text_config
    ids = jnp.zeros((1, 2), jnp.int32)
    params = Thinker(config).init(jax.random.key(0), ids, jnp.zeros((3, 1, 2), jnp.int32))
    return thinker_stream(config, chunk=8, length=64), scaled_up(params), config.hidden_size


@pytest.fixture(params=[audio, thinker], ids=["audio encoder", "thinker"])
def part(request):
    stream, params, width = request.param()
    shape = (2, BLOCKS * stream.block_size, width)
    return stream, params, np.random.default_rng(0).normal(size=shape).astype(np.float32), jax.jit(stream.whole)


def by_blocks(values, stream):
    return values.reshape(values.shape[0], BLOCKS, -1, values.shape[-1])


def test_steps_equal_the_whole(part):
    stream, params, inputs, whole = part
    state, outputs = stream.initial_state(inputs.shape[0]), []
    step = jax.jit(stream.step)
    for block in np.split(inputs, BLOCKS, axis=1):
        state, out = step(params, state, block)
        outputs.append(out)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole(params, inputs), atol=2e-5)


def test_a_whole_of_fewer_blocks_is_the_beginning_of_a_longer_one(part):
    stream, params, inputs, whole = part
    full = by_blocks(np.asarray(whole(params, inputs)), stream)
    short = np.asarray(whole(params, inputs[:, : 2 * stream.block_size]))
    np.testing.assert_allclose(short.reshape(full[:, :2].shape), full[:, :2], atol=2e-5)


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_an_output_depends_on_exactly_the_declared_blocks(part, changed):
    stream, params, inputs, whole = part
    before = by_blocks(np.asarray(whole(params, inputs)), stream)
    other = inputs.copy()
    other[:, changed * stream.block_size : (changed + 1) * stream.block_size] += 1.0
    moved = np.abs(by_blocks(np.asarray(whole(params, other)), stream) - before).max(axis=(0, 2, 3)) > 1e-4
    reach = BLOCKS if stream.look_back is None else stream.look_back
    assert moved.tolist() == [changed <= block <= changed + reach for block in range(BLOCKS)]


def test_neighbours_in_a_batch_change_nothing(part):
    _, params, inputs, whole = part
    alone = np.asarray(whole(params, inputs[:1]))
    np.testing.assert_allclose(whole(params, inputs)[:1], alone, atol=2e-5)
