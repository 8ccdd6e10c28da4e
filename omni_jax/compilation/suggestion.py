"""What would make a workload fit: arithmetic on its arrays, without compiling anything."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from omni_jax.compilation.abstract import by_kind
from omni_jax.compilation.targets import GIB, CompileTarget, next_larger
from omni_jax.compilation.workloads import Options, Workload
from omni_jax.errors import OmniError

_TRIED = 3  # larger groups of chips


def suggest(
    build: Callable[[Options], Workload],
    options: Options,
    target: CompileTarget,
    report: dict[str, Any],
    devices_of: Callable[[CompileTarget], list[Any]],
) -> str:
    """A few lines: what is short, and changes that would do, each with what would be needed then.

    Temporary memory is taken to stay as it was compiled, which is too much for smaller programs. Where the arguments
    alone are too large nothing was compiled, and it is not known.
    """
    hbm, temporary = target.chip.hbm, report["temporary_bytes"]
    known = any(one["compile_seconds"] > 0 for one in report["programs"])
    besides = f"+ {_gib(temporary)}" if known else "and what its programs need for a while"
    parts = " + ".join(
        f"{_gib(report[f'{kind}_bytes'])} of {kind}"
        for kind in ("parameters", "optimiser", "gradients", "cache", "batch")
        if report.get(f"{kind}_bytes")
    )
    rest = _gib(temporary) if known else "unknown, nothing was compiled"
    needs = f"Each device needs {_gib(report['peak_bytes'])} ({parts}; besides: {rest})"
    lines = [f"{needs} and has {_gib(hbm)}."]

    def needed(changed: Options) -> tuple[int, str] | None:
        try:
            workload = build(changed)
        except OmniError:
            return None
        mesh = ", ".join(f"{axis}={size}" for axis, size in workload.mesh.shape.items() if size > 1)
        return sum(by_kind(workload.resident).values()), mesh

    for larger in next_larger(target)[:_TRIED]:
        found = needed(replace(options, devices=devices_of(larger), mesh=None))
        if found and found[0] + temporary <= hbm:
            lines.append(f"{larger.name} with {found[1]} would need {_gib(found[0])} {besides} each.")
            break
    now = needed(options)
    changes = []
    if options.dtype == "float32":
        changes.append(("--dtype bfloat16", replace(options, dtype="bfloat16")))
    if options.weights is None and "cache_bytes" in report:
        changes.append(("--weights int8", replace(options, weights="int8")))
    if options.batch is not None and options.batch > 1:
        changes.append((f"--batch {options.batch // 2}", replace(options, batch=options.batch // 2)))
    if now and "cache_bytes" in report:
        changes.append(("--context 4096", replace(options, context=4096)))
    for name, changed in changes:
        found = needed(changed)
        if found and now and found[0] < now[0]:
            fits = ("and fit" if known else "and may fit") if found[0] + temporary <= hbm else "not enough by itself"
            lines.append(f"{name} would need {_gib(found[0])} {besides} each, {fits}.")
    return "\n".join([*lines, *report.get("remedies", ())])


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
