"""Conversations with something beside them, for a probe: pictures (`glances.py`), recordings (`phones.py`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omni_jax.errors import DataError


class Beside:
    """A `RunData` around a loader: what lies beside a batch, the number of its step alone decides."""

    def __init__(self, loader: Any, put: Callable[[Any, int], Any], *, name: str, about: Any):
        """
        Args:
            put: a batch of the loader and its step, from 0, to the whole batch.
            name: of what lies beside, for errors. about: what tells it from another one, as JSON values.
        """
        self._loader, self._put, self._own = loader, put, {"name": name, "about": about}
        self._step = 0

    def __iter__(self) -> Iterator[Any]:
        for batch, report in self._loader:
            step, self._step = self._step, self._step + 1
            yield self._put(batch, step), report

    def state(self) -> dict[str, Any]:
        return {"loader": self._loader.state(), "beside": self._own, "step": self._step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises DataError where what lies beside is not what it was."""
        then = state.get("beside")
        if then != self._own:
            raise DataError(
                f"The run began with {then}, and there is {self._own}. Give the {self._own['name']} that it began "
                "with, or another --output."
            )
        self._loader.restore(state["loader"])
        self._step = state["step"]

    def seek(self, step: int) -> None:
        self._loader.seek(step)
        self._step = step

    def close(self) -> None:
        self._loader.close()
