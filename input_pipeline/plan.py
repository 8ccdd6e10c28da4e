"""Which examples go into which row, for the whole of a run, known before anything is read.

The order is a function of the sources' sizes, their weights, the shape of a row and a seed. Any row can be had on any
host and in any worker process, and a run resumes where it stopped.

    draws     b a b b a b b a …     sources taken in turn by weight; each shuffles its examples anew in each epoch
    windows   [b a b b] [a b b a]   so many draws are packed at a time, the largest first, into the first row with room;
                                    without weights a window ends with the epoch
    rows      [b b|a b] [a|b b a]   rows of a window in shuffled order, examples of a row in the order of the draws
"""

import hashlib
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from input_pipeline.example_context import KINDS
from input_pipeline.training_batch import RowShape
from omni_jax.errors import CapacityError, ConfigError, DataError

# The budgets of a row, columns of `Source.sizes`, as messages call them.
WORDS = {
    "tokens": "tokens",
    "audio_blocks": "audio blocks",
    "patches": "vision patches",
    "speech": "positions of speech",
    "pairs": "pairs of answers",
}
_ORDER = 2  # raise it when the same inputs would give other rows than before
_KEPT_WINDOWS = 4
_EXAMPLES, _ROWS = 0, 1  # what randomness is for

Row = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fill:
    """How well rows are used: of each budget that rows have, the share that examples take."""

    rows: int
    examples: int
    share: dict[str, float]


