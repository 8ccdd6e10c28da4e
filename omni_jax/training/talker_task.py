"""Next-code prediction of the Talker: speech continuation and speaker fine-tuning (paper, section 3.4)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError
from omni_jax.models.talker import Talker
from omni_jax.training.batches import OmniBatch, SpeechTrack
from omni_jax.training.objectives import TokenScores, Total, score_tokens
from omni_jax.training.packed_thinker import PackedThinker, Params, Thoughts, own_rows
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses


def need_talker(config: OmniConfig) -> None:
    """Raises ConfigError for a model that cannot speak."""
    if config.talker_config is None:
        raise ConfigError("The model has no Talker, so it cannot learn to speak. Take a checkpoint that has one.")


@dataclass(frozen=True)
class PackedTalker:
    """Thinker and Talker over packed rows, up to the score of every code.

    Args:
        audio, vision, dtype, remat: see `PackedThinker`.
        chunk: positions whose logits exist at a time on a device.
        detach: no gradient flows from speech into the Thinker.
    """

    config: OmniConfig
    audio: bool
    vision: bool
    dtype: DTypeLike = jnp.float32
    remat: str = "full"
    chunk: int = 512
    detach: bool = True

    @property
    def components(self) -> tuple[str, ...]:
        return (*self.thinker.components, "talker")

    @property
    def thinker(self) -> PackedThinker:
        return PackedThinker(self.config, self.audio, self.vision, dtype=self.dtype, remat=self.remat)

    def __call__(self, params: Params, batch: OmniBatch) -> tuple[TokenScores, Thoughts]:
        """Scores of the codes [B, U], and what the Thinker made of the rows.

        Args:
            params: of `components`, matrices in the compute dtype.

        Raises:
            ConfigError: the batch has no speech, or see `PackedThinker`.
        """
        if batch.speech is None:
            raise ConfigError("The batch has no speech. Give RowShape.speech, and examples with spoken answers.")
        thoughts = self.thinker(params, batch)
        text = self._text_track(params, batch.speech, thoughts)
        talker = Talker(self.config.talker_config, dtype=self.dtype, remat=self.remat)
        out = talker.apply(
            {"params": params["talker"]},
            jax.lax.stop_gradient(text) if self.detach else text,
            batch.speech.codes,
            jnp.moveaxis(batch.speech.position_ids, 1, 0),
            segment_ids=batch.speech.segment_ids,
            method="decode",
        )
        head = params["talker"]["codec_head"]["kernel"]
        scores = score_tokens(out.hidden_states, head, batch.speech.labels, batch.speech.weights, chunk=self.chunk)
        return scores, thoughts

    def _text_track(self, params: Params, speech: SpeechTrack, thoughts: Thoughts) -> Float[Array, "B U E"]:
        """Hidden state and word of a place of the Thinker's row, or a word of its own, or nothing."""
        heard = own_rows(thoughts.hidden_states + thoughts.words, speech.text_source)
        words = self.thinker.embed(params, jnp.maximum(speech.text_token, 0))
        return heard + jnp.where((speech.text_token >= 0)[..., None], words, 0)


@dataclass(frozen=True)
class TalkerTask:
    """Cross-entropy of the next speech code, given what the Thinker thinks of the conversation.

    Reports `accuracy` of codes, their loss by source (`source/NAME`), and `speech` and `text` where both are learnt.

    Args:
        audio, vision, dtype, remat, chunk, tasks: see `ThinkerTask`.
        detach: no gradient flows from speech into the Thinker. The Thinker's parameters are best frozen then, unless
            the text loss trains them.
        text_weight: of a text token beside a code in the mean that is made smaller; 0 leaves the text loss out.
    """

    config: OmniConfig
    audio: bool = True
    vision: bool = True
    dtype: DTypeLike = jnp.float32
    remat: str = "full"
    chunk: int = 512
    tasks: tuple[str, ...] = ()
    detach: bool = True
    text_weight: float = 0.0

    def __post_init__(self):
        """Raises ConfigError where there is no Talker."""
        need_talker(self.config)

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
            ConfigError: the batch has no speech, or see `ThinkerTask`.
        """
        params = compute_copy(params, self.dtype)
        scores, thoughts = self._talker(params, batch)
        parts = {"accuracy": scores.accuracy}
        by_source = scores.by_group(batch.speech.task_ids, self.tasks)
        parts |= {f"source/{name}": total for name, total in by_source.items()}
        total = scores.total
        if self.text_weight:
            head = params["thinker"]["lm_head"]["kernel"]
            text = score_tokens(thoughts.hidden_states, head, batch.labels, batch.weights, chunk=self.chunk).total
            parts |= {"speech": total, "text": text}
            total = Total(total.loss + self.text_weight * text.loss, total.weight + self.text_weight * text.weight)
        return Losses(total, parts)
