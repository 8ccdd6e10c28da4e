"""Training BigVGAN against discriminators (Lee et al., arXiv:2206.04658, after HiFi-GAN, arXiv:2010.05646).

Vocoder and discriminators are updated in the same step by one optimiser, so their two losses are one number:

    loss = vocoder's (waveform, discriminator as a constant) + discriminator's (waveform as a constant, discriminator)

Each parameter sees only its own half, so its gradient is that of two optimisers with the same settings, taken from the
same parameters (HiFi-GAN updates the discriminator first). Two things look at both halves together: the norm by which
`OptimizerConfig.clip` scales gradients down, and `Guard`, which skips a step. A clip below the usual norm would let the
louder side slow down the other; configs/vocoder.py sets it far above. What XLA finds computed twice, it computes once.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from input_pipeline.speech_batch import SoundedMel
from omni_jax.config import BigVGANConfig, DiscriminatorConfig, SpeechMelConfig
from omni_jax.errors import ConfigError
from omni_jax.layers.spectrogram import log_mel
from omni_jax.models.bigvgan import BigVGAN, samples_per_frame
from omni_jax.models.discriminators import Judgement, judge
from omni_jax.training.objectives import Total
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses

Params = Any
OWN_MEL = SpeechMelConfig()
# The vocoder's own mel ends at 8 kHz; above it the sound has to be compared too. BigVGAN's mel, with our hop.
LOSS_MELS = (OWN_MEL, SpeechMelConfig(n_fft=1024, win_length=1024, num_mel_bins=100, fmax=12000.0))

jax.tree_util.register_dataclass(SoundedMel, [field.name for field in dataclasses.fields(SoundedMel)], [])


@dataclass(frozen=True)
class VocoderTask:
    """Least-squares adversarial loss, matched features, and the mel of the waveform, on a random piece of each row.

    Reports `mel` (mean absolute error of the vocoder's own mel), `features`, `adversarial` and `discriminator`: at 0.5
    for each of its parts it cannot tell real from made.

    Args:
        segment: mel frames of a piece; as many as fill the longest transform, at least.
        mel_weight, feature_weight, adversarial_weight: of the vocoder's losses; HiFi-GAN's.
        dtype: of the discriminators' products. The vocoder computes in float32.
    """

    config: BigVGANConfig
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    segment: int = 48
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    adversarial_weight: float = 1.0
    dtype: DTypeLike = jnp.float32
    components = ("bigvgan", "discriminator")

    def __post_init__(self):
        hop, need = samples_per_frame(self.config), max(mel.n_fft for mel in LOSS_MELS)
        need = max([need, *(n_fft for n_fft, _, _ in self.discriminator.resolutions)])
        if hop != OWN_MEL.hop_length:
            raise ConfigError(f"The vocoder makes {hop} samples of a frame; its mel has {OWN_MEL.hop_length}.")
        if self.segment * hop < need:
            raise ConfigError(f"segment = {self.segment} frames is too short; take at least {-(-need // hop)}.")

    def loss(self, params: Params, batch: SoundedMel, key: jax.Array) -> Losses:
        """See `Task`; the pieces are drawn from `key`.

        Raises:
            ValueError: rows shorter than a piece.
        """
        mel, real = pieces(batch, self.segment, samples_per_frame(self.config), key)
        made = BigVGAN(self.config).apply({"params": params["bigvgan"]}, mel)

        critic = compute_copy(params["discriminator"], self.dtype)
        fixed = jax.lax.stop_gradient(critic)
        of_real = judge(critic, self.discriminator, real, self.dtype)
        of_made = judge(fixed, self.discriminator, made, self.dtype)
        of_copy = judge(critic, self.discriminator, jax.lax.stop_gradient(made), self.dtype)

        losses = {
            "mel": mel_error(made, real, LOSS_MELS[:1]),
            "features": feature_error(of_made, jax.lax.stop_gradient(of_real)),
            "adversarial": _squares(of_made, 1.0),
            "discriminator": _squares(of_real, 1.0) + _squares(of_copy, 0.0),
        }
        total = (
            self.mel_weight * mel_error(made, real, LOSS_MELS)
            + self.feature_weight * losses["features"]
            + self.adversarial_weight * losses["adversarial"]
            + losses["discriminator"]
        )
        counts = (batch.lengths > 0).astype(jnp.float32)
        parts = {name: Total(jnp.sum(loss * counts), jnp.sum(counts)) for name, loss in losses.items()}
        return Losses(Total(jnp.sum(total * counts), jnp.sum(counts)), parts)


def pieces(
    batch: SoundedMel, frames: int, hop: int, key: jax.Array
) -> tuple[Float[Array, "B T M"], Float[Array, "B W"]]:
    """The same random `frames` frames of mel and waveform of each row, within its length where it is long enough."""
    rows, length = batch.mel.shape[:2]
    if length < frames:
        raise ValueError(f"rows of {length} mel frames are shorter than a piece of {frames}")
    last = jnp.maximum(batch.lengths - frames, 0)
    starts = jnp.floor(jax.random.uniform(key, (rows,)) * (last + 1)).astype(jnp.int32)
    starts = jnp.minimum(starts, last)

    def cut(x, starts, size):
        return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, size))(x, starts)

    return cut(batch.mel, starts, frames), cut(batch.waveform, starts * hop, frames * hop)


def mel_error(
    made: Float[Array, "B W"], real: Float[Array, "B W"], mels: tuple[SpeechMelConfig, ...]
) -> Float[Array, " B"]:
    """Mean absolute difference of log mels, mean over `mels`."""
    return sum(jnp.mean(jnp.abs(log_mel(made, mel) - log_mel(real, mel)), axis=(1, 2)) for mel in mels) / len(mels)


def feature_error(of_made: Judgement, of_real: Judgement) -> Float[Array, " B"]:
    """Mean absolute difference of the features of every layer, summed over layers and discriminators."""
    pairs = zip(jax.tree.leaves(of_made.features), jax.tree.leaves(of_real.features))
    return sum(
        jnp.mean(jnp.abs(made.astype(jnp.float32) - real.astype(jnp.float32)), axis=(1, 2, 3)) for made, real in pairs
    )


def _squares(judgement: Judgement, target: float) -> Float[Array, " B"]:
    """Mean squared distance of the scores from `target`, summed over discriminators (arXiv:1611.04076)."""
    return sum(jnp.mean(jnp.square(score - target), axis=1) for score in judgement.scores)