class Plan:
    """Rows of (source, index of the example), for any row index from 0 on. Rows never exceed any budget."""

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
        """Checks that every example fits a row. Packs everything when `epochs` limits the run, and else nothing yet.

        Args:
            sizes: for each source int32 [N, 5], what its examples take of `KINDS`.
            weights: shares of the sources, counted in examples; None lets all sources end their epochs together.
            window: draws that are packed together, at most; by default 2048, or more where a row holds very many
                examples. Without weights an epoch is divided into windows of equal size.
            epochs: the rows end once every source has been seen this often; those whose weight is above their share
                of all examples have been seen more often by then. None never ends.
            names, fingerprints: of the sources, for messages and for `difference`.

        Raises:
            ConfigError: no source, an empty one, or bad weights.
            CapacityError: an example is larger than a row.
            DataError: sizes that cannot be.
        """
        self.names = [f"source {i}" for i in range(len(sizes))] if names is None else list(names)
        self.shape, self.seed, self.epochs = shape, int(seed), epochs
        self._sizes = [_checked(each, name, shape) for each, name in zip(sizes, self.names, strict=True)]
        self._counts = [len(each) for each in self._sizes]
        self._weights = _shares(self._counts, weights, self.names)
        self._aligned = weights is None  # then the draws of an epoch are each example once
        if seed < 0 or (window is not None and window < 1) or (epochs is not None and epochs < 1):
            raise ConfigError(f"Plan: seed {seed} must be at least 0; window {window} and epochs {epochs} at least 1.")
        self.window = window or self._usual_window()
        digests = [hashlib.sha256(each.tobytes()).hexdigest()[:16] for each in self._sizes]
        prints = [""] * len(digests) if fingerprints is None else fingerprints
        self._description = {
            "order": _ORDER,
            "seed": self.seed,
            "shape": asdict(shape),
            "weights": None if weights is None else [float(weight) for weight in weights],
            "window": self.window,
            "sources": [
                {"name": name, "examples": count, "sizes": digest, "fingerprint": own}
                for name, count, digest, own in zip(self.names, self._counts, digests, prints, strict=True)
            ],
        }
        self._draws = None if epochs is None else self._draws_until(epochs)
        self._starts = [0]  # the first row of each window that has been counted, and of the next
        self._used, self._packed = np.zeros(len(KINDS), np.int64), 0
        self.__setstate__({})
        if self._draws is not None:
            while self._packed < self._draws:
                self._count_window()

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be worked out again; with the counts of rows, so that no copy packs a window for them."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_windows", "_shuffled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()
        self._windows: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self._shuffled: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    @property
    def rows(self) -> int | None:
        """Number of rows, None where they never end."""
        return None if self._draws is None else self._starts[-1]

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes the order; `epochs` is no part of it, for it only says where to end."""
        return hashlib.sha256(json.dumps(self._description, sort_keys=True).encode()).hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """What the order follows from, as JSON values, to be kept with a checkpoint; see `difference`."""
        return json.loads(json.dumps(self._description))

    def difference(self, described: dict[str, Any]) -> list[str]:
        """What has changed since a plan was described, in words; empty when the order is the same."""
        return differences(described, self.describe())

    def rows_shared_with(self, epochs: int | None) -> int | None:
        """So many rows are the same where only `epochs` is another; None for all of them.

        The shorter of the two may end within a window, of which it packs the beginning only. Rows before it are shared.
        """
        if epochs == self.epochs:
            return None
        shorter, window = min(self._draws_until(each) for each in (epochs, self.epochs) if each is not None), 0
        with self._lock:
            while self._bounds(window)[1] <= shorter:
                window += 1
            while len(self._starts) <= window:
                self._count_window()
            return self._starts[window]

    def row(self, index: int) -> Row:
        """(source, index of the example) of everything in one row.

        Raises:
            IndexError: negative, or after the last row.
        """
        with self._lock:
            while index >= self._starts[-1] and self._draws is None:
                self._count_window()
            if not 0 <= index < self._starts[-1]:
                raise IndexError(f"row {index} of {self._starts[-1]}")
            window = bisect_right(self._starts, index) - 1
            return tuple(map(tuple, self._window(window)[index - self._starts[window]].tolist()))

    def fill(self) -> Fill:
        """Of all rows counted so far: those of the whole run where `epochs` limits it."""
        rows = self._starts[-1]
        room = {kind: rows * getattr(self.shape, kind) for kind in KINDS}
        share = {kind: float(used / room[kind]) for kind, used in zip(KINDS, self._used, strict=True) if room[kind]}
        return Fill(rows, self._packed, share)

    def _usual_window(self) -> int:
        """The last rows of a window stay half empty: of some 64 rows or more that is little."""
        total = sum(each.sum(axis=0, dtype=np.int64) for each in self._sizes)
        rows = max(used / getattr(self.shape, kind) for kind, used in zip(KINDS, total, strict=True) if used)
        return max(2048, int(64 * sum(self._counts) / rows))

    def _bounds(self, window: int) -> tuple[int, int]:
        """The draws of a window: its first, and that of the next."""
        if not self._aligned:
            return window * self.window, (window + 1) * self.window
        total = sum(self._counts)
        parts = -(-total // self.window)
        epoch, part = divmod(window, parts)
        return epoch * total + part * total // parts, epoch * total + (part + 1) * total // parts

    def _count_window(self) -> None:
        window = len(self._starts) - 1
        self._starts.append(self._starts[-1] + len(self._window(window)))

    def _window(self, window: int) -> list[np.ndarray]:
        """Rows of a window, int64 [examples, 2] each."""
        if window in self._windows:
            self._windows.move_to_end(window)
            return self._windows[window]
        first, stop = self._bounds(window)
        source, example = self._drawn(first, stop if self._draws is None else min(stop, self._draws))
        sizes = np.empty((len(source), len(KINDS)), np.int32)
        for i, each in enumerate(self._sizes):
            sizes[source == i] = each[example[source == i]]
        row = first_fit(sizes, np.array([getattr(self.shape, kind) for kind in KINDS], np.int32))
        pairs, order = np.stack([source, example], axis=1), np.argsort(row, kind="stable")
        rows = np.split(pairs[order], np.cumsum(np.bincount(row))[:-1])
        rows = [rows[i] for i in _permutation(len(rows), self.seed, _ROWS, window)]
        if window == len(self._starts) - 1:  # counted now, for the first time
            self._used += sizes.sum(axis=0, dtype=np.int64)
            self._packed += len(source)
        self._windows[window] = rows
        if len(self._windows) > _KEPT_WINDOWS:
            self._windows.popitem(last=False)
        return rows

    def _drawn(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and example of the draws from `first` up to `stop`.

        The j-th draw of a source of share w is due at time (j + 1/2) / w, and draws are made as they are due: after n
        draws each source has had n w, give or take less than one half and half of w times the number of sources. That
        is Webster's rule of apportionment. It needs no history, as taking the largest deficit would.
        """
        slack = len(self._counts) + 2
        low = [max(0, int(first * weight) - slack) for weight in self._weights]
        numbers = [np.arange(lo, int(stop * w) + 1 + slack) for lo, w in zip(low, self._weights, strict=True)]
        source = np.repeat(np.arange(len(numbers)), [len(each) for each in numbers])
        number = np.concatenate(numbers)
        order = np.lexsort((source, (number + 0.5) / self._weights[source]))
        chosen = order[first - sum(low) : stop - sum(low)]
        source, number = source[chosen], number[chosen]
        example = np.empty_like(number)
        for i, count in enumerate(self._counts):
            here = np.flatnonzero(source == i)
            epoch, place = np.divmod(number[here], count)
            for each in np.unique(epoch):
                now = epoch == each
                example[here[now]] = self._epoch(i, int(each))[place[now]]
        return source, example

    def _epoch(self, source: int, epoch: int) -> np.ndarray:
        """The order of a source's examples in one epoch."""
        key = source, epoch
        if key not in self._shuffled:
            self._shuffled[key] = _permutation(self._counts[source], self.seed, _EXAMPLES, source, epoch)
            while len(self._shuffled) > 2 * len(self._counts):
                self._shuffled.popitem(last=False)
        self._shuffled.move_to_end(key)
        return self._shuffled[key]

    def _draws_until(self, epochs: int) -> int:
        """Draws until every source has been seen `epochs` times."""
        due = [(epochs * count - 0.5) / weight for count, weight in zip(self._counts, self._weights, strict=True)]
        last = max(range(len(due)), key=lambda i: (due[i], i))
        total = 0
        for i, weight in enumerate(self._weights):
            number = max(0, int(due[last] * weight) - 2)
            while ((number + 0.5) / weight, i) <= (due[last], last):
                number += 1
            total += number
        return total


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of plans (`Plan.describe`), in words; empty for the same order."""
    found = [
        f"{key}: was {old.get(key)}, is {new[key]}" for key in new if key != "sources" and old.get(key) != new[key]
    ]
    before, after = old.get("sources", []), new["sources"]
    if [each["name"] for each in before] != [each["name"] for each in after]:
        return [*found, f"sources: were {[each['name'] for each in before]}, are {[each['name'] for each in after]}"]
    for then, here in zip(before, after, strict=True):
        if then["examples"] != here["examples"]:
            found.append(f"source {here['name']}: had {then['examples']} examples, has {here['examples']}")
        elif then["sizes"] != here["sizes"]:
            found.append(f"source {here['name']}: sizes of its examples")
        elif then["fingerprint"] != here["fingerprint"]:
            found.append(f"source {here['name']}: its contents (fingerprint)")
    return found


def first_fit(sizes: np.ndarray, room: np.ndarray) -> np.ndarray:
    """First fit, decreasing: the row of each example, int64 [n]; rows are numbered from 0 and none stays empty.

    To put each example into the first row with room is to fill row after row with whatever still fits, in order.
    Neighbours are tried one by one, for which Python's integers are fastest; numpy finds the next that fits far away.

    Args:
        sizes: int32 [n, kinds]; examples are taken by the largest share of any budget, ties in order.
        room: int32 [kinds]; what a row holds.
    """
    order = np.argsort(-(sizes / np.maximum(room, 1)).max(axis=1, initial=0), kind="stable")
    need, least = sizes[order].tolist(), sizes.min(axis=0).tolist()
    columns = [(kind, np.ascontiguousarray(sizes[order, kind])) for kind in np.flatnonzero(sizes.any(axis=0)).tolist()]
    waiting, rows = np.ones(len(order), bool), np.empty(len(order), np.int64)
    row = first = 0
    while first < len(order):
        free, at = room.tolist(), first
        while at < len(order):
            if waiting[at]:
                after = [have - want for have, want in zip(free, need[at])]
                if min(after) >= 0:
                    free, waiting[at], rows[at] = after, False, row
                elif any(have < want for have, want in zip(free, least)):
                    break
                else:
                    fits = waiting[at:].copy()
                    for kind, column in columns:
                        fits &= column[at:] <= free[kind]
                    step = int(fits.argmax())
                    if not fits[step]:
                        break
                    at += step
                    continue
            at += 1
        row += 1
        while first < len(order) and not waiting[first]:
            first += 1
    out = np.empty_like(rows)
    out[order] = rows
    return out


def _permutation(count: int, *key: int) -> np.ndarray:
    """Of a stream that numpy promises never to change, unlike its `permutation`."""
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(bits, kind="stable")


def _checked(sizes: np.ndarray, name: str, shape: RowShape) -> np.ndarray:
    if sizes.ndim != 2 or sizes.shape[1] != len(KINDS):
        raise DataError(f"Source {name}: sizes {sizes.shape} instead of [examples, {len(KINDS)}].")
    if not len(sizes):
        raise ConfigError(f"Source {name} has no examples. Leave it out, or see what it rejected.")
    if sizes.min() < 0 or sizes[:, 0].min() < 1:
        bad = int(np.flatnonzero((sizes < 0).any(axis=1) | (sizes[:, 0] < 1))[0])
        raise DataError(f"Source {name}, example {bad}: sizes {sizes[bad].tolist()} of {', '.join(KINDS)} cannot be.")
    for kind, column in zip(KINDS, sizes.T, strict=True):
        room = getattr(shape, kind)
        over = np.flatnonzero(column > room)
        if len(over):
            held = f"a row holds {room}" if room else "rows have no room for any"
            raise CapacityError(
                f"Source {name}, example {over[0]}: {column[over[0]]} {WORDS[kind]}, but {held} ({len(over)} of "
                f"{len(sizes)} examples are too large).\nRaise RowShape.{kind} to {column.max()}, or leave them out."
            )
    return np.ascontiguousarray(sizes, np.int32)


def _shares(counts: Sequence[int], weights: Sequence[float] | None, names: Sequence[str]) -> np.ndarray:
    if not counts:
        raise ConfigError("There is nothing to train on: give at least one source.")
    given = np.array(counts if weights is None else weights, np.float64)
    if given.shape != (len(counts),) or not np.isfinite(given).all() or given.min() <= 0:
        raise ConfigError(f"weights {weights}: give a positive number for each of the sources {', '.join(names)}.")
    return given / given.sum()
