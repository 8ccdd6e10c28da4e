"""Device meshes: four named axes, any of which may have size one."""

import math

import jax
from jax.sharding import AxisType, Mesh

from omni_jax.errors import ShardingError

# data: batch. fsdp: batch, and parameters split to save memory. tensor: heads and feed-forward. context: sequence.
AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(devices: list[jax.Device] | None = None, **sizes: int) -> Mesh:
    """A mesh over `devices` (default: all), e.g. `make_mesh(fsdp=2, tensor=4)`; axes not named have size one.

    Raises:
        ShardingError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(sizes) - set(AXES)
    if unknown:
        raise ShardingError(f"There is no mesh axis {', '.join(sorted(unknown))}. Axes: {', '.join(AXES)}.")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) != len(devices):
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape))
        raise ShardingError(f"The mesh {asked} needs {math.prod(shape)} devices, but there are {len(devices)}.")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
