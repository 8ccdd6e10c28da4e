"""Compiled by test_tpu_slices.py: a mesh over two slices of TPU v5e."""

import os

os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost")
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import json

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from omni_jax.errors import ShardingError
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import TRAINING, shardings

devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices)
mesh = make_mesh(devices, data=2, fsdp=4, tensor=2)
try:
    make_mesh(devices, fsdp=16)
except ShardingError as error:
    refused = str(error)
shardings(*logical_axes(preset("qwen2.5-omni-7b"), ["thinker"]), mesh, TRAINING)
rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
total = jax.jit(lambda x: x.sum(0), in_shardings=rows, out_shardings=whole)
program = total.lower(jax.ShapeDtypeStruct((32, 1024), jnp.float32)).compile().as_text()
print(
    json.dumps(
        {
            "slices": [sorted({device.slice_index for device in part.ravel()}) for part in mesh.devices],
            "refused": refused,
            "between_slices": "is_host_transfer=true" in program,
        }
    )
)
