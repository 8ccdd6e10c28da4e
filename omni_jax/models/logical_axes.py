"""Names and shapes of every parameter axis of the components, without allocating any."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from omni_jax.config import DiscriminatorConfig, OmniConfig
from omni_jax.errors import ConfigError
from omni_jax.models import bigvgan, discriminators, dit, speech_tokenizer
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.talker import Talker
from omni_jax.models.thinker import Thinker
from omni_jax.models.vision_encoder import VisionEncoder, VisionLayout

_KEY = partial(jax.random.key, 0)


def logical_axes(config: OmniConfig, components: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two nested dicts over `components`: tuples of axis names, and shapes (`jax.ShapeDtypeStruct`)."""
    names, shapes = {}, {}
    for component in components:
        boxed = jax.eval_shape(partial(_INITIALISERS[component], config))
        specs = nn.get_partition_spec(boxed)
        names[component] = jax.tree.map(tuple, specs, is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec))
        shapes[component] = nn.unbox(boxed)
    return names, shapes


def _audio_encoder(config: OmniConfig):
    audio = config.thinker_config.audio_config
    mel = jnp.zeros((1, audio.block_frames, audio.num_mel_bins))
    return AudioEncoder(audio).init(_KEY(), mel, jnp.ones(1, jnp.int32))["params"]


def _vision_encoder(config: OmniConfig):
    vision = config.thinker_config.vision_config
    places, home = jnp.zeros((1, 64), jnp.int32), jnp.zeros(64, jnp.int32)
    layout = VisionLayout(jnp.zeros((64, 2), jnp.int32), places, home, (places,), home)
    return VisionEncoder(vision).init(_KEY(), jnp.zeros((64, vision.patch_dim)), layout)["params"]


def _thinker(config: OmniConfig):
    ids = jnp.zeros((1, 2), jnp.int32)
    positions = jnp.zeros((3, 1, 2), jnp.int32)
    return Thinker(config.thinker_config.text_config).init(_KEY(), ids, positions)["params"]


def _talker(config: OmniConfig):
    talker, codes = config.talker_config, jnp.zeros((1, 2), jnp.int32)
    text, positions = jnp.zeros((1, 2, talker.embedding_size)), jnp.zeros((3, 1, 2), jnp.int32)
    return Talker(talker).init(_KEY(), text, codes, positions)["params"]


def _dit(config: OmniConfig, component: str):
    return dit.init_params(_KEY(), config.token2wav_config.dit_config)[component]


def _bigvgan(config: OmniConfig):
    return bigvgan.init_params(_KEY(), config.token2wav_config.bigvgan_config)


def _speech_tokenizer(config: OmniConfig):
    if config.speech_tokenizer_config is None:
        raise ConfigError(
            "The configuration has no speech tokenizer. Set its speech_tokenizer_config, "
            "for example to presets.speech_tokenizer_preset('large')."
        )
    return speech_tokenizer.init_params(_KEY(), config.speech_tokenizer_config)


def _discriminator(config: OmniConfig):
    return discriminators.init_params(_KEY(), config.discriminator_config or DiscriminatorConfig())


_INITIALISERS = {
    "audio_encoder": _audio_encoder,
    "vision_encoder": _vision_encoder,
    "thinker": _thinker,
    "talker": _talker,
    "speaker_encoder": partial(_dit, component="speaker_encoder"),
    "dit": partial(_dit, component="dit"),
    "bigvgan": _bigvgan,
    "speech_tokenizer": _speech_tokenizer,
    "discriminator": _discriminator,
}
