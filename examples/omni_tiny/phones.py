"""Phones: the audio encoder learns from many recordings by a probe, and from a few by what the Thinker answers.

As `glances.py`, for the other sense: behind the Thinker a recording costs several times as much as alone, and a
transcript lets it guess a word from the words before. Here most recordings are judged by a linear probe on their
tokens, which is thrown away: it tells the phones, by connectionist temporal classification (Graves et al. 2006).
Conversations keep the tokens in the Thinker's language meanwhile, and what is no speech in mind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from examples.omni_tiny.beside import Beside, ProbedStage
from examples.omni_tiny.lexicon import PHONES
from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.spoken_rows import Recordings, room_for_phones
from input_pipeline.request import audio_tokens
from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.errors import ConfigError
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.training.batches import abstract_batch
from omni_jax.training.objectives import Total
from omni_jax.training.packed_thinker import Params
from omni_jax.training.run_stages import OpenData
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses
from omni_jax.training.thinker_task import ThinkerTask

if TYPE_CHECKING:
    from omni_jax.training.run_config import RunConfig

_PLACES = 2  # that the probe reads from a token of 40 ms: most phones are shorter than two tokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PhoneBatch:
    """Conversations, and rows of recordings for the probe."""

    talk: Any  # OmniBatch
    mel: Float[Array, "B G F M"]
    frames: Int[Array, "B G"]
    phones: Int[Array, "B S"]


@dataclass(frozen=True)
class PhonesStage(ProbedStage):
    """A probe of phones beside conversations.

    recordings: files of transcripts. clips: rows of recordings in each step. blocks: of 2 s, of each row.
    digits: how often a recording of digits only is drawn, against any other.
    talk_weight: the loss is what a phone costs the probe, and this times the mean loss of the Thinker's tokens.

    Raises:
        ConfigError: a setting outside of its range, or no recordings.
    """

    recordings: tuple[str, ...] = ("audio_text.jsonl", *(f"audio_text_{name}.jsonl" for name in FSDD_SPEAKERS))
    clips: int = 16
    blocks: int = 3
    digits: float = 0.35
    talk_weight: float = 1.0

    def __post_init__(self):
        if self.clips < 1 or self.blocks < 1:
            raise ConfigError(f"stage.clips = {self.clips} and stage.blocks = {self.blocks} must be at least 1.")
        if not self.digits > 0 or not self.talk_weight >= 0:
            raise ConfigError(
                f"stage.digits = {self.digits:g} must be above 0, stage.talk_weight = {self.talk_weight:g} at least 0."
            )
        if not self.recordings:
            raise ConfigError("stage.recordings is empty. Name files of transcripts, such as audio_text.jsonl.")

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> "PhonesTask":
        """Raises ConfigError, see `ProbedStage`."""
        usual = self.usual(run, model, sources, "audio_blocks")
        return PhonesTask(**usual, talk_weight=self.talk_weight)

    def batch_shapes(self, run: "RunConfig", model: OmniConfig, rows: int) -> PhoneBatch:
        """As `omni_jax.training.batch_shapes`."""
        audio = model.thinker_config.audio_config
        frames = self.blocks * _block_frames(model)
        return PhoneBatch(
            abstract_batch(run.data.shape, rows, config=model),
            jax.ShapeDtypeStruct((self.clips, self.blocks, audio.block_frames, audio.num_mel_bins), jnp.float32),
            jax.ShapeDtypeStruct((self.clips, self.blocks), jnp.int32),
            jax.ShapeDtypeStruct((self.clips, room_for_phones(frames)), jnp.int32),
        )

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        """Conversations as usual, and beside them recordings."""
        conversations = super().open_data(run, voices, progress)
        processor, block = read_processor_config(run.checkpoint), _block_frames(read_config(run.checkpoint))

        def opened(sources, rows, *, held_out: bool = False) -> Beside:
            loader = conversations(sources, rows, held_out=held_out)
            paths, frames = [Path(path) for path in self.recordings], self.blocks * block
            heard = Recordings.read(paths, processor, frames=frames, digits=self.digits, progress=progress)
            return with_recordings(loader, heard, self, block, run.data.seed)

        return opened


def with_recordings(loader: Any, heard: Recordings, stage: PhonesStage, block: int, seed: int) -> Beside:
    """Batches of a loader, and rows of recordings beside each, in blocks of `block` frames."""

    def put(talk: Any, step: int) -> PhoneBatch:
        rows = heard.at(step, stage.clips, stage.blocks, block, seed)
        return PhoneBatch(talk, rows.mel, rows.frames, rows.phones)

    return Beside(loader, put, name="recordings", about=[len(heard.ends), len(heard.mel), heard.digest])


def _block_frames(model: OmniConfig) -> int:
    return model.thinker_config.audio_config.block_frames


@dataclass(frozen=True)
class PhonesTask(ThinkerTask):
    """What phones cost the probe, and conversations the Thinker, see `PhonesStage`.

    Reports `talk`, the Thinker's loss, and its parts; `phones`: nats a phone.
    """

    talk_weight: float = 1.0

    @cached_property
    def auxiliary(self) -> dict[str, tuple[tuple[str | None, ...], Float[np.ndarray, "..."]]]:
        """The probe, see `Task`: a token to two places of a phone or the blank, which is 0.

        Its logical axes are those of a head, which Muon leaves to AdamW.
        """
        width, scores = self.config.thinker_config.audio_config.output_dim, _PLACES * (len(PHONES) + 1)
        return {
            "probe/phones/kernel": (("embed", "vocab"), np.zeros((width, scores), np.float32)),
            "probe/phones/bias": (("vocab",), np.zeros(scores, np.float32)),
        }

    def loss(self, params: Params, batch: PhoneBatch, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`."""
        talk = super().loss(params, batch.talk, key)
        copied = compute_copy(params, self.dtype)
        scores, silent = self.scores(copied, batch.mel, batch.frames)
        absent = (batch.phones == 0).astype(jnp.float32)
        losses = optax.ctc_loss(scores, silent, batch.phones, absent, blank_id=0)
        phones = Total(losses.sum(), (1 - absent).sum())
        one = jnp.ones((), jnp.float32)
        total = Total(phones.mean + self.talk_weight * talk.total.mean, one)
        return Losses(total, talk.parts | {"talk": talk.total, "phones": phones})

    def scores(
        self, params: Params, mel: Float[Array, "B G F M"], frames: Int[Array, "B G"]
    ) -> tuple[Float[Array, "B C K"], Float[Array, "B C"]]:
        """Scores of the blank and each phone, 50 places a second, and 1 where there is no sound."""
        config, (rows, blocks, *_) = self.config.thinker_config.audio_config, mel.shape
        encoder = AudioEncoder(config, dtype=self.dtype, remat=self.remat)
        tokens, _ = encoder.apply({"params": params["audio_encoder"]}, mel.reshape(-1, *mel.shape[2:]), frames.ravel())
        silent = jnp.arange(tokens.shape[1]) >= audio_tokens(frames.ravel())[:, None]
        tokens = tokens.astype(jnp.float32)
        tokens = tokens * jax.lax.rsqrt(jnp.mean(tokens * tokens, axis=-1, keepdims=True) + 1e-6)
        probe = params["probe"]["phones"]
        scores = tokens @ probe["kernel"].astype(jnp.float32) + probe["bias"]
        places = blocks * tokens.shape[1] * _PLACES
        return scores.reshape(rows, places, -1), jnp.repeat(silent, _PLACES, axis=1).reshape(rows, places) * 1.0
