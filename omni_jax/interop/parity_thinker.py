"""Parity of the Thinker: embeddings with media in place, decoder layers, final norm, logits and greedy tokens."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import TextConfig
from omni_jax.interop import reference
from omni_jax.interop.parity_decoder import TOLERANCE, DecoderRun
from omni_jax.interop.parity_rows import Row, Step, compare, named_axes
from omni_jax.models.thinker import Thinker, place_media
from omni_jax.sampling.options import SamplingOptions

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

NEW_TOKENS = 16
_VOCABULARY_SLICE = 16384


@partial(jax.jit, static_argnames=("config",))
def _embed(params, token_ids, *, config: TextConfig):
    return Thinker(config).apply({"params": params}, token_ids, method="embed")


@partial(jax.jit, static_argnames=("config",))
def _decode(params, embeddings, position_ids, *, config: TextConfig):
    out = Thinker(config, trace=True).apply({"params": params}, embeddings, position_ids, method="decode")
    return out.hidden_states, out.layer_outputs


@partial(jax.jit, static_argnames=("config",))
def _logits(params, hidden_states, *, config: TextConfig):
    return Thinker(config).apply({"params": params}, hidden_states, method="logits")


def thinker_rows(subject: "Subject") -> Iterator[Row]:
    """Rows of the Thinker of `subject`."""
    run = _ThinkerRun(subject)
    embeddings = run.embeddings()
    yield compare(
        "thinker embeddings, media placed",
        [Step("thinker.embeddings", run.real(embeddings), run.theirs("input"), run.where)],
        tolerance=TOLERANCE,
    )
    yield from run.decoder_rows(embeddings)
    logits, their_logits = run.logits(run.hidden), subject.reference.joined("logits")
    yield compare("logits", [Step("logits", logits, their_logits, run.named("logit of id"))], tolerance=TOLERANCE)
    if not subject.in_memory:  # no generation layer by layer; its first step is known all the same
        first = [
            Step(f"first token of prompt '{name}'", ours, theirs, named_axes("token"))
            for name, ours, theirs in zip(
                subject.requests,
                logits[run.ends].argmax(-1, keepdims=True),
                their_logits[run.ends].argmax(-1, keepdims=True),
            )
        ]
        yield compare("greedy tokens: the first only", first, tolerance=0.0)


def greedy_rows(subject: "Subject") -> Iterator[Row]:
    """A row for each prompt: the sampler's greedy answers to all in one batch, and the reference's to each alone.

    `max_abs` is the number of tokens that differ, `max_rel` their share.
    """
    if not subject.in_memory:
        return
    sampler, options = subject.sampler, SamplingOptions(max_new_tokens=NEW_TOKENS)
    answers = sampler.generate(list(subject.requests.values()), options)
    for (name, request), answer in zip(subject.requests.items(), answers):
        inputs = reference.thinker_inputs([request], subject.config, pad_id=0)
        stops = dict(stop_ids=sampler.stop_ids, pad_id=sampler.stop_ids[0])
        theirs = reference.generate(subject.reference.model, inputs, options, **stops)[0]
        yield token_row(f"greedy tokens: {name}", answer.token_ids, theirs)


def token_row(name: str, ours: list[int], theirs: list[int], *, kind: str = "token") -> Row:
    """Two answers, id by id: `max_abs` is the number of those that differ, `max_rel` their share."""
    pairs = list(zip_longest(ours, theirs, fillvalue="nothing"))
    differ = [place for place, (our, their) in enumerate(pairs) if our != their]
    diverges_at = None
    if differ:
        our, their = pairs[differ[0]]
        diverges_at = f"{kind} {differ[0]} of the answer: ours {our}, PyTorch {their}"
    return Row(name, float(len(differ)), len(differ) / max(1, len(theirs)), 0.0, not differ, diverges_at)


class _ThinkerRun(DecoderRun):
    """Our Thinker over all prompts in one batch."""

    def __init__(self, subject: "Subject"):
        self.inputs, config = subject.inputs, subject.config.thinker_config.text_config
        super().__init__(subject, "thinker", config, self.inputs.lengths, self.inputs.position_ids)

    def embeddings(self) -> jax.Array:
        """[B, T, D]; of the table only the rows that the prompts use."""
        ids, places = np.unique(self.inputs.token_ids, return_inverse=True)
        table = self.subject.weights.rows("thinker/embed/embedding", ids)
        params, config = {"embed": {"embedding": table}}, replace(self.config, vocab_size=len(ids))
        x = _embed(params, places.reshape(self.inputs.token_ids.shape), config=config)
        for part, source in (
            ("audio_encoder", self.inputs.audio_source),
            ("vision_encoder", self.inputs.vision_source),
        ):
            if (source >= 0).any():
                x = place_media(x, self.subject.encoded[part], jnp.asarray(source))
        return x

    def whole(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = self.subject.weights.tree("thinker")
        params = {name: params[name] for name in ("layers", "final_norm")}
        return _decode(params, x, self.positions, config=self.config)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """[rows, V], computed a slice of the vocabulary at a time."""
        parts = []
        for kernel in self.subject.weights.columns("thinker/lm_head/kernel", _VOCABULARY_SLICE):
            config = replace(self.config, vocab_size=kernel.shape[1])
            parts.append(np.asarray(_logits({"lm_head": {"kernel": kernel}}, hidden, config=config)))
        return np.concatenate(parts, axis=-1)
