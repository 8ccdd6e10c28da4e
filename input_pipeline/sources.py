"""Where training examples come from: JSON lines, TensorFlow Datasets; `records.py` adds prepared shards.

All sources know the size of each example ahead, so that rows can be planned without opening a medium.
"""

import hashlib
import inspect
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipeline.example_context import ExampleContext, fingerprint
from input_pipeline.examples import Rejection
from input_pipeline.jsonl import JsonLines
from input_pipeline.messages import one_form
from input_pipeline.source_index import Index, Progress, Reader, build_index, read_index, sample_of, write_index
from input_pipeline.training_batch import Example, RowShape
from omni_jax.errors import DataError


class Source(Protocol):
    """Examples by number. It can be pickled into worker processes, where it opens its files anew.

    name: for losses by source.
    sizes: int32 [N, 5], columns as in `Sizes`: tokens, audio_blocks, patches, speech, pairs.
    fingerprint: a hash of all that the examples depend on; equal fingerprints give equal examples in equal order.
    rejected: what of the data gives no example, and why; total: samples of the data, such as lines.
    """

    name: str
    sizes: np.ndarray
    fingerprint: str
    rejected: tuple[Rejection, ...]
    total: int

    def __len__(self) -> int: ...

    def conversation(self, index: int) -> Mapping[str, Any]:
        """What an example is made from, or a part of, in the one form (see `messages.one_form`); no media are read."""
        ...

    def example(self, index: int) -> Example:
        """Raises `DataError` for one that cannot be read now, such as a file that is gone since."""
        ...


class _MeasuredSource:
    """A reader whose samples are measured once; the measures are kept in a cache."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        context: ExampleContext,
        limit: RowShape,
        *,
        facts: Mapping[str, Any],
        cache: Path,
        workers: int,
        progress: Progress | None,
    ):
        self.name = name
        self._reader, self._context = reader, context
        key = fingerprint(limit=asdict(limit), context=context.facts, source=facts)
        file = cache / f"{name}.{key[:16]}.index.npz"
        index = read_index(file, key)
        if index is None:
            index = build_index(reader, context, limit, workers=workers, progress=progress)
            write_index(file, key, index)
        self._take(index)
        # what was found counts too (media may be missing on one machine), where it was found does not
        found = hashlib.sha256(index.sizes.tobytes() + index.pieces.tobytes()).hexdigest()
        about = {name: fact for name, fact in facts.items() if name != "folder"}
        self.fingerprint = fingerprint(limit=asdict(limit), context=context.facts, source=about, found=found)

    def _take(self, index: Index) -> None:
        self.sizes, self._pieces = index.sizes, index.pieces
        self.rejected, self.total = index.rejected, index.total
        if not len(self.sizes):
            first = self.rejected[0]
            reason = f"The first: {first.name}: {first.reason}"
            raise DataError(f"{self.name}: none of {self.total} samples can be used. {reason}", first.kind)

    def __len__(self) -> int:
        return len(self.sizes)

    def conversation(self, index: int) -> Mapping[str, Any]:
        return self._reader.read(int(self._pieces[index][0]))

    def example(self, index: int) -> Example:
        sample, start, stop = (int(each) for each in self._pieces[index])
        return sample_of(self._reader, sample, self._context).example(start, stop)


class JsonlSource(_MeasuredSource):
    """Conversations of a JSON lines file, with media by path, measured when it is first used.

    Files of media are taken to stay as they are: one that is changed later is noticed only when an example is read.
    """

    def __init__(
        self,
        path: str | Path,
        context: ExampleContext,
        limit: RowShape,
        *,
        name: str | None = None,
        cache: str | Path | None = None,
        workers: int = 0,
        progress: Progress | None = None,
    ):
        """
        Args:
            limit: room for one example; see `make_examples` for what happens to longer ones.
            cache: where measures are kept; by default beside the file, in ".omni_jax".
            workers: processes that measure; 0 for none but this one.
            progress: called with stage, done, total.

        Raises:
            DataError: the file is missing or empty, or none of its lines can be used.
        """
        lines = JsonLines(path)
        super().__init__(
            name or lines.path.stem,
            lines,
            context,
            limit,
            facts={"jsonl": lines.digest, "folder": str(lines.path.parent), "file": lines.path.name},
            cache=Path(cache) if cache is not None else lines.path.parent / ".omni_jax",
            workers=workers,
            progress=progress,
        )


class TfdsSource(_MeasuredSource):
    """A TensorFlow dataset in the array_record format, read without TensorFlow."""

    def __init__(
        self,
        dataset: str | Path,
        split: str,
        to_conversation: Callable[[dict[str, Any]], Mapping[str, Any]],
        context: ExampleContext,
        limit: RowShape,
        *,
        name: str | None = None,
        data_dir: str | Path | None = None,
        cache: str | Path | None = None,
        workers: int = 0,
        progress: Progress | None = None,
    ):
        """
        Args:
            dataset: a folder that holds a prepared dataset (with its dataset_info.json), or a name of the catalogue.
            to_conversation: a function of a module that turns a record into a conversation (see `messages.one_form`).
                Media may be arrays: pictures uint8 [H, W, C]; sound `(samples, rate)`; films `(frames, fps)`.
            cache: where measures are kept; by default ~/.cache/omni_jax/sources.

        Raises:
            DataError: there is no such dataset or split, or none of it can be used.
        """
        reader = _TfdsReader(dataset, split, to_conversation, data_dir)
        super().__init__(
            name or reader.title,
            reader,
            context,
            limit,
            facts={"tfds": reader.identity, "to_conversation": _code_of(to_conversation)},
            cache=Path(cache) if cache is not None else Path.home() / ".cache" / "omni_jax" / "sources",
            workers=workers,
            progress=progress,
        )


class _TfdsReader:
    def __init__(self, dataset: str | Path, split: str, to_conversation: Callable, data_dir: str | Path | None):
        self._dataset, self._split, self._data_dir = str(dataset), split, None if data_dir is None else str(data_dir)
        self._to_conversation = to_conversation
        self._source: Any = None
        builder, source = self._opened()
        self._length = len(source)
        self.title = builder.name
        stored = builder.info.splits[split.split("[")[0]].num_bytes
        self.identity = [builder.info.full_name, split, self._length, stored]

    def __len__(self) -> int:
        return self._length

    def where(self, index: int) -> str:
        return f"{self.title}/{self._split}:{index}"

    def read(self, index: int) -> dict[str, Any]:
        if self._source is None:
            _, self._source = self._opened()
        return one_form(self._to_conversation(self._source[index]))

    def _opened(self) -> tuple[Any, Any]:
        import tensorflow_datasets as tfds

        try:
            if os.path.isdir(self._dataset):
                builder = tfds.builder_from_directory(self._dataset)
            else:
                builder = tfds.builder(self._dataset, data_dir=self._data_dir)
            return builder, builder.as_data_source(self._split)
        except Exception as error:  # the library raises many kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{self._dataset}, split {self._split}: cannot be opened as a dataset: {first}\n"
                "Give the folder of a dataset that was prepared with file_format='array_record'."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        import cloudpickle

        # the function of a configuration file, which no other process can import, travels as its code
        function = cloudpickle.dumps(self._to_conversation)
        return {**self.__dict__, "_source": None, "_to_conversation": function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._to_conversation = pickle.loads(state["_to_conversation"])


def _code_of(function: Callable) -> list[str]:
    """A function's name and text, so that a changed one is noticed."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = ""
    return [f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(type(function)))}", text]
