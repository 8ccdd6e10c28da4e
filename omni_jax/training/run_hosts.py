"""The data of a run on several hosts: all of them must see the same, and each has counters of its own."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.plan import differences
from omni_jax.errors import DataError

_OWN = ("step", "seen")  # of a state; the rest says which order of which examples it belongs to


class HostsData:
    """Data (a `RunData`) whose state holds what every host has seen, in the order of hosts.

    Corrupt examples are judged by the share that a host has met in the whole run. Were its counters to begin anew, a
    run that was stopped would end in a stretch of bad files that one without a stop survives.
    """

    def __init__(self, data: Any):
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self._data)

    def state(self) -> dict[str, Any]:
        """The same on all hosts, which all call it at the same time."""
        state = self._data.state()
        return state | {"seen": gathered(state["seen"])} if "seen" in state else state

    def restore(self, state: Mapping[str, Any]) -> None:
        """From any number of hosts; where it is another, each takes up an equal part of what all have seen."""
        if "seen" in state:
            hosts, seen = jax.process_count(), state["seen"]
            shared = {name: sum(each[name] for each in seen) // hosts for name in seen[0]}
            state = {**state, "seen": seen[jax.process_index()] if len(seen) == hosts else shared}
        self._data.restore(state)

    def seek(self, step: int) -> None:
        self._data.seek(step)

    def close(self) -> None:
        self._data.close()


def check_same_data(data: Any) -> None:
    """That all hosts would read the same examples in the same order; all call it at the same time.

    Raises:
        DataError: on every host, if any sees other data than the first; what differs is named.
    """
    about = {key: value for key, value in data.state().items() if key not in _OWN}
    digests = gathered(hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    first, *others = gathered(about)
    lines = [f"host {host}: {what}" for host, each in enumerate(others, start=1) for what in _differences(first, each)]
    raise DataError(
        "The hosts of this run see different data. Compared with host 0 (what was or had):\n  "
        + "\n  ".join(lines)
        + "\nGive all hosts the same files and the same configuration. If the files are alike, delete the measures "
        "that are kept beside them (.omni_jax)."
    )


def gathered(value: Any) -> list[Any]:
    """The JSON values that all processes give, in their order; all call it at the same time."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    found = differences(first["plan"], other["plan"]) if "plan" in first and "plan" in other else []
    keys = [key for key in {**first, **other} if key != "plan" and first.get(key) != other.get(key)]
    return found + [f"{key}: was {first.get(key)}, is {other.get(key)}" for key in keys]
