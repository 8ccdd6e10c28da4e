"""Parameters that have no source: drawn by the modules' own initialisers, a few at a time."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import OmniConfig
from omni_jax.interop.orbax_stream import StreamedLeaf
from omni_jax.interop.tables import COMPONENTS, table
from omni_jax.interop.weight_table import flatten
from omni_jax.models import bigvgan, dit
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.talker import Talker
from omni_jax.models.thinker import Thinker
from omni_jax.models.vision_encoder import VisionEncoder, VisionLayout

# Parameters drawn in one program: each program has a fixed cost, mostly its compilation.
_GROUP_BYTES = 512 * 2**20


def random_leaves(config: OmniConfig, paths: Collection[str], *, seed: int, dtype: np.dtype) -> list[StreamedLeaf]:
    """The parameters `paths` of the model, still to be drawn. Equal seeds give equal values.

    A component's draw does not depend on which of its parameters are asked for, nor on the other components.
    """
    leaves = []
    for number, component in enumerate(COMPONENTS):
        wanted = [entry for entry in table(config) if entry.component == component and entry.path in paths]
        if wanted:
            key = jax.random.fold_in(jax.random.key(seed), number)
            draw = _Draw(partial(INITIALISERS[component], config), key, {entry.path: entry.size for entry in wanted})
            leaves += [
                StreamedLeaf(
                    entry.path,
                    entry.jax_shape,
                    dtype,
                    entry.layers is not None,
                    partial(_slices, draw, entry.path, dtype, entry.layers is not None),
                )
                for entry in wanted
            ]
    return leaves


def _slices(draw: "_Draw", path: str, dtype: np.dtype, stacked: bool) -> Iterator[np.ndarray]:
    value = draw(path)
    for part in value if stacked else [value]:
        yield part.astype(dtype, copy=False)


class _Draw:
    """Draws parameters of one component, group by group. What a program does not return, it does not compute."""

    def __init__(self, initialise: Callable[[jax.Array], Any], key: jax.Array, sizes: dict[str, int]):
        self._initialise, self._key = initialise, key
        self._groups: list[list[str]] = []
        room = 0
        for path in sorted(sizes, key=lambda path: path.split("/")):  # as Orbax walks a tree
            nbytes = 4 * sizes[path]
            if not self._groups or nbytes > room:
                self._groups.append([])
                room = _GROUP_BYTES
            self._groups[-1].append(path)
            room -= nbytes
        self._held: dict[str, jax.Array] = {}

    def __call__(self, path: str) -> np.ndarray:
        if path not in self._held:
            self._held.clear()
            (group,) = (group for group in self._groups if path in group)
            self._held = jax.jit(partial(self._program, tuple(group)))(self._key)
        return np.asarray(self._held.pop(path))

    def _program(self, group: tuple[str, ...], key: jax.Array) -> dict[str, jax.Array]:
        component = group[0].split("/", 1)[0]
        drawn = dict(flatten(nn.unbox({component: self._initialise(key)})))
        return {path: drawn[path].astype(jnp.float32) for path in group}


def _audio_encoder(config: OmniConfig, key: jax.Array) -> Any:
    audio = config.thinker_config.audio_config
    mel = jnp.zeros((1, audio.block_frames, audio.num_mel_bins))
    return AudioEncoder(audio).init(key, mel, jnp.ones(1, jnp.int32))["params"]


def _vision_encoder(config: OmniConfig, key: jax.Array) -> Any:
    vision = config.thinker_config.vision_config
    patches = vision.spatial_merge_size**2
    places, home = jnp.zeros((1, patches), jnp.int32), jnp.zeros(patches, jnp.int32)
    layout = VisionLayout(jnp.zeros((patches, 2), jnp.int32), places, home, (places,), home)
    return VisionEncoder(vision).init(key, jnp.zeros((patches, vision.patch_dim)), layout)["params"]


def _thinker(config: OmniConfig, key: jax.Array) -> Any:
    ids, positions = jnp.zeros((1, 2), jnp.int32), jnp.zeros((3, 1, 2), jnp.int32)
    return Thinker(config.thinker_config.text_config).init(key, ids, positions)["params"]


def _talker(config: OmniConfig, key: jax.Array) -> Any:
    text = jnp.zeros((1, 2, config.talker_config.embedding_size))
    codes, positions = jnp.zeros((1, 2), jnp.int32), jnp.zeros((3, 1, 2), jnp.int32)
    return Talker(config.talker_config).init(key, text, codes, positions)["params"]


def _token2wav(part: str, config: OmniConfig, key: jax.Array) -> Any:
    return dit.init_params(key, config.token2wav_config.dit_config)[part]


def _bigvgan(config: OmniConfig, key: jax.Array) -> Any:
    return bigvgan.init_params(key, config.token2wav_config.bigvgan_config)


# Random parameters of each component, boxed with the names of their axes.
INITIALISERS: dict[str, Callable[[OmniConfig, jax.Array], Any]] = {
    "audio_encoder": _audio_encoder,
    "vision_encoder": _vision_encoder,
    "thinker": _thinker,
    "talker": _talker,
    "speaker_encoder": partial(_token2wav, "speaker_encoder"),
    "dit": partial(_token2wav, "dit"),
    "bigvgan": _bigvgan,
}
