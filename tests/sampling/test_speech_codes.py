"""Recordings of any length become codes, whatever they are encoded together with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.speech_batch import mel_blocks
from omni_jax.config import ProcessorConfig
from omni_jax.errors import CheckpointError, MediaError
from omni_jax.models import speech_tokenizer
from omni_jax.presets import speech_tokenizer_preset
from omni_jax.sampling.speech_codes import SpeechCoder, encode_batch, tokenizer_config
from tests.training.spoken_sounds import voice

CONFIG = speech_tokenizer_preset("tiny")


@pytest.fixture(scope="module")
def coder():
    params = nn.unbox(jax.jit(speech_tokenizer.init_params, static_argnums=1)(jax.random.key(0), CONFIG))
    return SpeechCoder(params, CONFIG, blocks=3)


@pytest.fixture(scope="module")
def sounds():
    """0.05 to 5.3 s: parts of a block, whole blocks, and more blocks than the device takes at a time."""
    return [voice(seconds, 16000, seed=i)[: samples] for i, (seconds, samples) in enumerate(
        [(5.3, 84_800), (0.1, 800), (2.0, 32_000), (4.1, 64_001), (1.0, 15_999)])]  # fmt: skip


def test_codes_are_those_of_the_model_on_the_whole_recording(coder, sounds):
    for sound, codes in zip(sounds, coder.encode(sounds), strict=True):
        assert codes.shape == (-(-len(sound) // 320),) and codes.dtype == np.int32
        mel, frames = mel_blocks(sound, -(-len(sound) // 32_000), ProcessorConfig())
        whole = np.asarray(
            speech_tokenizer.codes(coder.params, CONFIG, jnp.asarray(mel[None]), jnp.asarray(frames[None]))
        )[0]
        np.testing.assert_array_equal(codes, whole[whole >= 0])
    assert len(np.unique(np.concatenate(coder.encode(sounds)))) > 3


def test_neighbours_do_not_matter_and_one_program_serves_all(coder, sounds):
    together = coder.encode(sounds)
    before = encode_batch._cache_size()
    for sound, codes in zip(sounds, together):
        np.testing.assert_array_equal(coder.encode([sound])[0], codes)
    assert encode_batch._cache_size() == before
    assert coder.encode([]) == []


def test_a_recording_may_be_longer_than_those_of_a_conversation(coder):
    long = SpeechCoder(coder.params, CONFIG, ProcessorConfig(max_audio_seconds=3), blocks=3)
    assert len(long.encode([voice(4.5, 16000)])[0]) == 225


def test_a_recording_without_sound_is_named(coder):
    with pytest.raises(MediaError, match="a.wav: the sound has no samples"):
        coder.encode([np.zeros(0, np.float32)], ["a.wav"])


def test_a_checkpoint_without_a_tokenizer_says_how_to_get_one(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="has no speech tokenizer. Train one with configs/speech_tokenizer_inv"):
        tokenizer_config(tiny_checkpoint[1])
