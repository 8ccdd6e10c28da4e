"""Every stream: steps equal the whole, and an output depends on exactly the blocks that the stream declares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import BigVGANConfig
from omni_jax.models import bigvgan, dit, speech_tokenizer
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.flow import FlowOptions
from omni_jax.models.streams import (
    Stream,
    audio_encoder_stream,
    speech_tokenizer_stream,
    talker_stream,
    thinker_stream,
)
from omni_jax.models.streams_sound import bigvgan_stream, dit_stream
from omni_jax.models.talker import Talker
from omni_jax.models.thinker import Thinker
from omni_jax.presets import preset, speech_tokenizer_preset
from tests.models.token2wav_reference import DIT, our_params, published_model

CONFIG = preset("tiny").thinker_config
BLOCKS, ROWS = 6, 2
# A reach of more than one block of 24 frames, in few layers.
VOCODER = BigVGANConfig(
    mel_dim=4,
    upsample_initial_channel=32,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(7, 4),
    resblock_kernel_sizes=(11,),
    resblock_dilation_sizes=((1, 3),),
)


@dataclass(frozen=True)
class Part:
    """A stream, what it runs on, and a change of its input that shows how far the input reaches."""

    stream: Stream
    params: Any
    inputs: np.ndarray  # [ROWS, BLOCKS · block_size, …]
    change: Callable[[np.ndarray], np.ndarray]
    seen: float = 0.0  # a greater difference of outputs is one


def by_blocks(outputs, blocks):
    return np.asarray(outputs).reshape(ROWS, blocks, -1)


def scaled_up(params):
    """Fresh parameters are so small that far influence would drown in rounding."""
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, nn.unbox(params)["params"])


def vectors(stream, width):
    return np.random.default_rng(0).normal(size=(ROWS, BLOCKS * stream.block_size, width)).astype(np.float32)


def plus_one(block):
    return block + 1


def audio():
    encoder = AudioEncoder(CONFIG.audio_config)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 200, 128)), jnp.array([200]))
    stream = audio_encoder_stream(CONFIG.audio_config)
    return Part(stream, scaled_up(params), vectors(stream, 128), plus_one, 1e-4)


def tokenizer(route):
    config = speech_tokenizer_preset("tiny", route)
    params = scaled_up({"params": speech_tokenizer.init_params(jax.random.key(0), config)})
    stream = speech_tokenizer_stream(config)
    return Part(stream, params, vectors(stream, 128), plus_one)


def thinker():
    config = CONFIG.text_config
    ids = jnp.zeros((1, 2), jnp.int32)
    params = Thinker(config).init(jax.random.key(0), ids, jnp.zeros((3, 1, 2), jnp.int32))
    stream = thinker_stream(config, chunk=8, length=64)
    return Part(stream, scaled_up(params), vectors(stream, config.hidden_size), plus_one, 1e-4)


def talker():
    config = preset("tiny").talker_config
    text, ids = jnp.zeros((1, 2, config.embedding_size)), jnp.zeros((1, 2), jnp.int32)
    params = Talker(config).init(jax.random.key(0), text, ids, jnp.zeros((3, 1, 2), jnp.int32))
    stream = talker_stream(config, chunk=8, length=64)
    return Part(stream, scaled_up(params), vectors(stream, config.embedding_size), plus_one, 1e-4)


def block_decoder():
    params = our_params(published_model(DIT), DIT)
    rng = np.random.default_rng(0)
    speakers = jnp.asarray(rng.normal(size=(ROWS, DIT.enc_emb_dim)), jnp.float32)
    ref_mels = jnp.asarray(rng.normal(-4, 2, (ROWS, 20, DIT.mel_dim)), jnp.float32)
    voice = dit.make_voice(params, DIT, speakers, ref_mels)
    stream = dit_stream(DIT, voice, jnp.array([3, 4]), FlowOptions("euler", 3))
    codes = rng.integers(0, DIT.num_embeds, (ROWS, BLOCKS * stream.block_size))
    return Part(stream, params, codes.astype(np.int32), plus_one)


def vocoder():
    assert 24 < bigvgan.receptive_field_frames(VOCODER) <= 48
    params = nn.unbox(bigvgan.init_params(jax.random.key(0), VOCODER))
    params["conv_out"]["kernel"] *= 0.1  # away from the clamp
    stream = bigvgan_stream(VOCODER)
    # Not-a-number spreads as far as the arithmetic does, where a change by one may drown in rounding.
    return Part(stream, params, 3 * vectors(stream, 4) - 4, lambda block: np.full_like(block, np.nan))


PARTS = {
    "audio encoder": audio,
    "speech tokenizer by inversion": partial(tokenizer, "inversion"),
    "speech tokenizer from scratch": partial(tokenizer, "scratch"),
    "thinker": thinker,
    "talker": talker,
    "DiT": block_decoder,
    "BigVGAN": vocoder,
}


@pytest.fixture(scope="module", params=PARTS.values(), ids=PARTS)
def part(request):
    return request.param()


@pytest.fixture(scope="module")
def whole(part):
    return jax.jit(part.stream.whole)


@pytest.fixture(scope="module")
def full(part, whole):
    return np.asarray(whole(part.params, part.inputs))


@pytest.fixture(scope="module")
def run(part):
    """Outputs of all steps, without what lies before the first, and with what was held back."""
    stream = part.stream
    step, finish = jax.jit(stream.step), jax.jit(stream.finish) if stream.finish else None

    def run(inputs):
        state, outputs = stream.initial_state(len(inputs)), []
        for block in np.split(inputs, inputs.shape[1] // stream.block_size, axis=1):
            state, out = step(part.params, state, block)
            outputs.append(out)
        if finish is not None:
            outputs.append(finish(part.params, state))
        return np.concatenate(outputs, axis=1)[:, stream.delay :]

    return run


@pytest.mark.parametrize("blocks", [1, 4, BLOCKS])
def test_steps_equal_the_whole(part, whole, run, full, blocks):
    inputs = part.inputs[:, : blocks * part.stream.block_size]
    want = full if blocks == BLOCKS else np.asarray(whole(part.params, inputs))
    ours = run(inputs)
    assert ours.shape == want.shape
    np.testing.assert_allclose(ours, want, atol=2e-5 * max(1, np.abs(want).max()))


def test_later_input_never_changes_earlier_output(part, whole, full):
    short = by_blocks(whole(part.params, part.inputs[:, : 4 * part.stream.block_size]), 4)
    certain = 4 - part.stream.look_ahead
    np.testing.assert_allclose(short[:, :certain], by_blocks(full, BLOCKS)[:, :certain], atol=2e-5)


@pytest.mark.parametrize("changed", [0, 2, 5])
def test_an_output_depends_on_exactly_the_declared_blocks(part, whole, full, changed):
    stream, other = part.stream, part.inputs.copy()
    own = slice(changed * stream.block_size, (changed + 1) * stream.block_size)
    other[:, own] = part.change(other[:, own])
    difference = np.abs(by_blocks(whole(part.params, other), BLOCKS) - by_blocks(full, BLOCKS))
    moved = (~(difference <= part.seen)).any(axis=(0, 2))
    back = BLOCKS if stream.look_back is None else stream.look_back
    assert moved.tolist() == [changed - stream.look_ahead <= block <= changed + back for block in range(BLOCKS)]


def test_neighbours_in_a_batch_change_nothing(part, run):
    other = part.inputs.copy()
    other[1] = part.change(other[1])
    ours, again = (run(inputs[:, : 3 * part.stream.block_size])[0] for inputs in (part.inputs, other))
    np.testing.assert_array_equal(ours, again)
