"""Builds a workload and compiles it for its target; run as `python -m omni_jax.compilation.worker` (`toolchain.py`).

Standard input is one JSON object: preset or config (a folder with config.json), workload, target, context, batch,
dtype, weights, mesh, memory (bytes of a device, None for all it has), extra, programs (names to compile, None for
all). The answer is that of `measure.measure`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_jax.compilation.toolchain import answer
from omni_jax.errors import OmniError


def main() -> None:
    request = json.load(sys.stdin)
    try:
        answer(compile_request(request))
    except OmniError as error:
        answer({"error": type(error).__name__, "message": str(error)})


def compile_request(request: dict[str, Any]) -> dict[str, Any]:
    from omni_jax.compilation.measure import measure
    from omni_jax.compilation.suggestion import suggest
    from omni_jax.compilation.targets import parse_target
    from omni_jax.compilation.workloads import Options, builder
    from omni_jax.kernels.target import Target, assume_target

    target = parse_target(request["target"])
    if request.get("memory"):
        target = replace(target, chip=replace(target.chip, hbm=request["memory"]))
    options = Options(
        model_config(request),
        devices_of(target),
        context=request.get("context"),
        batch=request.get("batch"),
        dtype=request.get("dtype", "bfloat16"),
        weights=request.get("weights"),
        mesh=request.get("mesh"),
        extra=request.get("extra") or {},
    )
    build = builder(request["workload"])
    with assume_target(Target("gpu" if target.platform == "gpu" else "tpu", target.chip.generation)):
        report = measure(build(options), target, only=request.get("programs"))
        if not report["fits"]:
            report["suggestion"] = suggest(build, options, target, report, devices_of)
    return report


def model_config(request: dict[str, Any]) -> Any:
    """The preset, or what a folder's config.json says."""
    if request.get("config"):
        from omni_jax.config_json import read_config

        return read_config(Path(request["config"]))
    from omni_jax.presets import preset

    return preset(request["preset"])


def devices_of(target: Any) -> list[Any]:
    """Descriptions of the target's devices; nothing of them exists."""
    from jax.experimental import topologies

    if target.platform == "gpu":
        text = (Path(__file__).parent / "h100_target_config.txtpb").read_text()
        return list(
            topologies.get_topology_desc(
                platform="cuda", topology_name="", topology=target.topology, target_config=text
            ).devices
        )
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{target.chip.generation}:{target.topology}",
        chips_per_host_bounds=list(target.host),
        chip_config_name=target.chip.config,
    )
    return list(topology.devices)


if __name__ == "__main__":
    main()
