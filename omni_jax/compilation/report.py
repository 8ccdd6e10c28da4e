"""A compile report as a short table for people."""

from collections.abc import Mapping
from typing import Any

_GIB = 1 << 30
_KINDS = ("parameters", "optimiser", "gradients", "cache", "batch")


def to_text(report: Mapping[str, Any], workload: str) -> str:
    """The report of `measure.measure`; every figure is of one device."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in report["mesh"].items()) or "one device"
    verdict = "fits" if report["fits"] else "does not fit"
    share = 100 * report["peak_bytes"] / report["hbm_bytes"]
    lines = [
        f"{workload} on {report['target']} ({report['devices']} devices, {mesh}): {verdict}",
        *report["notes"],
        "",
        "memory of one device",
        *(f"  {kind:<14}{_gib(report[f'{kind}_bytes'])}" for kind in _KINDS if report.get(f"{kind}_bytes")),
        f"  {'temporary':<14}{_gib(report['temporary_bytes'])}",
        f"  {'peak':<14}{_gib(report['peak_bytes'])}  {share:.0f} % of {_gib(report['hbm_bytes']).strip()}",
        "",
        f"  {'program':<16}{'runs':>6}{'temporary':>12}{'TFLOP':>10}{'GB moved':>10}{'ms each':>10}  bound by",
    ]
    for one in report["programs"]:
        row = f"  {one['name']:<16}{one['times']:>6g}{_gib(one['temporary_bytes'])}{one['flops'] / 1e12:>10.3f}"
        if one["bytes_moved"] is None:
            lines.append(f"{row}  refused: {one['refused']}")
            continue
        seconds = 1e3 * one["roofline_seconds"]
        lines.append(f"{row}{one['bytes_moved'] / 1e9:>10.2f}{seconds:>10.3f}  {one['bound_by']}")
    lines.append("")
    if report["collectives"]:
        moved = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in report["collectives"].items())
        lines.append(f"between devices: {moved}")
    if report["roofline_seconds"] is not None:
        seconds, units = report["roofline_seconds"], report["units"]
        rate = f"{1e3 * seconds / units:.3g} ms a {report['unit']}" if units else ""
        lines.append(f"roofline: {seconds:.4g} s in all, {rate}, bound by {report['bound_by']}")
    if report["utilisation"] is not None:
        lines.append(
            f"utilisation at that pace: {100 * report['utilisation']:.0f} % of the peak goes into the model once"
        )
    unsure = sorted({name for one in report["programs"] for name in one["uncounted_kernels"]})
    if unsure:
        lines.append(f"operations of these kernels are not counted: {', '.join(unsure)}")
    lines.append(f"compile time: {report['compile_seconds']:.1f} s")
    if report.get("suggestion"):
        lines += ["", report["suggestion"]]
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / _GIB:8.2f} GiB"
