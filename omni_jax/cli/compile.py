"""`omni-jax compile`: would it fit, and how fast could it be? Asks the compilers, without any accelerator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from omni_jax.cli import console
from omni_jax.errors import ConfigError


@dataclass(frozen=True)
class CompileArgs:
    """Compile a workload ahead of time for chips that need not be there, and report what it would take of each.

    Memory against the chip's; operations and bytes moved, with the time that they take at least (the roofline) and what
    bounds it; traffic between devices by kind. When something does not fit, changes that would make it fit are named.
    The exit status is then 1.

    Targets are called as Google Cloud calls them: v5e-4 and v6e-8 count chips; v4-8, v5p-8 and tpu7x-8 count cores, two
    a chip. GPUs: h100, h100-8.

    example:
      omni-jax compile --preset qwen2.5-omni-7b --workload speech --target v5e-4
      omni-jax compile --preset qwen2.5-omni-3b --workload decode --target v6e-1 --context 8192 --json
      omni-jax compile --preset qwen2.5-omni-7b --workload pretrain2 --target v5p-64
    """

    workload: str = "speech"
    """What to run: prefill, decode, speech; train (plain text, all of the Thinker); or a stage of training by the name
    of its file in configs/: pretrain1, pretrain2, pretrain3, sft, talker_icl, talker_dpo, …"""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """Compile a step of the run that this file configures; see `omni-jax train`."""
    target: str = "v5e-4"
    """Chips to compile for, e.g. v4-8, v5e-1, v5e-16, v5p-8, v6e-1, tpu7x-8, h100-8."""
    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """A published model, or tiny."""
    checkpoint: Annotated[Path | None, arg(metavar="DIR")] = None
    """Take the model's sizes from the config.json of this folder instead."""
    context: Annotated[int | None, arg(metavar="INT")] = None
    """Cache slots of a row, by default those for a film of 60 seconds with its sound, and an answer; or the length of a
    training sequence."""
    batch: Annotated[int | None, arg(metavar="INT")] = None
    """Rows that are answered together (1), or sequences of a training step (one for each device that takes one)."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Of parameters, caches and compute (the decoders of sound stay in float32): bfloat16, or as a run's file says."""
    mesh: Annotated[str | None, arg(metavar="AXIS=SIZE,...")] = None
    """Sizes of the mesh axes data, fsdp, tensor and context; by default chosen for model and target."""
    memory: Annotated[float | None, arg(metavar="GIB")] = None
    """What each device has to spare, if not all of its memory."""
    weights: Literal["int8"] | None = None
    """Store large matrices as int8, in workloads that answer."""
    program: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Compile this program of the workload only; may be given more than once."""
    json: bool = False
    """End standard output with one JSON object, all sizes in bytes and of one device."""


def run(args: CompileArgs) -> int:
    from omni_jax.compilation.targets import parse_target
    from omni_jax.compilation.toolchain import run_worker
    from omni_jax.compilation.workloads import check_workload, stage_file
    from omni_jax.sharding.axes import parse_mesh

    if (args.preset is None) == (args.checkpoint is None):
        raise ConfigError("Give either --preset (e.g. qwen2.5-omni-7b) or --checkpoint DIR.")
    for name in ("batch", "context"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is out of range. Give 1 or more.")
    if args.memory is not None and not 0 < args.memory < 1e6:
        raise ConfigError(f"--memory {args.memory:g} is out of range. Give GiB of each device.")
    target = parse_target(args.target)
    file = args.config or stage_file(args.workload)
    workload, name = ("stage", file.stem) if file else (args.workload, args.workload)
    check_workload(workload)
    if args.preset is not None:
        from omni_jax.presets import preset

        preset(args.preset)
    request: dict[str, Any] = {
        "preset": args.preset,
        "config": None if args.checkpoint is None else str(args.checkpoint),
        "workload": workload,
        "extra": {} if file is None else {"run": str(file.resolve())},
        "target": args.target,
        "context": args.context,
        "batch": args.batch,
        "dtype": args.dtype or (None if file else "bfloat16"),
        "weights": args.weights,
        "mesh": None if args.mesh is None else parse_mesh(args.mesh),
        "memory": None if args.memory is None else int(args.memory * (1 << 30)),
        "programs": list(args.program) or None,
    }
    out = console.Output(args.json)
    with console.Progress(f"compiling {name} for {target.name}"):
        report = run_worker(request, target)
    from omni_jax.compilation.report import to_text

    out.write(to_text(report, name))
    out.result(report)
    return console.OK if report["fits"] else console.FAILED
