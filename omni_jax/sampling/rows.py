"""The rows of a batch of answers: options in, tokens followed to their ends, events out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from input_pipeline.tokenizer import StreamDecoder, Tokenizer
from omni_jax.errors import NumericsError, PromptError
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.warpers import WarperOptions

MAX_STOPS = 8  # stop ids a request may have; part of a program's shape


@dataclass(frozen=True)
class Event:
    """One thing that happened to one request: a piece of text, or the end of its answer."""

    row: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None  # "stop" or "length" at the end


class TextFollower:
    """Turns one row's tokens into events, up to its end."""

    def __init__(self, row: int, tokenizer: Tokenizer, stop_ids: tuple[int, ...]):
        self.row, self.stop_ids, self.reason = row, stop_ids, None
        self.token_ids: list[int] = []
        self._decoder = StreamDecoder(tokenizer)

    @property
    def ended(self) -> bool:
        return self.reason is not None

    @property
    def count(self) -> int:
        return len(self.token_ids)

    def take(self, tokens: np.ndarray, done: bool) -> Iterator[Event]:
        """What a block brought; nothing after the end."""
        if self.ended:
            return
        ids = tuple(int(token) for token in tokens if token >= 0)
        self.token_ids += ids
        text = "".join(self._decoder.push(token) for token in ids if token not in self.stop_ids)
        if not done:
            if ids:
                yield Event(self.row, text, ids)
            return
        self.reason = "stop" if self.token_ids and self.token_ids[-1] in self.stop_ids else "length"
        yield Event(self.row, text + self._decoder.flush(), ids, self.reason)


def one_each(options: Any, count: int) -> list:
    """Options for each request: as given, or the one set for all.

    Raises:
        PromptError: not one set for each.
    """
    each = list(options) if isinstance(options, Sequence) else [options] * count
    if len(each) != count:
        raise PromptError(f"{len(each)} sets of options were given for {count} requests.")
    return each


def padded(values: Sequence[int], batch: int) -> Int[np.ndarray, "B"]:
    """int32 values of the real rows, 0 for the rest."""
    return np.asarray([*values, *[0] * (batch - len(values))], np.int32)


def check_finite(broken: np.ndarray, track: str) -> None:
    """Raises NumericsError if the logits of any row were not finite."""
    if broken.any():
        raise NumericsError(
            f"Request {int(broken.argmax())}: the model's logits are not finite ({track}). Check the weights with "
            "`omni-jax parity --checkpoint`, use --dtype float32, or choose a repetition penalty nearer to 1."
        )


def stop_table(stop_ids: Sequence[int], batch: int) -> jax.Array:
    """Stop ids for every row of a batch, padded with -1 to one width."""
    stops = np.full((batch, MAX_STOPS), -1, np.int32)
    stops[:, : len(stop_ids)] = stop_ids
    return jnp.asarray(stops)


def warper_options(options: Sequence[SamplingOptions], batch: int) -> WarperOptions:
    """One value a row; padding rows are greedy."""
    padded = list(options) + [SamplingOptions()] * (batch - len(options))
    kinds = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "repetition_penalty": np.float32}
    kinds["seed"] = np.int32
    return WarperOptions(
        **{name: jnp.asarray([getattr(option, name) for option in padded], kind) for name, kind in kinds.items()}
    )
