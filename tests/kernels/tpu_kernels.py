"""Compiles the attention kernels for TPU generations, one after the other; prints what came out as JSON.

PYTHONPATH=compilers:. python tests/kernels/tpu_kernels.py v5e:2x4 v4:2x2x1

The first is compiled for at all sizes of the 7B model, the others at representative ones.
"""

import json
import os
import sys

os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # other tests compile for TPUs at the same time
)

import tpu_cache_programs
import tpu_interval_programs
from jax.experimental import topologies

from omni_jax.kernels.target import Target, assume_target

KINDS = {"interval": tpu_interval_programs, "cache": tpu_cache_programs}


def cases_of(kind: str, first: bool) -> tuple[str, ...]:
    return tuple(KINDS[kind].CASES) if first else KINDS[kind].REPRESENTATIVE


def main() -> None:
    results = {}
    for number, name in enumerate(sys.argv[1:]):
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        with assume_target(Target.of(devices[0])):
            results[name] = {
                kind: programs.compile_cases(devices, cases_of(kind, number == 0)) for kind, programs in KINDS.items()
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
