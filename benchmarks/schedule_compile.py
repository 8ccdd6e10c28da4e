"""Compiles one pattern after another for one TPU generation and prints a JSON line for each side.

A process of its own for each generation, started by `tpu_schedule.py` with the compiler's settings in its environment.
"""

import dataclasses
import functools
import glob
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import schedule_cases as cases
import schedule_splash
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from schedule_bundles import kernels_of, xla_cycles

from omni_jax.kernels.interval_attention import schedule, tpu
from omni_jax.kernels.interval_attention.block_sizes import choose
from omni_jax.kernels.interval_attention.tpu_window import WindowSizes
from omni_jax.kernels.target import Target, assume_target

# Clock in GHz (from the published peak and the shape of the matrix units) and bandwidth in GB/s of one chip.
CHIPS = {"v4": (1.05, 1228), "v5e": (1.5, 819), "v5p": (1.75, 2765), "v6e": (1.75, 1640), "tpu7x": (1.75, 3690)}


def compile_side(function, pattern, mesh, folder):
    """(program, kernels) of the function on columns and bounds."""
    for file in glob.glob(os.path.join(folder, "*")):
        os.remove(file)
    here = NamedSharding(mesh, jax.P())
    query, key = (
        jax.ShapeDtypeStruct((pattern.length, n * pattern.head_dim), jnp.bfloat16, sharding=here)
        for n in (pattern.heads, pattern.kv_heads)
    )
    bound = jax.ShapeDtypeStruct((pattern.length,), jnp.int32, sharding=here)
    with jax.set_mesh(mesh):
        program = jax.jit(function).lower(query, key, key, bound, bound).compile()
    return program, kernels_of(folder)


def chosen_sizes(changes: dict[str, int]):
    """`choose`, with some sizes changed: "block", "chunk", "part" of the flat passes, "stage" of windows."""

    def sizes(*args, **shape):
        chosen = choose(*args, **shape)
        if isinstance(chosen, WindowSizes):
            return dataclasses.replace(chosen, **{key: changes[key] for key in changes if key == "stage"})
        passes = {}
        for name in ("forward", "queries", "keys"):
            own = {key.removeprefix("keys_"): size for key, size in changes.items() if key.startswith("keys_")}
            shared = {key: size for key, size in changes.items() if not key.startswith("keys_")}
            passes[name] = dataclasses.replace(getattr(chosen, name), **(own if name == "keys" else shared))
        return type(chosen)(**passes)

    return sizes


def our_cycles(pattern, kernels, sizes) -> tuple[float, float]:
    """(cycles, bytes moved) of our kernels, forward or with gradients."""
    start, stop = (np.asarray(x) for x in pattern.bounds())
    total = moved = 0.0
    of_queries, of_keys = (pattern.length * n * pattern.head_dim * 2 for n in (pattern.heads, pattern.kv_heads))
    for name, kernel in kernels.items():
        if "interval_attention" not in name:
            continue
        one = sizes if isinstance(sizes, WindowSizes) else sizes.forward
        head_steps, blocks = pattern.kv_heads // one.kv_heads, -(-pattern.length // one.block)
        if "row_sums" in name:
            total, moved = total + kernel.cycles(blocks * head_steps), moved + 2 * of_queries
        elif isinstance(sizes, WindowSizes):
            grad = "grad" in name
            share = blocks * one.chunk / pattern.length
            moved += (2 + grad) * of_queries + (2 * share + 2 * grad) * of_keys
            # the gradient's sums are cleared in the first step only; its other regions run in (almost) every step
            clear = (1 / (blocks + 1),) * (grad and len(kernel.regions) > 2)
            shares = clear + (1.0,) * (len(kernel.regions) - len(clear))
            total += kernel.cycles((blocks + grad) * head_steps, shares)
        else:
            own = sizes.keys if "dkv" in name else one
            make = schedule.by_keys if "dkv" in name else schedule.by_queries
            queries = own.chunk if "dkv" in name else own.block
            bounds = (jnp.asarray(np.pad(x, (0, -pattern.length % queries))) for x in (start, stop))
            with jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("x",))):
                pairs = make(*bounds, pattern.length, block=own.block, chunk=own.chunk)
                count, words = int(pairs.count), np.asarray(pairs.word)
            words = words[:count]
            first, full, last = (
                float(((words & flag) != 0).mean()) for flag in (schedule.FIRST, schedule.FULL, schedule.LAST)
            )
            forward = "_dq" not in name and "_dkv" not in name
            shares = (first, full, 1 - full, last) if forward else (first, last)
            shares = shares if len(kernel.regions) >= len(shares) else shares[-len(kernel.regions) :]
            total += kernel.cycles(count * head_steps, shares if kernel.regions else ())
            chunk_bytes = own.chunk * 2 * 2 * pattern.head_dim
            moved += count * chunk_bytes * (pattern.heads if "dkv" in name else pattern.kv_heads)
            moved += 2 * of_keys * 2 if "dkv" in name else (2 if forward else 3) * of_queries
    return total, moved


