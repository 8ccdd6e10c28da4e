"""Next-token prediction of the Thinker: pre-training and instruction tuning (paper, section 3.1 to 3.3)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from omni_jax.config import OmniConfig
from omni_jax.training.batches import OmniBatch
from omni_jax.training.objectives import score_tokens
from omni_jax.training.packed_thinker import MODALITIES, PackedThinker, Params, modality_of_segments
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses


@dataclass(frozen=True)
class ThinkerTask:
    """Cross-entropy of the next token where the batch's weights say so, given text, sound and pictures.

    Reports `accuracy`, the loss by what a conversation holds (`modality/text`, `/audio`, `/vision`, `/audio_vision`),
    and by source (`source/NAME`).

    Args:
        audio, vision: whether batches have room for such media; without, that encoder is not needed.
        dtype: of compute; parameters are cast to it once, on the devices that hold them.
        remat: what layers keep for the backward pass, see `omni_jax/layers/remat.py`.
        chunk: positions whose logits exist at a time on a device.
        tasks: names of the sources that the batch's `task_ids` number.
    """

    config: OmniConfig
    audio: bool = True
    vision: bool = True
    dtype: DTypeLike = jnp.float32
    remat: str = "full"
    chunk: int = 512
    tasks: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        return self._thinker.components

    @property
    def _thinker(self) -> PackedThinker:
        return PackedThinker(self.config, self.audio, self.vision, dtype=self.dtype, remat=self.remat)

    def loss(self, params: Params, batch: OmniBatch, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`.

        Raises:
            ConfigError: the batch has room for media that the task was made without, or the other way round.
        """
        params = compute_copy(params, self.dtype)
        hidden = self._thinker(params, batch).hidden_states
        head = params["thinker"]["lm_head"]["kernel"]
        scores = score_tokens(hidden, head, batch.labels, batch.weights, chunk=self.chunk)
        parts = {"accuracy": scores.accuracy}
        by_modality = scores.by_group(modality_of_segments(batch), MODALITIES)
        parts |= {f"modality/{name}": total for name, total in by_modality.items() if self._may_hold(name)}
        parts |= {f"source/{name}": total for name, total in scores.by_group(batch.task_ids, self.tasks).items()}
        return Losses(scores.total, parts)

    def _may_hold(self, modality: str) -> bool:
        return ("audio" not in modality or self.audio) and ("vision" not in modality or self.vision)
