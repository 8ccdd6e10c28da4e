"""Compiles the programs of a workload and adds up what they need."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from omni_jax.compilation.abstract import by_kind, device_bytes
from omni_jax.compilation.executables import Executable, compile_program
from omni_jax.compilation.flops import count_flops
from omni_jax.compilation.hlo import arrays, parse
from omni_jax.compilation.roofline import Roofline, roofline
from omni_jax.compilation.targets import GIB, CompileTarget
from omni_jax.compilation.traffic import loop_traffic, traffic
from omni_jax.compilation.workloads import Program, Workload
from omni_jax.errors import ConfigError
from omni_jax.sharding.scope import on_mesh

_SHOWN_MOVES = 12


def measure(workload: Workload, target: CompileTarget, *, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Compiles each program; all figures are of one device.

    Args:
        only: names of the programs to compile; None for all.

    Returns:
        The object that `omni-jax compile --json` prints: sums over programs, each as often as it runs. What the
        compiler would have to tell is None if a program does not even compile for lack of memory.

    Raises:
        ConfigError: a name in `only` that the workload does not have.
    """
    names = [program.name for program in workload.programs]
    if only is not None and not set(only) <= set(names):
        raise ConfigError(f"The workload has the programs {', '.join(names)}, not {', '.join(set(only) - set(names))}.")
    resident = {id(leaf): leaf for leaf in jax.tree.leaves(dict(workload.resident))}
    programs = [
        _program(program, workload, target, resident)
        for program in workload.programs
        if only is None or program.name in only
    ]
    kinds = by_kind(workload.resident)
    worst = max(programs, key=lambda one: one["peak_bytes"])
    whole = all(one["bytes_moved"] is not None for one in programs)
    collectives: Counter[str] = Counter()
    limits = Roofline(*(sum(one["times"] * one["limits"][n] for one in programs) for n in range(3)))
    # programs run one after the other, so their rooflines add
    seconds = sum(one["times"] * max(one["limits"]) for one in programs)
    utilisation = None
    if workload.model_flops and whole and seconds:
        utilisation = workload.model_flops / target.devices / target.chip.flops / seconds
    for one in programs:
        for kind, size in one["collectives"].items():
            collectives[kind] += round(size * one["times"])
    return {
        "fits": worst["peak_bytes"] <= target.chip.hbm and whole,
        "peak_bytes": worst["peak_bytes"],
        "hbm_bytes": target.chip.hbm,
        "arguments_bytes": worst["arguments_bytes"],
        "temporary_bytes": worst["temporary_bytes"],
        "flops": round(sum(one["times"] * one["flops"] for one in programs)),
        "bytes_moved": round(sum(one["times"] * one["bytes_moved"] for one in programs)) if whole else None,
        "roofline_seconds": seconds if whole else None,
        "utilisation": utilisation,
        "bound_by": limits.bound_by if whole else None,
        "collectives": dict(collectives),
        "compile_seconds": round(sum(one["compile_seconds"] for one in programs), 2),
        "target": target.name,
        "devices": target.devices,
        "mesh": {axis: size for axis, size in workload.mesh.shape.items() if size > 1},
        **{f"{kind}_bytes": size for kind, size in kinds.items()},
        "unit": workload.unit,
        "units": workload.units,
        "notes": list(workload.notes),
        "remedies": list(workload.remedies),
        "programs": [{key: value for key, value in one.items() if key != "limits"} for one in programs],
    }


def _program(program: Program, workload: Workload, target: CompileTarget, resident: dict[int, Any]) -> dict[str, Any]:
    function = getattr(program.function, "jitted", program.function)
    # a plain function that every device runs by itself knows no mesh when it is called, either
    sees_mesh = program.split or function is not program.function
    with on_mesh(workload.mesh if sees_mesh else None, workload.rules):
        traced = function.trace(*program.args, **program.kwargs)
        arguments = jax.tree.leaves(program.args)
        held = device_bytes(arguments)
        if held > target.chip.hbm:  # no need to ask
            compiled = Executable(0, 0, 0, 0, 0.0, refused=f"its arguments alone are {held / GIB:.2f} GiB")
        else:
            compiled = compile_program(traced.lower(), target)
    own = set(map(id, arguments))
    beside = device_bytes([leaf for key, leaf in resident.items() if key not in own])
    counted = count_flops(traced.jaxpr, while_trips=program.loop)
    report = {
        "name": program.name,
        "times": program.times,
        "loop": program.loop,
        "flops": counted.total / (target.devices if program.split else 1),
        "uncounted_kernels": counted.uncounted,
        "compile_seconds": round(compiled.seconds, 2),
        "compiled_before": compiled.cached,
    }
    if compiled.refused:
        return report | _refused(compiled.refused, held, beside)
    module = parse(compiled.text)
    # arguments that a program does not look at are no arguments of the compiled one, but are in memory all the same
    unused = held - sum(shape.net_bytes for each in module.main.parameters.values() for shape in arrays(each.type))
    held = compiled.arguments + max(unused, 0) + beside
    temporary = compiled.temporary + compiled.outputs - compiled.aliased
    moved = traffic(module, unknown_trips=program.loop, devices=target.devices)
    limits = roofline(target.chip, flops=report["flops"], bytes_moved=moved.hbm, wire_bytes=moved.wire)
    report |= {
        "peak_bytes": held + temporary,
        "arguments_bytes": held,
        "temporary_bytes": temporary,
        "bytes_moved": moved.hbm,
        "host_transfers": moved.host_transfers,
        "collectives": dict(moved.collectives),
        "roofline_seconds": limits.seconds,
        "bound_by": limits.bound_by,
        "limits": (limits.compute, limits.memory, limits.network),
        "largest_moves": _moves(moved),
    }
    if program.loop > 1 and moved.guessed:
        step = loop_traffic(module, devices=target.devices)
        report["step"] = {
            "bytes_moved": step.hbm,
            "host_transfers": step.host_transfers,
            "collectives": dict(step.collectives),
            "largest_moves": _moves(step),
        }
    return report


def _refused(told: str, arguments: int, beside: int) -> dict[str, Any]:
    """What is known of a program that the compiler finds too large for the chip."""
    needed = _told_bytes(told)
    temporary = max(0, needed - arguments) if needed else 0
    return {
        "peak_bytes": arguments + beside + temporary,
        "arguments_bytes": arguments + beside,
        "temporary_bytes": temporary,
        "bytes_moved": None,
        "host_transfers": None,
        "collectives": {},
        "limits": (0.0, 0.0, 0.0),
        "refused": told.splitlines()[0][:300],
    }


def _moves(moved: Any) -> list[dict[str, Any]]:
    return [
        {"instruction": move.instruction, "opcode": move.opcode, "source": move.source, "bytes": move.total}
        for move in moved.moves[:_SHOWN_MOVES]
    ]


def _told_bytes(text: str) -> int | None:
    """Memory that a program needs, from the compiler's refusal."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? (?:hbm|HBM)", text)
    found = found or re.search(r"memory required[^(]*\(([\d.]+)([KMGT]?)\)", text)
    if not found:
        return None
    return math.ceil(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
