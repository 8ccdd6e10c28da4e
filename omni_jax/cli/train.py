"""`omni-jax train`: every stage of training, from a configuration file."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import ConfigError

if TYPE_CHECKING:
    from omni_jax.training.run_config import RunConfig


@dataclass(frozen=True)
class TrainArgs:
    """Train as a configuration file says; configs/ has one for each stage of the paper.

    Everything in the file can be given anew: omni-jax train --config FILE --help lists it. A run that was stopped goes
    on where it was, with the same command. SIGTERM and Ctrl-C save and end it. The trained model is written to
    OUTPUT/model, for chat, export, and the next stage.

    On several hosts start the same command on each; outside of Cloud TPU, Slurm and MPI set OMNI_JAX_COORDINATOR
    (host:port of the first), OMNI_JAX_PROCESSES and OMNI_JAX_PROCESS.

    example:
      omni-jax train --config configs/sft.py
      omni-jax train --config configs/sft.py --output runs/low --optimizer.learning-rate 2e-6
    """

    config: Annotated[Path, arg(metavar="FILE")]
    """A Python file that says config = RunConfig(...)."""
    resume: bool = True
    """Go on with the run in OUTPUT, if there is one."""
    allow_change: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY")] = ()
    """Go on although this key of the configuration has changed; may be given more than once."""
    profile: Annotated[str | None, arg(metavar="FIRST:LAST")] = None
    """Profile these steps into OUTPUT/profile. While it runs, SIGUSR1 or a file OUTPUT/profile.now does so too."""
    json: FlagCreatePairsOff[bool] = False
    """End standard output with one JSON object: step, reason, model, seconds, and the last row of metrics."""


def parse(argv: Sequence[str]) -> TrainArgs:
    """The options; those of the run exist once its file is known.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    import tyro

    prog, markers = "omni-jax train", (tyro.conf.AvoidSubcommands,)
    file = _config_file(argv)
    if file is None:  # shows the help, or that --config is missing
        return tyro.cli(TrainArgs, prog=prog, args=list(argv), config=markers)
    from omni_jax.training.run_config import RunConfig, load_config

    @dataclass(frozen=True, kw_only=True)
    class WithRun(TrainArgs):
        run: Annotated[RunConfig, arg(name="")]

    WithRun.__doc__ = TrainArgs.__doc__
    default = WithRun(config=Path(file), run=load_config(file))
    return tyro.cli(WithRun, prog=prog, args=list(argv), default=default, config=markers)


def _config_file(argv: Sequence[str]) -> str | None:
    for place, word in enumerate(argv):
        if word == "--config" and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def run(args: TrainArgs) -> int:
    config: RunConfig = args.run
    imported_checkpoint(Path(config.checkpoint))
    console.setup_jax()
    from omni_jax.sharding import hosts

    _, processes = hosts.start()
    if processes == 1:
        return _train(args, config)
    debug = os.environ.get(console.DEBUG_VARIABLE, "0") not in ("", "0")
    status = console.run_guarded(lambda: _train(args, config), debug=debug)
    if status != console.OK:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # exit handlers would wait for the other processes, which may be gone
    return status


def _train(args: TrainArgs, config: "RunConfig") -> int:
    import jax

    from omni_jax.config_json import read_config
    from omni_jax.sampling.voices import load_speakers
    from omni_jax.training.loop_profile import parse_steps
    from omni_jax.training.metrics import read_rows
    from omni_jax.training.run import Hooks
    from omni_jax.training.run import run as train

    first = jax.process_index() == 0
    started, out = time.perf_counter(), console.Output(args.json)
    model = read_config(config.checkpoint)
    voices = {}
    if model.speaks and (Path(config.checkpoint) / "spk_dict.pt").is_file():
        voices = {name: each.token_id for name, each in load_speakers(config.checkpoint, model).items()}
    with console.Progress("reading the checkpoint") as bar:
        hooks = Hooks(
            say=console.note if first else lambda text: None,
            sample=_answers(config, model) if config.sample_every else None,
            profile=None if args.profile is None else parse_steps(args.profile),
            ready=bar.close,
        )
        data = config.stage.open_data(config, voices, bar)
        summary = train(config, data, resume=args.resume, allow_change=args.allow_change, hooks=hooks)
    if first:
        rows = [row for row in read_rows(config.output) if "loss" in row]
        folder = None if summary.model is None else str(summary.model)
        end = "" if folder is None else f" The model is in {folder}."
        out.write(f"Step {summary.step}: {summary.reason}.{end}")
        seconds = time.perf_counter() - started
        result = {"step": summary.step, "reason": summary.reason, "model": folder, "seconds": seconds}
        out.result(result | {"metrics": rows[-1] if rows else None})
    return console.OK


def _answers(config: "RunConfig", model: Any) -> Any:
    """Greedy answers of the parameters as they are, in the command line's own way of sampling."""
    import jax
    import jax.numpy as jnp

    from input_pipeline.tokenizer import Tokenizer
    from omni_jax.models.logical_axes import logical_axes
    from omni_jax.sampling.generate import Sampler
    from omni_jax.sampling.options import SamplingOptions
    from omni_jax.sharding.rules import SAMPLING, shardings
    from omni_jax.sharding.scope import mesh_of

    tokenizer = Tokenizer.load(config.checkpoint)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16

    def answer(params: Mapping[str, Any], prompts: tuple[str, ...], tokens: int) -> list[str]:
        if "thinker" not in params:
            raise ConfigError(
                "prompts are given, but this stage has no Thinker to answer them. Leave sample_every out."
            )
        mesh = mesh_of(params)
        axes, shapes = logical_axes(model, ("thinker",))
        if mesh.size == 1:
            mesh, places = None, jax.devices()[0]
        else:
            places = shardings(axes, shapes, mesh, SAMPLING)
        own = jax.device_put(jax.tree.map(lambda x: x.astype(dtype), {"thinker": params["thinker"]}), places)
        sampler = Sampler(own, model, tokenizer, dtype=dtype, mesh=mesh)
        asked = [sampler.prepare([{"role": "user", "content": [{"type": "text", "text": text}]}]) for text in prompts]
        return [each.text for each in sampler.generate(asked, SamplingOptions(max_new_tokens=tokens))]

    return answer
