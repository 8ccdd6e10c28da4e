"""Chips that programs can be compiled for, and the names that Google Cloud gives to groups of them.

name      v4-8   v5p-16   tpu7x-8   v5e-16   v6e-1   h100-8
counts    cores  cores    cores     chips    chips   GPUs
chips     4      8        4         16       1       8
devices   4      8        8         16       1       8          (a device is what JAX lists)
"""

import re
from dataclasses import dataclass

from omni_jax.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """One device of a kind: a whole chip, but for tpu7x half of one.

    hbm: bytes of memory that programs can use: what libtpu's compiler says is available, less than the data sheet's.
    flops: peak bfloat16 operations a second. bandwidth: bytes a second of its memory. interconnect: bytes a second that
    it can send over all links together (half of the bidirectional figure).
    """

    generation: str
    hbm: int
    flops: float
    bandwidth: float
    interconnect: float
    counts: str = "chips"  # what the number in a name counts
    devices_per_chip: int = 1
    axes: int = 2  # of the torus
    largest: int = 256  # chips
    config: str = "default"  # libtpu's configuration of the chip


# Peaks: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each generation;
# https://cloud.google.com/tpu/docs/tpu7x; NVIDIA H100 (SXM) data sheet. hbm: the compiler of libtpu 0.0.42.
_CHIPS = (
    # two cores work as one device of 32 GB ("megacore")
    Chip("v4", int(30.75 * GIB), 275e12, 1.228e12, 150e9, "cores", 1, 3, 2048, "megacore"),
    Chip("v5e", int(15.75 * GIB), 197e12, 0.819e12, 200e9),
    Chip("v5p", int(95.74 * GIB), 459e12, 2.765e12, 600e9, "cores", 1, 3, 2048),
    Chip("v6e", int(31.25 * GIB), 918e12, 1.640e12, 400e9),
    # a chip has 2,307 TFLOP/s, 7.38 TB/s and 192 GB; each of its two chiplets is a device
    Chip("tpu7x", int(94.75 * GIB), 1153.5e12, 3.69e12, 300e9, "cores", 2, 3, 2048),
    # 84,942,979,072 bytes as the driver reports them, less 1 GiB for the CUDA context and NCCL
    Chip("h100", 84_942_979_072 - GIB, 989e12, 3.35e12, 450e9, largest=8),
)
CHIPS = {chip.generation: chip for chip in _CHIPS}
_EXAMPLES = {
    "v4": "v4-8", "v5e": "v5e-1, v5e-4, v5e-16, v5e-32", "v5p": "v5p-8, v5p-16", "v6e": "v6e-1, v6e-16, v6e-32",
    "tpu7x": "tpu7x-8", "h100": "h100, h100-8",
}  # fmt: skip


@dataclass(frozen=True)
class CompileTarget:
    """A chip, how many devices of it, and how they are laid out.

    topology: "2x4" chips. host: chips of one host along each axis.
    """

    name: str
    chip: Chip
    devices: int
    topology: str
    host: tuple[int, int, int]

    @property
    def platform(self) -> str:
        return "gpu" if self.chip.generation == "h100" else "tpu"


def parse_target(name: str) -> CompileTarget:
    """The target of a name such as "v5e-4", "v5p-16" or "h100".

    Raises:
        ConfigError: an unknown chip, or a number of them that no slice has; the sizes that there are are listed.
    """
    found = re.fullmatch(r"([a-z0-9]+?)(?:-(\d+))?", name.strip().lower())
    chip = CHIPS.get(found[1]) if found else None
    if chip is None:
        examples = "; ".join(f"{text}, …" for text in _EXAMPLES.values())
        raise ConfigError(f"There is no target {name!r}. Targets: {examples}.")
    if chip.generation == "h100":
        return _gpus(name, chip, int(found[2] or 1))
    cores = 2 if chip.counts == "cores" else 1
    slices = _slices(chip)
    sizes = {cores * chips: chips for chips in slices}
    if found[2] is None or int(found[2]) not in sizes:
        names = ", ".join(f"{chip.generation}-{size}" for size in sizes)
        asked = "has no number" if found[2] is None else "is not a slice that exists"
        raise ConfigError(f"Target {name!r} {asked} (it counts {chip.counts}). There are: {names}.")
    chips = sizes[int(found[2])]
    shape = slices[chips]
    host = (1, 1, 1) if chips == 1 else (2, 2, 1)
    topology = "x".join(map(str, shape))
    return CompileTarget(f"{chip.generation}-{int(found[2])}", chip, chips * chip.devices_per_chip, topology, host)


def _slices(chip: Chip) -> dict[int, tuple[int, ...]]:
    """Shape of the slice of each number of chips, the squarest there is; Cloud lists the same shapes."""
    shapes: dict[int, tuple[int, ...]] = {1: (1, 1)} if chip.axes == 2 else {}
    shape = [2] * 2 + [1] * (chip.axes - 2)
    while shape[0] * shape[1] * (shape[2] if chip.axes == 3 else 1) <= chip.largest:
        size = 1
        for side in shape:
            size *= side
        shapes[size] = tuple(sorted(shape))
        if chip.axes == 3:
            shapes[size] = tuple(sorted(shape)) if min(shape) > 1 else (2, 2, 1)
        shape[shape.index(min(shape))] *= 2
    return shapes


def _gpus(name: str, chip: Chip, count: int) -> CompileTarget:
    if count not in (1, 2, 4, 8):
        raise ConfigError(f"Target {name!r} is not one host: give h100 (one GPU), h100-2, h100-4 or h100-8.")
    # partitions x hosts x GPUs
    return CompileTarget(f"h100-{count}" if count > 1 else "h100", chip, count, f"1x1x{count}", (1, 1, 1))


def next_larger(target: CompileTarget) -> list[CompileTarget]:
    """Larger groups of the same chip, the smallest first."""
    chip = target.chip
    if chip.generation == "h100":
        counts = [count for count in (2, 4, 8) if count > target.devices]
        return [_gpus("h100", chip, count) for count in counts]
    cores = 2 if chip.counts == "cores" else 1
    chips = target.devices // chip.devices_per_chip
    return [parse_target(f"{chip.generation}-{cores * size}") for size in sorted(_slices(chip)) if size > chips]
