"""Parity of the Thinker: embeddings with media in place, decoder layers, final norm, logits and greedy tokens."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import TextConfig
from omni_jax.interop import reference
from omni_jax.interop.parity_rows import Row, Step, Where, compare, named_axes
from omni_jax.models.thinker import Thinker, place_media
from omni_jax.sampling.generate import Sampler
from omni_jax.sampling.options import SamplingOptions

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

TOLERANCE = 1e-4  # end to end
TOLERANCE_ALONE = 2e-5  # one layer
_NEW_TOKENS = 16
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
    """Rows of the Thinker of `subject`.

    With all weights in memory the decoder runs as it is, over a padded batch of all prompts. Otherwise it runs layer
    by layer, the weights of one layer at a time. Either way each layer also runs alone on the reference's inputs.
    """
    run = _Run(subject)
    embeddings = run.embeddings()
    yield compare(
        "thinker embeddings, media placed",
        [Step("thinker.embeddings", run.real(embeddings), run.theirs("input"), run.where)],
        tolerance=TOLERANCE,
    )
    if subject.in_memory:
        hidden, outputs = run.whole(embeddings)
        alone = compare("thinker, each layer alone", run.each_alone(), tolerance=TOLERANCE_ALONE)
    else:
        outputs = []
        alone = compare(
            "thinker, each layer alone", run.alone_and_carried(embeddings, outputs), tolerance=TOLERANCE_ALONE
        )
        hidden = outputs.pop()
    yield alone
    steps = (
        Step(f"thinker.layers.{index} output", run.real(ours), run.theirs(f"layers.{index}"), run.where)
        for index, ours in enumerate(outputs)
    )
    yield compare("thinker layers, end to end", steps, tolerance=TOLERANCE)
    hidden = run.real(hidden)
    yield compare(
        "thinker final norm",
        [Step("thinker.final_norm output", hidden, run.theirs("output"), run.where)],
        tolerance=TOLERANCE,
    )
    logits, their_logits = run.logits(hidden), subject.reference.joined("logits")
    yield compare("logits", [Step("logits", logits, their_logits, run.where_logit)], tolerance=TOLERANCE)
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
    sampler = Sampler(
        subject.weights.params, subject.config, subject.tokenizer, subject.processor, dtype=jnp.float32, chunk=512
    )  # the longest prompt takes two chunks
    options = SamplingOptions(max_new_tokens=_NEW_TOKENS)
    answers = sampler.generate(list(subject.requests.values()), options)
    for (name, request), answer in zip(subject.requests.items(), answers):
        inputs = reference.thinker_inputs([request], subject.config, pad_id=0)
        stops = dict(stop_ids=sampler.stop_ids, pad_id=sampler.stop_ids[0])
        theirs = reference.generate(subject.reference.model, inputs, options, **stops)[0]
        yield _token_row(f"greedy tokens: {name}", answer.token_ids, theirs)


def _token_row(name: str, ours: list[int], theirs: list[int]) -> Row:
    pairs = list(zip_longest(ours, theirs, fillvalue="nothing"))
    differ = [place for place, (our, their) in enumerate(pairs) if our != their]
    diverges_at = None
    if differ:
        our, their = pairs[differ[0]]
        diverges_at = f"token {differ[0]} of the answer: ours {our}, PyTorch {their}"
    return Row(name, float(len(differ)), len(differ) / max(1, len(theirs)), 0.0, not differ, diverges_at)


class _Run:
    """Our Thinker over a padded batch [B, T]; rows are the real tokens, prompt after prompt."""

    def __init__(self, subject: "Subject"):
        self.subject, self.inputs = subject, subject.inputs
        self.config: TextConfig = subject.config.thinker_config.text_config
        self._real = np.arange(self.inputs.token_ids.shape[1]) < self.inputs.lengths[:, None]
        self._places = np.argwhere(self._real)
        self._positions = jnp.asarray(self.inputs.position_ids)
        self.ends = np.cumsum(self.inputs.lengths[self.inputs.lengths > 0]) - 1

    def real(self, x: Any) -> np.ndarray:
        return np.asarray(x)[self._real]

    def padded(self, rows: np.ndarray) -> np.ndarray:
        x = np.zeros((*self._real.shape, rows.shape[-1]), np.float32)
        x[self._real] = rows
        return x

    def theirs(self, stage: str) -> np.ndarray:
        return self.subject.reference.joined(f"thinker.{stage}")

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

    def whole(self, embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = self.subject.weights.tree("thinker")
        params = {name: params[name] for name in ("layers", "final_norm")}
        return _decode(params, embeddings, self._positions, config=self.config)

    def each_alone(self) -> Iterator[Step]:
        for index in range(self.config.num_hidden_layers):
            _, output = self._layer(index, self.padded(self._before(index)), self._positions)
            yield self._alone(index, output)

    def alone_and_carried(self, embeddings: jax.Array, outputs: list[np.ndarray]) -> Iterator[Step]:
        """Two chains through each layer at once: the reference's inputs, and our own. Ours goes into `outputs`."""
        batch, positions = len(embeddings), jnp.concatenate([self._positions] * 2, axis=1)
        carried = np.asarray(embeddings)
        for index in range(self.config.num_hidden_layers):
            both = np.concatenate([self.padded(self._before(index)), carried])
            hidden, output = self._layer(index, both, positions)
            carried = np.asarray(output[batch:])
            outputs.append(carried)
            yield self._alone(index, output[:batch])
        outputs.append(np.asarray(hidden[batch:]))

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """[rows, V], computed a slice of the vocabulary at a time."""
        parts = []
        for kernel in self.subject.weights.columns("thinker/lm_head/kernel", _VOCABULARY_SLICE):
            config = replace(self.config, vocab_size=kernel.shape[1])
            parts.append(np.asarray(_logits({"lm_head": {"kernel": kernel}}, hidden, config=config)))
        return np.concatenate(parts, axis=-1)

    def _layer(self, index: int, x: np.ndarray, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Layer `index` as a decoder of one layer: hidden states after the final norm, and before it."""
        self.subject.progress(f"layer {index}")
        weights = self.subject.weights
        params = {"layers": weights.layer("thinker/layers", index), "final_norm": weights.tree("thinker/final_norm")}
        hidden, outputs = _decode(params, x, positions, config=replace(self.config, num_hidden_layers=1))
        return hidden, outputs[0]

    def _before(self, index: int) -> np.ndarray:
        return self.theirs(f"layers.{index - 1}" if index else "input")

    def _alone(self, index: int, output: jax.Array) -> Step:
        return Step(f"thinker.layers.{index} alone", self.real(output), self.theirs(f"layers.{index}"), self.where)

    @property
    def where(self) -> Where:
        return self._named("channel")

    @property
    def where_logit(self) -> Where:
        return self._named("logit of id")

    def _named(self, last: str) -> Where:
        names = list(self.subject.requests)

        def place(index):
            prompt, token = self._places[index[0]]
            return f"prompt '{names[prompt]}', token {token}, {last} {index[1]}"

        return place
