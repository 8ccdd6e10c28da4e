"""Many hosts as one: start-up, and arrays of which each host holds a part."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.errors import ShardingError

_started = False


def start(
    *, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> tuple[int, int]:
    """Joins this process to the others of the run; call it before anything else of JAX. A second call does nothing.

    On a cluster that JAX knows (Cloud TPU, Slurm, MPI, Kubernetes) all of it is found out; that there is one is told by
    the variables that Cloud TPU, Slurm and Open MPI set, or by OMNI_JAX_CLUSTER=1. Elsewhere give it, or set
    OMNI_JAX_COORDINATOR ("host:port" of process 0), OMNI_JAX_PROCESSES and OMNI_JAX_PROCESS. Without any of these
    nothing is started. A process that is gone is noticed after OMNI_JAX_HEARTBEAT seconds (100), and the others end.

    Returns:
        This process's index and the number of processes.

    Raises:
        ShardingError: only a part is given, or the others cannot be reached.
    """
    global _started
    given = {
        "coordinator": coordinator or os.environ.get("OMNI_JAX_COORDINATOR"),
        "processes": processes if processes is not None else os.environ.get("OMNI_JAX_PROCESSES"),
        "process": process if process is not None else os.environ.get("OMNI_JAX_PROCESS"),
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ShardingError(
            f"To join several hosts, {', '.join(missing)} must be given too. Set "
            f"{', '.join(f'OMNI_JAX_{name.upper()}' for name in missing)}, or none of the three."
        )
    if not _started and (not missing or _on_cluster()):
        # CPU devices of several processes need a library for their collectives; other platforms ignore it
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            alive = {"heartbeat_timeout_seconds": int(os.environ.get("OMNI_JAX_HEARTBEAT", "100"))}
            if missing:
                jax.distributed.initialize(**alive)
            else:
                alive["initialization_timeout"] = 120
                jax.distributed.initialize(
                    given["coordinator"], int(given["processes"]), int(given["process"]), **alive
                )
        except (RuntimeError, ValueError) as error:
            who = "This process" if missing else f"Process {given['process']} of {given['processes']}"
            raise ShardingError(
                f"{who} could not join {given['coordinator'] or 'its cluster'} ({error}). Start all processes with the "
                "same OMNI_JAX_COORDINATOR, each with a number of its own."
            ) from error
        _started = True
    return jax.process_index(), jax.process_count()


def _on_cluster() -> bool:
    """Whether there is more than one process, by the variables of those that start them."""
    if os.environ.get("OMNI_JAX_CLUSTER") == "1" or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
        return True
    listed = (os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    counted = (os.environ.get(name, "") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return any("," in names for names in listed) or any(size.isdecimal() and int(size) > 1 for size in counted)


def own_rows(rows: int, mesh: Mesh, axes: tuple[str, ...] = ("data", "fsdp")) -> slice:
    """The rows of a global batch that this host has to load: those that its devices hold.

    Raises:
        ShardingError: the rows do not divide over `axes`, or this host's devices hold no single run of them.
    """
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    count = int(np.prod([mesh.shape[axis] for axis in axes]))
    if rows % count:
        raise ShardingError(
            f"A batch of {rows} rows does not divide over {' x '.join(axes)} = {count}. Choose a multiple of {count}."
        )
    held = {index[0].indices(rows)[:2] for index in sharding.addressable_devices_indices_map((rows,)).values()}
    begin, end = min(start for start, _ in held), max(stop for _, stop in held)
    if sum(stop - start for start, stop in held) != end - begin:
        raise ShardingError(
            f"The devices of host {jax.process_index()} hold rows in several pieces: {sorted(held)}. "
            "Order the mesh so that a host's devices are neighbours along the batch."
        )
    return slice(begin, end)


def assemble(tree: Any, shardings: Any) -> Any:
    """Global arrays from what each host has loaded of them (numpy arrays of its own part)."""
    return jax.tree.map(
        lambda local, sharding: jax.make_array_from_process_local_data(sharding, np.asarray(local)), tree, shardings
    )
