"""Which examples go into which row, for the whole of a run, known before anything is read.

The order is a function of the sources' sizes, their weights, the shape of a row and a seed, so any row can be had
without those before it, on any host and in any worker process, and a run resumes where it stopped.

    draws     a b a a b a a b …     sources taken in turn by weight; each shuffles its examples anew in each epoch
    windows   [a b a a] [b a a b]   so many draws are packed at a time, the largest first, into the first row with room
    rows      [a a|b a] [b|a a b]   rows of a window in shuffled order, examples of a row in the order of the draws
"""

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from input_pipeline.training_batch import RowShape
from omni_jax.errors import CapacityError, ConfigError

KINDS = ("tokens", "audio_blocks", "patches", "speech", "pairs")
_ORDER = 1  # raised when the same inputs would give other rows than before
_KEPT_WINDOWS = 4

Row = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fill:
    """How well rows are used: the share of each budget that examples take, 0 where there is no budget."""

    rows: int
    examples: int
    share: dict[str, float]


class Plan:
    """Rows of (source, index of the example), for any row index from 0 on."""

    def __init__(
        self,
        sizes: Sequence[np.ndarray],
        weights: Sequence[float] | None,
        shape: RowShape,
        seed: int,
        *,
        window: int | None = None,
        epochs: int | None = None,
        names: Sequence[str] | None = None,
        fingerprints: Sequence[str] | None = None,
    ):
        """Checks that every example fits a row; packs nothing unless `epochs` limits the run.

        Args:
            sizes: for each source int32 [N, 5], what its examples take of each of `KINDS`.
            weights: shares of the sources, counted in examples; None for one epoch of each in the same time.
            window: draws packed together; by default 2048, or more where a row holds very many examples.
            epochs: ends once every source has been seen so often. Sources of a larger weight than their number of
                examples asks for come more often by then. None goes on without end.
            names, fingerprints: of the sources, for messages and for `difference`.

        Raises:
            ConfigError: no source, an empty one, or bad weights.
            CapacityError: an example is larger than a row.
        """
        self._sizes = [np.ascontiguousarray(each, np.int32).reshape(-1, len(KINDS)) for each in sizes]
        self.names = [f"source {i}" for i in range(len(sizes))] if names is None else list(names)
        self.shape, self.seed, self.epochs = shape, int(seed), epochs
        self._room = np.array([getattr(shape, kind) for kind in KINDS], np.int32)
        self._counts = [len(each) for each in self._sizes]
        self._check(weights)
        given = np.array(self._counts if weights is None else weights, np.float64)
        self._weights = given / given.sum()
        self.window = window or self._usual_window()
        digests = [hashlib.sha256(each.tobytes()).hexdigest()[:16] for each in self._sizes]
        prints = [""] * len(digests) if fingerprints is None else fingerprints
        self._description = {
            "order": _ORDER,
            "seed": self.seed,
            "shape": asdict(shape),
            "weights": None if weights is None else [float(w) for w in weights],
            "window": self.window,
            "sources": [
                {"name": name, "examples": count, "sizes": digest, "fingerprint": own}
                for name, count, digest, own in zip(self.names, self._counts, digests, prints, strict=True)
            ],
        }
        self._draws = None if epochs is None else self._draws_of(epochs)
        self._starts = [0]  # first row of each window that has been counted, and of the one after
        self._used = np.zeros(len(KINDS), np.int64)
        self._forget()
        if self._draws is not None:
            self._count_until(window=-(-self._draws // self.window))

    @property
    def rows(self) -> int | None:
        """Number of rows, None where they never end."""
        return None if self._draws is None else self._starts[-1]

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes the order. Only the end of the run, `epochs`, has no part in it."""
        return hashlib.sha256(json.dumps(self._description, sort_keys=True).encode()).hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """What the order follows from, as JSON values, to be kept with a checkpoint; see `difference`."""
        return json.loads(json.dumps(self._description))

    def difference(self, described: dict[str, Any]) -> list[str]:
        """How this plan differs from one that was described, in words; empty when the order is the same."""
        then, now = described, self.describe()
        found = [f"{key} was {then.get(key)} and is {now[key]}" for key in now if key != "sources" and key in then]
        found = [text for key, text in zip([k for k in now if k != "sources" and k in then], found, strict=True)
                 if then[key] != now[key]]
        old, new = then.get("sources", []), now["sources"]
        if [each["name"] for each in old] != [each["name"] for each in new]:
            return [*found, f"sources were {[each['name'] for each in old]} and are {[each['name'] for each in new]}"]
        for before, after in zip(old, new, strict=True):
            what = f"source {after['name']}"
            if before["examples"] != after["examples"]:
                found.append(f"{what} had {before['examples']} examples and has {after['examples']}")
            elif before["sizes"] != after["sizes"]:
                found.append(f"sizes of the examples of {what}")
            elif before["fingerprint"] != after["fingerprint"]:
                found.append(f"contents of {what} (its fingerprint)")
        return found
