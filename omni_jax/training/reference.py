"""Log-probabilities of pairs under the reference policy: computed once, ahead, and written beside the pairs.

A file of pairs is read twice: first for the sizes of its examples, which give all rows one shape, so that one program
is compiled; then row by row. The numbers are those that `DpoTask` computes in training, by the same code.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from input_pipeline.example_context import KINDS, ExampleContext, add, excess
from input_pipeline.examples import Sample
from input_pipeline.messages import LISTS, one_form
from input_pipeline.pack_rows import pack_row
from input_pipeline.training_batch import Example, RowShape, Sizes
from omni_jax.errors import DataError
from omni_jax.interop.restore import restore_params
from omni_jax.training.dpo import DpoTask
from omni_jax.training.optimizer import is_matrix
from omni_jax.training.reference_policy import BY, policy_of

UNLIMITED = 2**31 - 1
PAIRS_IN_A_ROW = 8
Progress = Callable[[str, int, int], None]


def speech_item(conversation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The spoken answer of a conversation in the one form: an item of its last message, not a copy; None without."""
    messages = conversation.get("messages") or [{"content": ""}]
    content = messages[-1]["content"]
    items = [] if isinstance(content, str) else [item for item in content if item.get("type") == "speech"]
    return items[0] if items else None


def read_pairs(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and conversation of each line that is not blank, in the one form, with other keys that the line has.

    Raises:
        DataError: the file cannot be read, or a line is malformed or holds no pair; begins with the line's name.
    """
    folder = Path(os.path.abspath(file)).parent
    try:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    name = f"{file.name}:{number}"
                    yield name, _pair(line, name, folder)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check the path of the pairs.") from error


def reference_shape(sizes: Sequence[Sizes]) -> RowShape:
    """A row that holds the largest example, each kind rounded up to a power of two."""
    largest = {kind: max(getattr(each, kind) for each in sizes) for kind in KINDS}
    rounded = {kind: 1 << (most - 1).bit_length() if most else 0 for kind, most in largest.items()}
    rounded["patches"] = rounded["patches"] and max(rounded["patches"], 64)
    return RowShape(**{**rounded, "pairs": PAIRS_IN_A_ROW})


def plan_rows(sizes: Sequence[Sizes], shape: RowShape) -> list[range]:
    """Examples in their order, as many to a row as it holds.

    3, 4, 2, 5 tokens in rows of 8  ->  [range(0, 2), range(2, 4)]
    """
    rows, start, held = [], 0, Sizes(0)
    for i, each in enumerate(sizes):
        if i > start and excess(add(held, each), shape):
            rows.append(range(start, i))
            start, held = i, Sizes(0)
        held = add(held, each)
    return [*rows, range(start, len(sizes))] if len(sizes) else []


class ReferencePolicy:
    """A checkpoint's Thinker and Talker that judge pairs, rows of one shape at a time."""

    def __init__(self, folder: str | Path, context: ExampleContext, shape: RowShape, *, dtype: DTypeLike):
        """Loads what the shape of rows asks for; matrices in `dtype`, vectors as they are stored, as in training.

        Raises:
            ConfigError, CheckpointError: the model has no Talker, or the checkpoint does not fit.
        """
        config = context.config
        self._shape, self._config = shape, config
        task = DpoTask(config, audio=shape.audio_blocks > 0, vision=shape.patches > 0, dtype=dtype, remat="none")
        self._params = restore_params(
            folder,
            config,
            components=task.components,
            transform=lambda path, leaf: leaf.astype(dtype) if is_matrix(path) else leaf,
        )
        self._log_probs = jax.jit(task.sequence_log_probs)

    def __call__(self, examples: Sequence[Example]) -> list[tuple[float, float]]:
        """Summed log-probabilities of the chosen and the rejected answer of each example; they must fit one row.

        Raises:
            CapacityError, DataError, MediaError: see `pack_row`.
        """
        row = pack_row(examples, self._shape, self._config, allow_missing_reference=True)
        out = jax.device_get(self._log_probs(self._params, row))
        pairs = zip(out.chosen[0].tolist(), out.rejected[0].tolist())
        return [pair for pair, _ in zip(pairs, examples)]


def write_references(
    source: Path,
    target: Path,
    folder: str | Path,
    context: ExampleContext,
    *,
    dtype: Any = jnp.float32,
    progress: Progress = lambda stage, done, total: None,
) -> int:
    """Copies a file of pairs with each pair's "reference" as the checkpoint in `folder` has it; old ones are replaced.

    Whose it is stands beside it, see `reference_policy.py`.

    Paths in the copy are absolute. It appears under its name when it is whole; `target` may be `source`.

    Returns:
        How many pairs there are.

    Raises:
        DataError: a line that cannot be used, named; there is none at all; `target` cannot be written.
    """
    sizes = []
    for name, conversation in read_pairs(source):
        sizes.append(_measured(_sample(name, conversation, context), name))
        progress("measuring pairs", len(sizes), 0)
    if not sizes:
        raise DataError(f"{source}: no pairs.")
    shape = reference_shape(sizes)
    policy, half = ReferencePolicy(folder, context, shape, dtype=dtype), target.with_name(f".{target.name}.part")
    by = policy_of(folder, jnp.dtype(dtype))
    try:
        with open(half, "w", encoding="utf-8") as stream:
            lines, done = read_pairs(source), 0
            for row in plan_rows(sizes, shape):
                named = [next(lines) for _ in row]
                samples = [_sample(name, conversation, context) for name, conversation in named]
                logs = policy([sample.example(0, len(sample)) for sample in samples])
                for (_, conversation), reference in zip(named, logs):
                    speech_item(conversation).update({"reference": list(reference), BY: by})
                    stream.write(json.dumps(conversation, ensure_ascii=False) + "\n")
                done += len(row)
                progress("reference policy", done, len(sizes))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(half, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}. Choose another place.") from error
    finally:
        half.unlink(missing_ok=True)
    return len(sizes)


def _pair(line: bytes, name: str, folder: Path) -> dict[str, Any]:
    try:
        value = json.loads(line)
        conversation = one_form(value, folder)
    except DataError as error:
        raise DataError(f"{name}: {error}", error.kind) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {error}. Each line must be one whole object.") from error
    item = speech_item(conversation)
    if item is None or item.get("chosen") is None or item.get("rejected") is None:
        raise DataError(f"{name}: holds no pair of answers; expected an item 'speech' with chosen and rejected.")
    others = {key: other for key, other in value.items() if key not in (*LISTS.values(), "messages")}
    return {**conversation, **others}


def _sample(name: str, conversation: Mapping[str, Any], context: ExampleContext) -> Sample:
    for key in ("reference", BY):
        speech_item(conversation).pop(key, None)
    return Sample(conversation, context, name=name)


def _measured(sample: Sample, name: str) -> Sizes:
    """What a pair takes of a row. It is never cut: its answers hear the whole conversation."""
    pieces, refused = sample.pieces(RowShape(*(UNLIMITED for _ in fields(RowShape))))
    if refused or len(pieces) != 1:
        raise DataError(f"{name}: {refused[0].reason if refused else 'cannot be read in one piece.'}", "too long")
    return pieces[0].sizes
