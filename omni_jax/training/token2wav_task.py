"""Training the DiT, and the speaker encoder with it, by conditional flow matching (Lipman et al., arXiv:2210.02747).

Noise and mel are joined by a straight line, x(t) = (1 - t) · noise + t · mel, as in F5-TTS (arXiv:2410.06885) and as
`models/flow.py` walks it: t = 0 is noise. The network learns the line's direction, mel - noise, at a random place.
Attention has the same blocks as in use, so nothing is learnt that a stream could not see.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from input_pipeline.speech_batch import VoicedCodes
from omni_jax.config import DiTConfig
from omni_jax.models import dit
from omni_jax.models.speaker_encoder import SpeakerEncoder
from omni_jax.training.objectives import Total
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses

Params = Any

jax.tree_util.register_dataclass(VoicedCodes, [field.name for field in dataclasses.fields(VoicedCodes)], [])


@dataclass(frozen=True)
class FlowMatchingTask:
    """Mean squared error of the velocity, over the real frames of a batch.

    Some rows are told nothing, neither codes nor voice: from them the network learns the null branch that
    classifier-free guidance pushes away from (arXiv:2207.12598; `flow.guide`). Reports the error of rows with and
    without condition (`conditional`, `null`): how far they are apart is what the codes say. The network drops out
    `DiTConfig.dropout` of its activations, in evaluation too: there as here, errors are those of a random place.

    Args:
        drop: probability that a row is told nothing; F5-TTS has 0.2.
        dtype: of matrix products; the flow and its error are float32.
        remat: recompute layers in the backward pass.
    """

    config: DiTConfig
    drop: float = 0.2
    dtype: DTypeLike = jnp.float32
    remat: bool = True
    components = ("speaker_encoder", "dit")

    def loss(self, params: Params, batch: VoicedCodes, key: jax.Array) -> Losses:
        """See `Task`; times, noise, the rows that are told nothing and dropout are drawn from `key`."""
        params = compute_copy(params, self.dtype)
        time_key, noise_key, drop_key, dropout_key = jax.random.split(key, 4)
        rows = batch.codes.shape[0]
        t = jax.random.uniform(time_key, (rows,))
        noise = jax.random.normal(noise_key, batch.mel.shape)
        told = ~jax.random.bernoulli(drop_key, self.drop, (rows,))
        errors = self.errors(params, batch, t, noise, told, dropout=dropout_key)
        real = dit.frame_mask(batch.lengths, batch.mel.shape[1])
        weights = jnp.broadcast_to(real, errors.shape).astype(jnp.float32)

        def total(of_rows) -> Total:
            weight = weights * of_rows[:, None]
            return Total(jnp.sum(errors * weight), jnp.sum(weight))

        return Losses(total(jnp.ones(rows)), {"conditional": total(told), "null": total(~told)})

    def errors(
        self,
        params: Params,
        batch: VoicedCodes,
        t: Float[Array, " B"],
        noise: Float[Array, "B T M"],
        told: Array,
        *,
        dropout: jax.Array | None = None,
    ) -> Float[Array, "B T"]:
        """Squared error of each frame's velocity at times `t`, mean over mel bins; rows not `told` see no condition.

        Args:
            dropout: random key; None for a network that drops nothing.
        """
        at = t[:, None, None]
        conditioning = null_where(~told, params, self.config, batch, dtype=self.dtype)
        x = (1 - at) * noise + at * batch.mel
        velocity = self.velocity(params, x, t, conditioning, batch.lengths, dropout)
        return jnp.mean(jnp.square(velocity - (batch.mel - noise)), axis=-1)

    def velocity(self, params, x, t, conditioning: dit.Conditioning, lengths, dropout=None) -> Float[Array, "B T M"]:
        """`dit.velocity` with recomputed layers and dropout."""
        modulation = dit.modulate(params, self.config, t, dtype=self.dtype)
        frames = x.shape[1]
        valid = jnp.broadcast_to(dit.frame_mask(lengths, frames), x.shape[:2])
        model = dit.DiT(self.config, dtype=self.dtype, remat=self.remat, training=dropout is not None)
        inputs = x, modulation, conditioning, valid, jnp.arange(frames)[None]
        rngs = {} if dropout is None else {"dropout": dropout}
        return model.apply({"params": params["dit"]}, *inputs, rngs=rngs)[:, 0]


def null_where(
    dropped: Array, params: Params, config: DiTConfig, batch: VoicedCodes, *, dtype: DTypeLike = jnp.float32
) -> dit.Conditioning:
    """The conditioning of each row, and where `dropped` the null one: code 0, no speaker, a reference of zeros.

    Row by row, unlike `dit.make_voice`, whose additional row for the null voice would not divide over devices.
    """
    ref_mel = jnp.where(dropped[:, None, None], 0, batch.ref_mel)
    timbre = SpeakerEncoder(config).apply({"params": params["speaker_encoder"]}, ref_mel)
    speaker = jnp.where(dropped[:, None], 0, batch.speaker)
    model = dit.DiT(config, dtype=dtype)
    unused = jnp.zeros(config.enc_dim)
    voice = model.apply({"params": params["dit"]}, speaker, timbre, unused, method=dit.DiT.voice)
    codes = jnp.where(dropped[:, None], 0, batch.codes)
    return dit.condition(params, config, codes, voice, guided=False, dtype=dtype)