def splash_cycles(pattern, kernels, kernel) -> tuple[float, float]:
    """As `our_cycles`. Steps without work count with what they cannot skip."""
    total = moved = 0.0
    for name, found in kernels.items():
        if "splash" not in name:
            continue
        info = kernel.dkv_mask_info if "dkv" in name else kernel.dq_mask_info if "_dq" in name else kernel.fwd_mask_info
        steps, busy, ends, block = schedule_splash.steps_and_shares(pattern, info)
        # the region with the products is by far the largest; what begins and ends a row is run once a row
        largest = max(found.regions, default=0)
        total += found.cycles(steps, tuple(busy if size == largest else ends for size in found.regions))
        moved += steps * busy * block * pattern.head_dim * 2 * 2
        moved += 2 * pattern.length * pattern.heads * pattern.head_dim * 2
    return total, moved


def main() -> None:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
    wanted, sides, folder = sys.argv[2], sys.argv[3].split(","), sys.argv[4]
    target = Target.of(topology.devices[0])
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    clock, bandwidth = CHIPS[target.generation]
    bytes_per_cycle = bandwidth / clock
    with assume_target(target):
        for pattern in cases.PATTERNS:
            if not re.search(wanted, pattern.name):
                continue
            for side in sides:
                row = {"target": target.generation, "pattern": pattern.name, "side": side}
                try:
                    row |= measure(pattern, side, mesh, target, bytes_per_cycle, folder)
                except Exception as error:  # a side that does not compile is a row, not the end of the table
                    row["error"] = str(error).strip().splitlines()[0][:300]
                print(json.dumps(row), flush=True)


def measure(pattern, side, mesh, target, bytes_per_cycle, folder) -> dict:
    form, *changes = side.split(":")
    form, grad = form.removesuffix("+grad"), form.endswith("+grad")
    sizes = chosen_sizes({key: int(size) for key, size in (change.split("=") for change in changes)})
    tpu.choose = sizes
    if form.startswith("splash"):
        function, kernel = schedule_splash.make_splash(pattern, int(form.removeprefix("splash")))
    else:
        if form == "gathered" and pattern.blocks is None:
            raise ValueError("no gathered form of a causal mask")
        function = functools.partial(getattr(cases, form), pattern)

    def with_gradients(query, key, value, start, stop):
        out, pull = jax.vjp(lambda *qkv: function(*qkv, start, stop), query, key, value)
        return out, pull(out)

    program, kernels = compile_side(with_gradients if grad else function, pattern, mesh, folder)
    around = xla_cycles(program.as_text(), kernels)
    units = moved = 0.0
    if form == "ours":
        shape = dict(heads=pattern.heads, kv_heads=pattern.kv_heads, head_dim=pattern.head_dim)
        lengths = dict(length=pattern.length, keys=pattern.length, reach=pattern.reach)
        units, moved = our_cycles(pattern, kernels, sizes(target, **shape, **lengths))
    elif form.startswith("splash"):
        units, moved = splash_cycles(pattern, kernels, kernel)
    memory = moved / bytes_per_cycle
    analysis = program.cost_analysis() or {}
    return {
        "cycles": round(max(units, memory) + around),
        "kernel_units": round(units),
        "kernel_memory": round(memory),
        "around": round(around),
        "bytes": round(moved or analysis.get("bytes accessed", 0)),
        "temporary": program.memory_analysis().temp_size_in_bytes,
    }


if __name__ == "__main__":
    main()
