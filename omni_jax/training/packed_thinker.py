"""The Thinker over packed rows: encoders on each row's media, their tokens at their places, the decoder."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError
from omni_jax.layers.partitioning import LENGTH, constrain, mesh_axes, over_mesh
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.thinker import Thinker
from omni_jax.models.vision_encoder import VisionBounds, VisionEncoder
from omni_jax.training.batches import AudioBlocks, OmniBatch, VisionPatches

Params = Any


@struct.dataclass
class Thoughts:
    """What the Thinker makes of a batch, in the compute dtype.

    words: embeddings of the tokens; 0 where a medium's token stands, as the Talker hears them.
    """

    words: Float[Array, "B T D"]
    hidden_states: Float[Array, "B T D"]  # after the final norm


@dataclass(frozen=True)
class PackedThinker:
    """Encoders and decoder of the Thinker, without its head.

    Args:
        audio, vision: whether batches have room for such media; without, that encoder is not needed.
        dtype: of compute.
        remat: what the layers keep for the backward pass, see `omni_jax/layers/remat.py`.
    """

    config: OmniConfig
    audio: bool
    vision: bool
    dtype: DTypeLike = jnp.float32
    remat: str = "full"

    @property
    def components(self) -> tuple[str, ...]:
        """Whose parameters are needed."""
        return ("audio_encoder",) * self.audio + ("vision_encoder",) * self.vision + ("thinker",)

    def __call__(self, params: Params, batch: OmniBatch) -> Thoughts:
        """Runs over a batch.

        Args:
            params: of `components`, matrices in the compute dtype.

        Raises:
            ConfigError: the batch has room for media that this was made without, or the other way round.
        """
        for kind, expected in (("audio", self.audio), ("vision", self.vision)):
            if (getattr(batch, kind) is not None) != expected:
                raise ConfigError(
                    f"The task was made with {kind}={expected}, but its batches have "
                    f"{'no ' if expected else ''}room for it. Make the task and the RowShape agree."
                )
        embeddings = words = self.embed(params, batch.token_ids)
        for tokens, source in (
            (self.hear(params, batch.audio) if self.audio else None, batch.audio_source),
            (self.see(params, batch.vision) if self.vision else None, batch.vision_source),
        ):
            if tokens is not None:
                absent = (source < 0)[..., None]
                embeddings = jnp.where(absent, embeddings, own_rows(tokens, source).astype(embeddings.dtype))
                words = jnp.where(absent, words, 0)
        out = self._thinker.apply(
            {"params": params["thinker"]},
            embeddings,
            jnp.moveaxis(batch.position_ids, 1, 0),
            segment_ids=batch.segment_ids,
            method="decode",
        )
        return Thoughts(words, out.hidden_states)

    def embed(self, params: Params, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self._thinker.apply({"params": params["thinker"]}, token_ids, method="embed")

    @property
    def _thinker(self) -> Thinker:
        return Thinker(self.config.thinker_config.text_config, dtype=self.dtype, remat=self.remat)

    def hear(self, params: Params, audio: AudioBlocks) -> Float[Array, "B A D"]:
        """Tokens of all blocks of each row, end to end."""
        encoder = AudioEncoder(self.config.thinker_config.audio_config, dtype=self.dtype, remat=self.remat)
        rows, blocks = audio.frames.shape
        # every block is an item of its own: the batch axis only grows
        mel = constrain(audio.mel.reshape(rows * blocks, *audio.mel.shape[2:]), "batch", None, None)
        frames = constrain(audio.frames.reshape(-1), "batch")
        tokens, _ = encoder.apply({"params": params["audio_encoder"]}, mel, frames)
        return constrain(tokens.reshape(rows, -1, tokens.shape[-1]), "batch", None, None)

    def see(self, params: Params, vision: VisionPatches) -> Float[Array, "B Q D"]:
        """Merged tokens of all patches of each row."""
        encoder = VisionEncoder(self.config.thinker_config.vision_config, dtype=self.dtype, remat=self.remat)
        bounds = VisionBounds(vision.coordinates, vision.window, vision.frame)
        patches = constrain(vision.patches, "batch", None, None)
        tokens, _ = encoder.apply({"params": params["vision_encoder"]}, patches, bounds)
        return constrain(tokens, "batch", None, None)


def own_rows(table: Float[Array, "B R D"], source: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """To each place, row `source` of the table of its own batch row; zeros where that is negative.

    On a mesh every device looks up its own places; of a table that is split along R it gathers the rows first.
    """
    batch, length = mesh_axes("batch", source.shape[0]) or None, mesh_axes(LENGTH, source.shape[1]) or None

    def on_one_device(table, source):
        # a place beyond the table reads zeros and, backward, writes nothing; a negative one would count from the end
        places = jnp.where(source < 0, table.shape[1], source)
        return jax.vmap(lambda rows, place: rows.at[place].get(mode="fill", fill_value=0))(table, places)

    places = PartitionSpec(batch, None, None), PartitionSpec(batch, length)
    return over_mesh(on_one_device, places, PartitionSpec(batch, length, None))(table, source)


def modality_of_segments(batch: OmniBatch) -> Int[Array, "B T"]:
    """Of each token, which media its segment holds: a number into `MODALITIES`."""

    def somewhere(source: Int[Array, "B T"]) -> Bool[Array, "B T"]:
        def row(present, ids):
            return jax.ops.segment_max(present, ids, num_segments=ids.shape[0] + 1)[ids]

        return jax.vmap(row)((source >= 0).astype(jnp.int32), batch.segment_ids)

    return somewhere(batch.audio_source) + 2 * somewhere(batch.vision_source)


MODALITIES = ("text", "audio", "vision", "audio_vision")
