"""Next-code prediction of the Talker: speech continuation and speaker fine-tuning (paper, section 3.4)."""

from collections.abc import Collection
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

WORDS = "thinker/embed/embedding"  # the table that has the rows of voices too


def need_talker(config: OmniConfig) -> None:
    """Raises ConfigError for a model that cannot speak."""
    if config.talker_config is None:
        raise ConfigError("The model has no Talker, so it cannot learn to speak. Take a checkpoint that has one.")


def check_reached(trained: Collection[str], adapted: Collection[str], weight_decay: float) -> None:
    """That speech, whose gradient stops at the Thinker, trains all that is to be trained.

    Without a gradient AdamW would only make parameters decay. Of the words' table the rows of voices have one.

    Args:
        trained: paths of the model's parameters that change; adapted: of these, those that have adapters.

    Raises:
        ConfigError: something is to be trained that no gradient reaches.
    """
    outside = {path for path in trained if not path.startswith("talker/")}
    if lost := sorted(outside - {WORDS}):
        patterns = [f"^{name}/" for name in dict.fromkeys(path.split("/")[0] for path in lost)]
        if WORDS in outside:
            patterns = ["^thinker/(?!embed/)" if each == "^thinker/" else each for each in patterns]
        raise ConfigError(
            f"No gradient reaches {lost[0]} and {len(lost) - 1} more that are to be trained: speech does not train the "
            f"Thinker, and no text is learnt. Freeze them: freeze = {patterns}."
        )
    if WORDS in adapted or (WORDS in outside and weight_decay):
        raise ConfigError(
            f"Speech trains the rows of voices in {WORDS}, and "
            + ("an adapter" if WORDS in adapted else f"optimizer.weight_decay = {weight_decay}")
            + " would change all other rows too. "
            + ("Leave it out of lora.patterns." if WORDS in adapted else "Set it to 0, or freeze ^thinker/.")
        )


@dataclass(frozen=True)
class PackedTalker:
    """Thinker and Talker over packed rows, up to the score of every code.

    Args:
        audio, vision, dtype, remat: see `PackedThinker`.
        chunk: positions whose logits exist at a time on a device.
        detach: no gradient flows from speech into the Thinker, but to the rows of voices among its embeddings: those
            are for the Talker alone.
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
        if self.detach:
            voice = (batch.speech.codes == self.config.talker_config.tts_codec_pad_token_id)[..., None]
            text = jnp.where(voice, text, jax.lax.stop_gradient(text))
        talker = Talker(self.config.talker_config, dtype=self.dtype, remat=self.remat)
        out = talker.apply(
            {"params": params["talker"]},
            text,
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
        detach: see `PackedTalker`. The Thinker has to be frozen then, but for its embeddings where voices are learnt,
            unless the text loss trains it.
        text_weight: of a text token beside a code in the mean that is made smaller; 0 leaves the text loss out. It
            trains the Thinker only: the Talker is no part of that loss.
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

    def check_trained(self, trained: Collection[str], adapted: Collection[str], weight_decay: float) -> None:
        """See `check_reached`; a text loss that trains nothing is a ConfigError too."""
        if self.text_weight and all(path.startswith("talker/") for path in trained):
            raise ConfigError(
                f"text_weight = {self.text_weight}, but nothing of the Thinker, which writes the text, is trained. Set "
                "it to 0, or leave ^thinker/ out of freeze."
            )
        if self.detach and not self.text_weight:
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
