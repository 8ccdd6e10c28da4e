"""Conversations to training examples: ChatML, loss on the assistant's words, cut at turns where they are too long."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.dialogue import Dialogue, Piece
from input_pipeline.example_context import ExampleContext
from input_pipeline.messages import one_form
from input_pipeline.training_batch import Example, RowShape, Sizes
from omni_jax.errors import DataError, MediaError, PromptError


@dataclass(frozen=True)
class Rejection:
    """A sample, or a part of one, that cannot be used. `kind` is one of `errors.DATA_ERROR_KINDS`."""

    name: str
    kind: str
    reason: str


def make_examples(
    conversation: Mapping[str, Any],
    context: ExampleContext,
    *,
    name: str,
    limit: RowShape,
    rejected: list[Rejection] | None = None,
) -> list[Example]:
    """The examples that one conversation gives: one, or several where it had to be cut between turns.

    The words of assistant turns and their `<|im_end|>` weigh 1, all else 0; `"loss": false` on a message switches its
    turn off. A plain `{"text": ...}` is learned whole, up to an `<|endoftext|>` at its end, but for its first token,
    which nothing predicts; too long, it is cut anywhere.

    Args:
        conversation: see `messages.one_form`.
        name: what messages and examples call it, such as "train.jsonl:12".
        limit: room for one example; media are counted as the tokens and patches that they expand to.
        rejected: gets the exchanges that are too long by themselves; without it the first of them is raised.

    Raises:
        DataError: malformed, wrong roles, nothing to learn, or media that are missing or corrupt; begins with the name.
    """
    sample = Sample(conversation, context, name=name)
    pieces, refused = sample.pieces(limit)
    if refused and rejected is None:
        raise DataError(f"{refused[0].name}: {refused[0].reason}", refused[0].kind)
    if rejected is not None:
        rejected += refused
    return [sample.example(piece.start, piece.stop) for piece in pieces]


class Sample:
    """One conversation or text, from which examples can be had one by one. All its errors begin with its name."""

    def __init__(
        self, conversation: Mapping[str, Any], context: ExampleContext, *, name: str, folder: Path | None = None
    ):
        self._name = name
        with _named(name):
            content = one_form(conversation, folder)
            chosen = Dialogue(content["messages"], context) if "messages" in content else _Text(content, context)
            self._content: Dialogue | _Text = chosen

    def pieces(self, limit: RowShape) -> tuple[list[Piece], list[Rejection]]:
        """What becomes examples within `limit`, and what cannot. Opens all media, but computes no features."""
        with _named(self._name):
            pieces, refused = self._content.pieces(limit)
        return pieces, [Rejection(self.part_name(a, b), error.kind, str(error)) for a, b, error in refused]

    def example(self, start: int, stop: int) -> Example:
        """The example of one piece; opens its media only."""
        name = self.part_name(start, stop)
        with _named(name):
            return self._content.example(name, start, stop)

    def cut(self, start: int, stop: int) -> dict[str, Any]:
        """One piece as a conversation of its own, in the one form."""
        return self._content.cut(start, stop)

    def __len__(self) -> int:
        return len(self._content)

    def part_name(self, start: int, stop: int) -> str:
        """The name of a part: "train.jsonl:12", or "train.jsonl:12, exchanges 2-3"."""
        if (start, stop) == (0, len(self._content)):
            return self._name
        unit = "token" if isinstance(self._content, _Text) else "exchange"
        return f"{self._name}, {unit} {stop}" if stop - start == 1 else f"{self._name}, {unit}s {start + 1}-{stop}"


class _Text:
    """A plain text, or the token ids of one that was cut."""

    def __init__(self, content: Mapping[str, Any], context: ExampleContext):
        self._content, self._context = content, context
        _ = self.ids

    @cached_property
    def ids(self) -> np.ndarray:
        tokenizer = self._context.tokenizer
        if "text" in self._content:
            ids = [*tokenizer.encode(self._content["text"]), tokenizer.token_id("<|endoftext|>")]
            return np.array(ids, np.int32)
        ids = self._content["token_ids"]
        ids = np.frombuffer(ids, "<i4") if isinstance(ids, bytes) else np.asarray(ids)
        numbers = ids.ndim == 1 and ids.dtype.kind in "iu" and len(ids)
        if not numbers or ids.min() < 0 or ids.max() >= tokenizer.vocab_size:
            raise DataError(f"'token_ids' must be a list of ids below {tokenizer.vocab_size}.")
        return ids.astype(np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def pieces(self, limit: RowShape) -> tuple[list[Piece], list[tuple[int, int, DataError]]]:
        positions = self._context.config.thinker_config.text_config.max_position_embeddings
        total, room = len(self), min(limit.tokens, positions)
        if total < 2:
            return [], [(0, total, DataError("the text has a single token, which nothing predicts.", "empty mask"))]
        if total > room and room < 3:
            return [], [(0, total, DataError(f"the text takes {total} tokens (at most {room}).", "too long"))]
        starts = list(range(0, total, room))
        if total - starts[-1] == 1:
            starts[-1] -= 1  # a last token alone would have nothing to predict it
        stops = [*starts[1:], total]
        return [Piece(a, b, Sizes(b - a)) for a, b in zip(starts, stops, strict=True)], []

    def example(self, name: str, start: int, stop: int) -> Example:
        ids = self.ids[start:stop]
        weights = np.ones(len(ids), np.float32)
        weights[0] = 0
        none = np.full(len(ids), -1, np.int32)
        positions = np.broadcast_to(np.arange(len(ids), dtype=np.int32), (3, len(ids)))
        return Example(name, ids, positions, weights, (), (), none, none)

    def cut(self, start: int, stop: int) -> dict[str, Any]:
        if (start, stop) == (0, len(self)):
            return dict(self._content)
        return {"token_ids": self.ids[start:stop].astype("<i4").tobytes()}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors inside the block become `DataError`s that begin with `name`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}", error.kind) from error
    except PromptError as error:
        raise DataError(f"{name}: {error}") from error
    except MediaError as error:
        raise DataError(f"{name}: {error}", "corrupt media") from error
