"""Direct preference optimisation of the Talker (paper, equation 1; arXiv:2305.18290)."""

from collections.abc import Collection
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError
from omni_jax.training.batches import OmniBatch, Preferences
from omni_jax.training.objectives import TokenScores, Total
from omni_jax.training.packed_thinker import Params
from omni_jax.training.step import compute_copy
from omni_jax.training.talker_task import PackedTalker, check_reached, need_talker
from omni_jax.training.task import Losses


@struct.dataclass
class PairLogProbs:
    """Summed log-probabilities of the codes of both answers of each pair; 0 where there is no pair."""

    chosen: Float[Array, "B Q"]
    rejected: Float[Array, "B Q"]


def dpo_loss(
    policy: PairLogProbs, reference: PairLogProbs, *, beta: float
) -> tuple[Float[Array, "B Q"], Float[Array, "B Q"], Float[Array, "B Q"]]:
    """-log sigmoid(r_w - r_l) of each pair, and both rewards r = beta * (log policy - log reference)."""
    chosen = beta * (policy.chosen - reference.chosen)
    rejected = beta * (policy.rejected - reference.rejected)
    return -jax.nn.log_sigmoid(chosen - rejected), chosen, rejected


@dataclass(frozen=True)
class DpoTask:
    """Makes the chosen answer likelier than the rejected one, measured from a reference policy; a mean over pairs.

    Reports `accuracy`, the share of pairs whose chosen answer has the higher reward, and means over pairs of `margin`
    between the rewards, `reward/chosen`, `reward/rejected`, and `sft` where it is learnt.

    Args:
        audio, vision, dtype, remat, chunk: see `ThinkerTask`.
        beta: how dearly leaving the reference policy is paid.
        sft_weight: of the cross-entropy of the chosen answer, a mean over its codes, which keeps it from becoming
            unlikely together with the rejected one (arXiv:2404.19733); 0 leaves it out.
        detach: see `PackedTalker`. The Thinker has to be frozen then, but for its embeddings where voices are learnt.
    """

    config: OmniConfig
    audio: bool = True
    vision: bool = True
    dtype: DTypeLike = jnp.float32
    remat: str = "full"
    chunk: int = 512
    beta: float = 0.1
    sft_weight: float = 0.0
    detach: bool = True

    def __post_init__(self):
        """Raises ConfigError where there is no Talker."""
        need_talker(self.config)

    def check_trained(self, trained: Collection[str], adapted: Collection[str], weight_decay: float) -> None:
        """See `check_reached`."""
        if self.detach:
            check_reached(trained, adapted, weight_decay)

    @property
    def components(self) -> tuple[str, ...]:
        return self._talker.components

    @property
    def _talker(self) -> PackedTalker:
        return PackedTalker(
            self.config, self.audio, self.vision, self.dtype, self.remat, self.chunk, detach=self.detach
        )

    def loss(self, params: Params, batch: OmniBatch, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`.

        Raises:
            ConfigError: the batch has no speech or no pairs, or see `ThinkerTask`.
        """
        scores, pairs = self._scores(params, batch)
        reference = PairLogProbs(pairs.reference_chosen, pairs.reference_rejected)
        segments = batch.speech.segment_ids
        chosen_log_probs, codes = scores.by_segment(segments, pairs.chosen)
        policy = PairLogProbs(chosen_log_probs, scores.by_segment(segments, pairs.rejected)[0])
        losses, chosen, rejected = dpo_loss(policy, reference, beta=self.beta)
        real = (pairs.chosen > 0) & (pairs.rejected > 0)
        values = {
            "accuracy": (chosen > rejected).astype(jnp.float32),
            "margin": chosen - rejected,
            "reward/chosen": chosen,
            "reward/rejected": rejected,
        }
        if self.sft_weight:
            values["sft"] = -policy.chosen / jnp.maximum(codes, 1)
            losses = losses + self.sft_weight * values["sft"]

        def over_pairs(values):
            return Total(jnp.sum(jnp.where(real, values, 0)), jnp.sum(real, dtype=jnp.float32))

        return Losses(over_pairs(losses), {name: over_pairs(value) for name, value in values.items()})

    def sequence_log_probs(self, params: Params, batch: OmniBatch) -> PairLogProbs:
        """Of both answers of each pair, summed over their codes; with the reference policy's parameters, once, ahead.

        Raises:
            ConfigError: as for `loss`.
        """
        scores, pairs = self._scores(params, batch)
        segments = batch.speech.segment_ids
        return PairLogProbs(*(scores.by_segment(segments, side)[0] for side in (pairs.chosen, pairs.rejected)))

    def _scores(self, params: Params, batch: OmniBatch) -> tuple[TokenScores, Preferences]:
        if batch.preferences is None:
            raise ConfigError("The batch has no pairs. Give RowShape.pairs, and examples with two spoken answers.")
        return self._talker(compute_copy(params, self.dtype), batch)[0], batch.preferences
