"""A step of a training run, as its configuration file describes it."""

import math
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp

from omni_jax.compilation.workloads import Options, Program, Workload
from omni_jax.errors import ConfigError
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import TRAINING
from omni_jax.training.batch_shapes import step_shapes
from omni_jax.training.metrics_flops import flops_per_position, positions
from omni_jax.training.run_config import RunConfig, load_config
from omni_jax.training.run_stages import model_of
from omni_jax.training.step import Trainer

REMEDIES = (
    "more chips: parameters, gradients and optimiser are split over all of them",
    "a context axis (--mesh fsdp=N,context=M), which splits each sequence's activations",
    "shorter rows (--context), or fewer of them on a device (--batch)",
)


def stage(options: Options) -> Workload:
    """The step, its state and its batch.

    Options: `extra["run"]` is the configuration file; `context` takes the place of its row length (media in
    proportion), `batch` of its rows, `mesh` of its mesh.

    Raises:
        ConfigError: a file that is no configuration, or a batch that does not divide.
        ShardingError: the mesh does not fit the devices or the model.
    """
    if options.weights is not None:
        raise ConfigError(f"--weights {options.weights} is for answering; training keeps its weights in float32.")
    run = load_config(options.extra["run"])
    if options.dtype is not None:
        run = replace(run, dtype=str(jnp.dtype(options.dtype)))
    if options.context is not None:
        run = replace(run, data=replace(run.data, shape=_scaled(run, options.context)))
    model = model_of(run.stage, options.config)
    mesh = make_mesh(options.devices, **_mesh(options, run))
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, notes = run.data.rows if options.batch is None else options.batch, []
    if rows % groups and options.batch is not None:
        raise ConfigError(f"A batch of {rows} does not divide over data x fsdp = {groups}. Give a multiple of it.")
    if rows % groups:
        notes.append(f"the run's {rows} rows do not divide over data x fsdp = {groups}: {groups} rows instead")
        rows = groups
    trainer = Trainer(
        model,
        run.stage.task(run, model, ()),
        run.optimizer,
        mesh,
        freeze=run.freeze,
        rates=run.rates,
        accumulate=run.accumulate,
        lora=run.lora,
        guard=run.guard,
        dtype=jnp.dtype(run.dtype),
    )
    state, batch = trainer.abstract(step_shapes(run, model, rows))
    trained = sum(math.prod(state.params[path].shape) for path in trainer.trained)
    total = sum(math.prod(leaf.shape) for leaf in state.params.values())
    unit, units = _units(run, rows * run.accumulate)
    notes.append(
        f"{Path(options.extra['run']).name}: {rows} rows in {run.accumulate} batches a step, remat {run.remat}, "
        f"{trained / 1e9:.2f} G of {total / 1e9:.2f} G parameters trained"
    )
    return Workload(
        (Program("train_step", trainer.jitted, (state, batch)),),
        {"parameters": state.params, "optimiser": state.optimizer_state, "batch": batch},
        mesh=mesh,
        rules=TRAINING,
        unit=unit,
        units=units,
        notes=tuple(notes),
        remedies=REMEDIES,
        model_flops=_model_flops(run, trainer, rows * run.accumulate),
    )


def _model_flops(run: RunConfig, trainer: Trainer, rows: int) -> float | None:
    """Of one step; None for stages on recordings, whose positions are not those of a row."""
    if not hasattr(run.stage, "chunk"):
        return None
    each = flops_per_position(trainer.shapes, trainer.trained)
    return rows * sum(each.get(name, 0) * count for name, count in positions(run.data.shape).items())


def _mesh(options: Options, run: RunConfig) -> dict[str, int]:
    """Sizes of the axes: as asked for, as the run has them if the devices are as many, or fsdp beside its context."""
    count = len(options.devices)
    if options.mesh is not None:
        return dict(options.mesh)
    if run.mesh and math.prod(run.mesh.values()) == count:
        return dict(run.mesh)
    context = math.gcd(run.mesh.get("context", 1), count)
    return {"fsdp": count // context, "context": context}


def _scaled(run: RunConfig, tokens: int):
    """The row's shape at another length."""
    shape, factor = run.data.shape, tokens / run.data.shape.tokens
    return replace(
        shape,
        tokens=tokens,
        audio_blocks=math.ceil(shape.audio_blocks * factor),
        patches=64 * math.ceil(shape.patches * factor / 64),
        speech=8 * math.ceil(shape.speech * factor / 8),
        pairs=math.ceil(shape.pairs * factor),
    )


def _units(run: RunConfig, rows: int) -> tuple[str, float]:
    if hasattr(run.stage, "chunk"):
        return "token", rows * run.data.shape.tokens
    return "second of sound", rows * run.data.clip_seconds
