"""Device meshes: four named axes, any of which may have size one."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from omni_jax.errors import ShardingError
from omni_jax.sharding.axes import AXES


def make_mesh(devices: list[jax.Device] | None = None, **sizes: int) -> Mesh:
    """A mesh over `devices` (default: all), e.g. `make_mesh(fsdp=2, tensor=4)`; axes not named have size one.

    Of several slices `data` is the only axis that runs between them, since their network is slow: neighbours on every
    other axis lie in one slice.

    Raises:
        ShardingError: an unknown axis, sizes whose product is not the number of devices, or a `data` axis that the
            number of slices does not divide.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(sizes) - set(AXES)
    if unknown:
        raise ShardingError(f"There is no mesh axis {', '.join(sorted(unknown))}. Axes: {', '.join(AXES)}.")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) != len(devices):
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape))
        raise ShardingError(
            f"The mesh {asked} needs {math.prod(shape)} devices, but there are {len(devices)}. "
            "Choose other sizes, or give the devices to use."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    if shape[0] % slices:
        raise ShardingError(f"There are {slices} slices, which data = {shape[0]} does not divide over.")
    within = (shape[0] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices=np.asarray(devices))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
