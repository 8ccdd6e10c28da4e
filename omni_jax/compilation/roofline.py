"""The least time that a program can take on a chip, and what sets it (the roofline model, Williams et al., 2009)."""

from dataclasses import dataclass

from omni_jax.compilation.targets import Chip


@dataclass(frozen=True)
class Roofline:
    """Seconds of each limit, were it the only one, and the largest of them."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def bound_by(self) -> str:
        """ "compute", "memory" or "network"."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def roofline(chip: Chip, *, flops: float, bytes_moved: float, wire_bytes: float) -> Roofline:
    """Of one device, with work, memory traffic and traffic over its links all perfectly overlapped."""
    return Roofline(flops / chip.flops, bytes_moved / chip.bandwidth, wire_bytes / chip.interconnect)
