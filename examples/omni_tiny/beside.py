"""Conversations with something beside them, for a probe: pictures (`glances.py`), recordings (`phones.py`)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import jax

from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.training.run_stages import ThinkerStage

if TYPE_CHECKING:
    from omni_jax.training.run_config import RunConfig


class Beside:
    """A `RunData` around a loader: what lies beside a batch, the number of its step alone decides.

    It is the same on every host and device, so the stages that use it are for one (`ProbedStage`).
    """

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
        return self._loader.state() | {"beside": self._own, "beside_step": self._step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises DataError where what lies beside is not what it was."""
        then = state.get("beside")
        if then != self._own:
            began = "it was stopped by an earlier program" if then is None else f"it began with {then}"
            raise DataError(
                f"The run cannot go on: {began}, and there is {self._own}. Give the {self._own['name']} of then, or "
                "another --output."
            )
        self._loader.restore({key: value for key, value in state.items() if key not in ("beside", "beside_step")})
        self._step = state["beside_step"]

    def seek(self, step: int) -> None:
        self._loader.seek(step)
        self._step = step

    def close(self) -> None:
        self._loader.close()


@dataclass(frozen=True)
class ProbedStage(ThinkerStage):
    """A stage whose encoder learns by a probe beside conversations."""

    def usual(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...], room: str) -> dict[str, Any]:
        """Fields of the task as of `ThinkerStage`.

        Args:
            room: what rows must have room for, of `RowShape`.

        Raises:
            ConfigError: there is none, or micro-batches, held-out data or several devices, which would all be given
                the same.
        """
        if not getattr(run.data.shape, room):
            raise ConfigError(f"data.shape.{room} is 0, and this stage learns by it. Give rows some room.")
        if run.accumulate != 1:
            raise ConfigError(f"accumulate = {run.accumulate}: this stage takes one batch a step. Set it to 1.")
        if run.eval_every:
            raise ConfigError("The probe has nothing that is held out. Leave out eval_every, and use omni-jax eval.")
        if jax.device_count() > 1:
            raise ConfigError(f"This stage is made for one device, and there are {jax.device_count()}.")
        task = super().task(run, model, sources)
        return {each.name: getattr(task, each.name) for each in fields(task)}
