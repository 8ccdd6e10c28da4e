"""Parity of the Talker: both tracks projected, decoder layers, logits of codes, and decoding code by code.

It hears a real prompt, as the reference's Thinker understood it, then an answer of one word and given codes. The
reference runs as it does when it generates: the prompt in one call, then a code a call with its cache.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.request import Request
from omni_jax.config import TalkerConfig
from omni_jax.interop import reference_speech
from omni_jax.interop.parity_decoder import TOLERANCE, DecoderRun
from omni_jax.interop.parity_rows import Row, Step, compare
from omni_jax.interop.reference_trace import Trace
from omni_jax.layers.decoder import Decoder
from omni_jax.models.talker import Talker, talker_cache
from omni_jax.sampling.voices import choose_speaker

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

_CODES = 3  # fed one by one


@partial(jax.jit, static_argnames=("config",))
def _whole(params, text, codes, position_ids, *, config: TalkerConfig):
    out = Talker(config, trace=True).apply({"params": params}, text, codes, position_ids, method="decode")
    return out.hidden_states, out.layer_outputs


@partial(jax.jit, static_argnames=("config",))
def _cached(params, x, position_ids, prompts, *, config: TalkerConfig):
    """Prompts in one piece, then place by place over the cache: final hidden states, and before the norm."""
    decoder, (batch, length, _) = Decoder(config, trace=True), x.shape
    cache = talker_cache(config, batch=batch, length=length)
    # what comes after a row's prompt is not known yet; zeros stand in its slots until they are written
    known = (jnp.arange(length) < prompts[:, None])[..., None]
    hidden, cache, outputs = decoder.apply(
        {"params": params}, jnp.where(known, x, 0), position_ids, cache, jnp.zeros(batch, jnp.int32)
    )
    output, rows = outputs[-1], jnp.arange(batch)
    for step in range(_CODES):
        place = prompts + step
        one, cache, outputs = decoder.apply(
            {"params": params}, x[rows, place][:, None], position_ids[:, rows, place][..., None], cache, place
        )
        hidden = hidden.at[rows, place].set(one[:, 0])
        output = output.at[rows, place].set(outputs[-1][:, 0])
    return hidden, output


@partial(jax.jit, static_argnames=("config",))
def _logits(params, hidden_states, *, config: TalkerConfig):
    return Talker(config).apply({"params": params}, hidden_states, method="logits")


def talker_rows(subject: "Subject") -> Iterator[Row]:
    """Rows of the Talker of `subject`; none where it has no Talker."""
    if not subject.speaks:
        return
    run = _TalkerRun(subject)
    x = run.entrance()
    yield compare(
        "talker input, both tracks projected",
        [Step("talker.input", run.real(x), run.theirs("input"), run.where)],
        tolerance=TOLERANCE,
    )
    yield from run.decoder_rows(x)
    theirs, where = run.theirs("logits"), run.named("logit of code")
    logits = run.logits(run.hidden)
    yield compare("talker logits", [Step("talker.logits", logits, theirs, where)], tolerance=TOLERANCE)
    cached = run.logits(run.real(run.cached(x)))
    yield compare("talker, code by code", [Step("talker.logits", cached, theirs, where)], tolerance=TOLERANCE)


class _TalkerRun(DecoderRun):
    """Our Talker over all prompts in one batch, with the reference's positions."""

    def __init__(self, subject: "Subject"):
        cases = [_Case(subject, index) for index in range(len(subject.requests))]
        self._traces = [case.trace for case in cases]
        lengths = np.array([len(case.text) for case in cases])
        shape = len(cases), int(lengths.max())
        positions = np.zeros((3, *shape), np.int32)
        for row, case in enumerate(cases):
            positions[:, row, : lengths[row]] = case.positions
        super().__init__(subject, "talker", subject.config.talker_config, lengths, positions)
        self.text = self.padded(np.concatenate([case.text for case in cases]))
        self.codes = self.padded(np.concatenate([case.codes for case in cases]))
        self._prompts = jnp.asarray(lengths - _CODES)
        self._carried: np.ndarray | None = None

    def theirs(self, stage: str) -> np.ndarray:
        return np.concatenate([trace[f"talker.{stage}"] for trace in self._traces])

    @cached_property
    def _ends(self) -> dict[str, Any]:
        """All parameters but the layers'."""
        names = ("embed", "projection", "final_norm")
        return {name: self.subject.weights.tree(f"talker/{name}") for name in names}

    def entrance(self) -> jax.Array:
        """What the first layer gets: a layer of zeros passes it on, so its trace shows it."""
        layer = self.subject.weights.layer("talker/layers", 0)
        params = self._ends | {"layers": jax.tree.map(jnp.zeros_like, layer)}
        one = replace(self.config, num_hidden_layers=1)
        x = _whole(params, self.text, self.codes, self.positions, config=one)[1][0]
        self._carried = np.asarray(x)
        return x

    def whole(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = self._ends | {"layers": self.subject.weights.tree("talker/layers")}
        return _whole(params, self.text, self.codes, self.positions, config=self.config)

    def carry(self, index: int, params: Any) -> None:
        """The decoding chain, layer by layer: each keeps its own cache over all places."""
        one = replace(self.config, num_hidden_layers=1)
        hidden, output = _cached(params, self._carried, self.positions, self._prompts, config=one)
        self._carried, self._cached_hidden = np.asarray(output), hidden

    def cached(self, x: jax.Array) -> jax.Array:
        """Final hidden states of decoding code by code."""
        if not self.subject.in_memory:
            return self._cached_hidden
        params = {"layers": self.subject.weights.tree("talker/layers"), "final_norm": self._ends["final_norm"]}
        return _cached(params, x, self.positions, self._prompts, config=self.config)[0]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        params = {"codec_head": self.subject.weights.tree("talker/codec_head")}
        return np.asarray(_logits(params, hidden, config=self.config))


class _Case:
    """What the Talker hears of one prompt, and what the reference made of it.

    text: float32 [P + 2 + codes, E]; codes: int32, -1 where there is none.
    """

    trace: Trace
    positions: np.ndarray

    def __init__(self, subject: "Subject", index: int):
        request = list(subject.requests.values())[index]
        config, talker = subject.config, subject.config.talker_config
        thinker = subject.reference.traces[index]
        first = int(thinker["logits"][-1].argmax())
        voice = choose_speaker(subject.voices).token_id
        words = np.array([voice, first, talker.tts_text_end_token_id, *[talker.tts_text_pad_token_id] * (_CODES - 1)])
        rows = np.asarray(subject.weights.rows("thinker/embed/embedding", words))
        self.text = np.concatenate([_prompt_vectors(request, thinker), rows])
        given = np.random.default_rng(index).integers(0, config.token2wav_config.dit_config.num_embeds, _CODES)
        begin = [talker.tts_codec_pad_token_id, talker.tts_codec_start_token_id]
        self.codes = np.concatenate([np.full(len(request.token_ids), -1), begin, given]).astype(np.int32)
        ids = np.concatenate([request.token_ids, words[:2]])
        self.trace, self.positions = reference_speech.talker_trace(
            subject.reference.speech.talker, request, config, text=self.text, ids=ids, codes=given.tolist()
        )


def _prompt_vectors(request: Request, thinker: Trace) -> np.ndarray:
    """h + e, without e where media stand: float32 [P, E]."""
    media = (request.audio_row >= 0) | (request.vision_row >= 0)
    return thinker["thinker.output"] + np.where(media[:, None], 0, thinker["thinker.input"]).astype(np.float32)
