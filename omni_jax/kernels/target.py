"""Which chip the program is for: the one that is here, or one that is assumed for an ahead-of-time compile."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from omni_jax.errors import ConfigError

# Generation of each `device_kind`, most specific first: matched at the start of the lower-case name.
_GENERATIONS = {
    "tpu7x": "tpu7x",
    "tpu v7": "tpu7x",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v4 lite": "v4i",
    "tpu v4": "v4",
    "tpu v3": "v3",
    "tpu v2": "v2",
}
_GPUS = ("gb200", "gh200", "b200", "b100", "h200", "h100", "h800", "a100", "a10", "l40", "l4", "v100", "t4")


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of chip.

    Attributes:
        platform: "cpu", "tpu" or "gpu".
        generation: "v4", "v5e", "v5p", "v6e", "tpu7x", "h100", …; "" for a CPU; the device's own name where unknown.
    """

    platform: str
    generation: str = ""

    def __post_init__(self):
        if self.platform not in ("cpu", "tpu", "gpu"):
            raise ConfigError(f"Target platform {self.platform!r} is not known: give 'cpu', 'tpu' or 'gpu'.")

    @classmethod
    def of(cls, device: jax.Device) -> "Target":
        """The kind of a device, also of one that a topology description made up."""
        kind = device.device_kind.lower()
        if device.platform == "cpu":
            return cls("cpu")
        if device.platform == "tpu" or kind.startswith("tpu"):
            return cls("tpu", next((name for start, name in _GENERATIONS.items() if kind.startswith(start)), kind))
        return cls("gpu", next((name for name in _GPUS if name in kind), kind))


_assumed: Target | None = None


def current_target() -> Target:
    """The assumed target, else the kind of `jax.devices()[0]`."""
    return _assumed or Target.of(jax.devices()[0])


@contextlib.contextmanager
def assume_target(target: Target) -> Iterator[None]:
    """Trace for another chip than the one that is here, to compile ahead of time.

    JAX's caches of traced functions do not know the target: a function traced once keeps the kernels of that target.
    So assume one target a process, before anything is traced.
    """
    global _assumed
    before, _assumed = _assumed, target
    try:
        yield
    finally:
        _assumed = before
