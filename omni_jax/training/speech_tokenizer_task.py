"""Training the speech tokenizer by either route (omni_jax/models/speech_tokenizer.py)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from input_pipeline.speech_batch import CodedSpeech, TranscribedSpeech
from omni_jax.config import SpeechTokenizerConfig
from omni_jax.errors import ConfigError
from omni_jax.layers import fsq
from omni_jax.models.speech_tokenizer import (
    SpeechTokenizer,
    Tokenized,
    code_counts,
    codebook_use,
    valid_positions,
)
from omni_jax.training.objectives import Total, score_tokens
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses

Params = Any
COMPONENT = "speech_tokenizer"

for _kind in (CodedSpeech, TranscribedSpeech):
    jax.tree_util.register_dataclass(_kind, [field.name for field in dataclasses.fields(_kind)], [])


@dataclass(frozen=True)
class InversionTask:
    """Cross-entropy of the code of each position, by which a published decoder made the sound.

    Reports `accuracy`: the share of positions whose code is the likeliest.

    Args:
        dtype: of compute.
        remat: what layers keep for the backward pass, see `omni_jax/layers/remat.py`.
        chunk: positions whose logits exist at a time on a device.
    """

    config: SpeechTokenizerConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "full"
    chunk: int = 512
    components = (COMPONENT,)

    def __post_init__(self):
        _check_route(self.config, "inversion")

    def loss(self, params: Params, batch: CodedSpeech, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`."""
        params = compute_copy(params, self.dtype)
        out = _tokenize(self, params, batch.mel, batch.frames)
        counts = valid_positions(batch.frames, out.codes.shape[1] // batch.frames.shape[1]) & (batch.codes >= 0)
        head = params[COMPONENT]["head"]["kernel"]
        scores = score_tokens(out.hidden_states, head, batch.codes, counts.astype(jnp.float32), chunk=self.chunk)
        return Losses(scores.total, {"accuracy": scores.accuracy})


@dataclass(frozen=True)
class ScratchTask:
    """Codes from which the text can be recognised and the mel restored.

    The loss is that of the text, for each of its labels, and `mel_weight` times the mean absolute error of the mel. It
    is a mean over rows. Reports both (`text`, `mel`), and of the codes of a batch the share of all codes that it uses
    (`usage`) and their `perplexity`. Rows whose text cannot be said in their time, one label to a position and a blank
    between equal ones, do not train the text; their share is `too_fast`.
    """

    config: SpeechTokenizerConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "full"
    mel_weight: float = 1.0
    components = (COMPONENT,)

    def __post_init__(self):
        _check_route(self.config, "scratch")
        if self.mel_weight <= 0:
            raise ConfigError(f"mel_weight = {self.mel_weight:g} must be above 0, or nothing trains the mel's decoder.")
        codes = math.prod(fsq.check_levels(self.config.levels))
        if codes != self.config.num_codes:
            raise ConfigError(
                f"levels = {list(self.config.levels)} make {codes} codes, num_codes is {self.config.num_codes}. "
                "Make them equal."
            )

    def loss(self, params: Params, batch: TranscribedSpeech, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`."""
        params = compute_copy(params, self.dtype)
        out = _tokenize(self, params, batch.mel, batch.frames)
        text, alignable = text_loss(out, batch.text_ids)
        real = jnp.arange(batch.mel.shape[2]) < batch.frames[..., None]
        real = real.reshape(batch.frames.shape[0], -1).astype(jnp.float32)
        frames = real.sum(axis=1)
        errors = jnp.mean(jnp.abs(out.mel - batch.target_mel), axis=-1)
        mel = jnp.sum(errors * real, axis=1) / jnp.maximum(frames, 1)

        sound = (frames > 0).astype(jnp.float32)
        said = sound * alignable * (batch.text_ids[:, 0] > 0)
        total = Total(jnp.sum(said * text + self.mel_weight * sound * mel), jnp.sum(sound))
        usage, perplexity = codebook_use(code_counts(out.codes, self.config.num_codes))
        one = jnp.minimum(jnp.sum(sound), 1)  # of a batch without sound there is nothing to say
        parts = {
            "text": Total(jnp.sum(said * text), jnp.sum(said)),
            "mel": Total(jnp.sum(sound * mel), jnp.sum(sound)),
            "too_fast": Total(jnp.sum(sound * (1 - alignable)), jnp.sum(sound)),
            "usage": Total(one * usage, one),
            "perplexity": Total(one * perplexity, one),
        }
        return Losses(total, parts)


def text_loss(out: Tokenized, text_ids: Int[Array, "B S"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Negative log-probability of each row's text, for each label (connectionist temporal classification, Graves et
    al. 2006), and 1 for the rows that are long enough for their text, else 0."""
    present = text_ids > 0
    labels = present.sum(axis=1)
    repeats = jnp.sum(present[:, 1:] & (text_ids[:, 1:] == text_ids[:, :-1]), axis=1)
    silent = out.codes < 0
    alignable = labels + repeats <= jnp.sum(~silent, axis=1)
    losses = optax.ctc_loss(
        out.text_logits, silent.astype(jnp.float32), text_ids, (~present).astype(jnp.float32), blank_id=0
    )
    return jnp.where(alignable, losses, 0) / jnp.maximum(labels, 1), alignable.astype(jnp.float32)


def greedy_text(out: Tokenized) -> list[list[int]]:
    """The labels of the likeliest path of each row: equal neighbours are one, and blanks nothing. On the host."""
    rows = []
    for best, codes in zip(jax.device_get(jnp.argmax(out.text_logits, axis=-1)), jax.device_get(out.codes)):
        best = best[codes >= 0]
        fresh = [label for place, label in enumerate(best) if place == 0 or label != best[place - 1]]
        rows.append([int(label) for label in fresh if label > 0])
    return rows


def _tokenize(task: InversionTask | ScratchTask, params: Params, mel: Array, frames: Array) -> Tokenized:
    model = SpeechTokenizer(task.config, dtype=task.dtype, remat=task.remat)
    return model.apply({"params": params[COMPONENT]}, mel, frames, training=True)


def _check_route(config: SpeechTokenizerConfig, route: str) -> None:
    if config.route != route:
        raise ConfigError(f"The speech tokenizer takes the route {config.route}, not {route}. Choose its own task.")
