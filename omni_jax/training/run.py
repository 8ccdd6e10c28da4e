"""A run from its configuration to the folder of the trained model."""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError, ConfigError, DataError
from omni_jax.interop.restore import load_checkpoint_info, restore_params
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sharding.hosts import own_rows
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import TRAINING, shardings
from omni_jax.training.batch_shapes import step_shapes
from omni_jax.training.checkpoints import Checkpoints
from omni_jax.training.checkpoints_model import save_model
from omni_jax.training.loop import Data, Plan, means, train
from omni_jax.training.loop_profile import Profiler
from omni_jax.training.metrics import Clock, Metrics
from omni_jax.training.metrics_flops import flops_per_position, peak_flops, positions
from omni_jax.training.run_config import RunConfig, SourceConfig, TfdsConfig, check_same, flat, source_name, to_json
from omni_jax.training.run_hosts import HostsData, check_same_data
from omni_jax.training.run_stages import fresh, model_of
from omni_jax.training.signals import StopRequest
from omni_jax.training.step import Trainer

# Other values of these leave the order of the data as it is; who accepts others of `data` accepts another order.
_SAME_ORDER = ("data.epochs", "data.workers", "data.corrupt_share", "data.augment")
CHECKPOINTS, MODEL, CONFIG = "checkpoints", "model", "run.json"


class OpenData(Protocol):
    """Makes the data of a run from its sources, see `run_data.py`. Held-out data is gone through once."""

    def __call__(
        self, sources: tuple[SourceConfig | TfdsConfig, ...], rows: "Rows", *, held_out: bool = False
    ) -> "RunData": ...


class RunData(Data, Protocol):
    """`input_pipeline.loader.Loader`."""

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def seek(self, step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Rows:
    """Rows of a batch: how many over all hosts, which of them are this host's, and how many batches make a step."""

    total: int
    own: slice
    batches: int


@dataclass(frozen=True)
class Summary:
    """reason: "done", "the data ended", or the signal that ended the run; model: the folder, once it is written."""

    step: int
    reason: str
    model: Path | None


@dataclass(frozen=True)
class Hooks:
    """What the command line lends to a run.

    say: tells people what is going on. sample: (parameters, prompts, tokens) -> an answer for each prompt.
    profile: first and last step to trace. ready: called when the first step is about to begin.
    """

    say: Callable[[str], None] = lambda text: None
    sample: Callable[[Mapping[str, Any], tuple[str, ...], int], list[str]] | None = None
    profile: tuple[int, int] | None = None
    ready: Callable[[], None] = lambda: None


def run(
    config: RunConfig,
    open_data: OpenData,
    *,
    resume: bool = True,
    allow_change: Collection[str] = (),
    hooks: Hooks = Hooks(),
) -> Summary:
    """Trains, or goes on with a run that has stopped. All that can be checked is checked before weights are read.

    Raises:
        ConfigError: patterns that match nothing, a changed configuration (the keys are named), missing data.
        ShardingError: the mesh does not fit the devices, the model or the batch.
        CheckpointError: no checkpoint, one of another model, or a disk that does not take the new one.
        NumericsError: too many steps were skipped.
    """
    model = model_of(config.stage, read_config(config.checkpoint))
    mesh = make_mesh(**(config.mesh or {"fsdp": jax.device_count()}))
    names = tuple(source_name(source) for source in config.data.sources)
    task = config.stage.task(config, model, names)
    options = dict(accumulate=config.accumulate, lora=config.lora, guard=config.guard, dtype=jnp.dtype(config.dtype),
                   round_products=config.round_products)  # fmt: skip
    trainer = Trainer(config=model, task=task, optimizer=config.optimizer, mesh=mesh, **options,
                      freeze=config.freeze, rates=config.rates)  # fmt: skip
    rows = Rows(config.data.rows, own_rows(config.data.rows, mesh), config.accumulate)
    trainer.batch_shardings(step_shapes(config, model, config.data.rows))  # says what does not divide
    output = Path(config.output)
    keeping = dict(keep=config.keep, tolerated=config.tolerated_saves, say=hooks.say)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(output / CHECKPOINTS, **keeping))
        about = {"config": to_json(config), "model": sizes(model, task.components)}
        step = checkpoints.latest()
        before = None if step is None else _continued(checkpoints, step, about, resume, allow_change)
        data = HostsData(stack.enter_context(closing(open_data(config.data.sources, rows))))
        check_same_data(data)
        held_out = None
        if config.eval_every:
            held_out = stack.enter_context(closing(open_data(config.held_out, rows, held_out=True)))
            check_same_data(held_out)
        clock = Clock(None if before is None else before["clock"])
        with clock.spent("start"):
            if before is None:
                hooks.say(f"Starting from {config.checkpoint}.")
                state = trainer.start(_first_params(config, model, task.components, mesh), seed=config.seed)
            else:
                hooks.say(f"Going on from step {step} in {output}.")
                state = checkpoints.restore(step, trainer.state_shapes, trainer.state_shardings)
                _place(data, before["loader"], step, allow_change, hooks.say)
        if jax.process_index() == 0:
            (output / CONFIG).write_text(json.dumps(about["config"], indent=1) + "\n", encoding="utf-8")
        hooks.ready()
        metrics = Metrics(output, total=config.optimizer.total_steps, first=step or 0)
        try:
            with StopRequest() as stop, Profiler(output, hooks.profile) as profiler:
                outcome = train(
                    trainer,
                    state,
                    data,
                    _plan(config, trainer),
                    first=step or 0,
                    checkpoints=checkpoints,
                    metrics=metrics,
                    clock=clock,
                    stop=stop,
                    about=about,
                    evaluate=held_out and _evaluator(trainer, held_out, config.held_out_batches),
                    sample=hooks.sample and _sampler(trainer, hooks.sample, config),
                    before_step=profiler,
                )
        finally:
            metrics.close()
    if outcome.reason not in ("done", "the data ended"):
        hooks.say(f"Stopped by {outcome.reason} after step {outcome.step}, which is saved. The same command goes on.")
        return Summary(outcome.step, outcome.reason, None)
    hooks.say(f"Writing the model of step {outcome.step} to {output / MODEL}.")
    save_model(
        output / MODEL,
        trainer.kept(outcome.state),
        model,
        source=config.checkpoint,
        mesh=mesh,
        dtype=config.model_dtype,
        untouched=trainer.untouched,
        changes={path: partial(trainer.with_adapter, outcome.state, path) for path in trainer.adapted},
        about=about["config"],
    )
    return Summary(outcome.step, outcome.reason, output / MODEL)


def sizes(model: OmniConfig, components: tuple[str, ...]) -> dict[str, Any]:
    """All numbers that make the parameters of `components` what they are, by name."""
    values = to_json(model)
    thinker = values.get("thinker_config") or {}
    places = {
        "audio_encoder": thinker.get("audio_config"),
        "vision_encoder": thinker.get("vision_config"),
        "thinker": thinker.get("text_config"),
        "talker": values.get("talker_config"),
        "speech_tokenizer": values.get("speech_tokenizer_config"),
    }
    found = {name: places.get(name) or values.get("token2wav_config") or {} for name in components}
    return {key: value for key, value in flat(found).items() if ".source" not in key}


def _continued(
    checkpoints: Checkpoints, step: int, about: Mapping[str, Any], resume: bool, allow: Collection[str]
) -> dict[str, Any]:
    """What was stored with the checkpoint, if this run may go on from it."""
    if not resume:
        raise ConfigError(
            f"{checkpoints.folder} holds a run up to step {step}, and --no-resume was given. Give another --output, or "
            "remove that folder."
        )
    before = checkpoints.about(step)
    old, new = before.get("model", {}), json.loads(json.dumps(about["model"]))
    other = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if other:
        lines = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in other[:12]]
        raise CheckpointError(
            f"{checkpoints.folder / str(step)} is of another model ({before['config'].get('checkpoint')}) than "
            f"{about['config']['checkpoint']}:\n  " + "\n  ".join(lines) + "\nGive another --output, or the checkpoint "
            "that the run was started from."
        )
    check_same(before["config"], about["config"], allowed=allow)
    return before


def _place(data: RunData, state: Mapping[str, Any], step: int, allow: Collection[str], say: Callable) -> None:
    """Sets the data to the place of a checkpoint; where the user accepts other data, to the same step of that.

    Accepting what leaves the order as it is (`data.epochs`, until the new end) is not accepting another one.
    """
    try:
        data.restore(state)
    except DataError as error:
        if not any(key.split(".")[0] in ("data", "accumulate") and key not in _SAME_ORDER for key in allow):
            raise
        say(f"{error}\nThis was accepted: it goes on with step {step + 1} of the new order.")
        data.seek(step)


def _first_params(config: RunConfig, model: OmniConfig, components: tuple[str, ...], mesh: Mesh) -> dict[str, Any]:
    """The checkpoint's parameters, each host reading its part, and new ones of components that it does not have."""

    def stored(*names: str) -> dict[str, Any]:
        placed = shardings(*logical_axes(model, names), mesh, TRAINING)
        return restore_params(config.checkpoint, model, shardings=placed, components=names)

    there = load_checkpoint_info(config.checkpoint).components
    has = tuple(name for name in components if name in there)
    params = stored(*has) if has else {}
    for name in components:
        if name not in there:
            key = jax.random.key(config.seed)
            params[name] = fresh(config.stage, name, model, lambda other: stored(other)[other], key)
    return params


def _plan(config: RunConfig, trainer: Trainer) -> Plan:
    each = flops_per_position(trainer.shapes, trainer.trained)
    rows = config.data.rows * config.accumulate
    peak = peak_flops(jax.devices()[0])
    return Plan(
        total_steps=config.optimizer.total_steps,
        log_every=config.log_every,
        save_every=config.save_every,
        eval_every=config.eval_every,
        sample_every=config.sample_every,
        patience=config.guard.patience,
        step_flops=rows * sum(each.get(name, 0) * count for name, count in positions(config.data.shape).items()),
        peak_flops=None if peak is None else peak * jax.device_count(),
    )


def _evaluator(trainer: Trainer, data: RunData, batches: int) -> Callable[[Any], dict[str, float]]:
    def evaluate(state: Any) -> dict[str, float]:
        data.seek(0)
        taken = (batch for _, (batch, _) in zip(range(batches), data, strict=False))
        return means(jax.device_get([trainer.evaluate(state, trainer.put(batch)) for batch in taken]))

    return evaluate


def _sampler(trainer: Trainer, sample: Callable, config: RunConfig) -> Callable[[Any], dict[str, str]]:
    def answer(state: Any) -> dict[str, str]:
        answers = sample(trainer.merged(state), config.prompts, config.sample_tokens)
        return {f"sample/{prompt}": text for prompt, text in zip(config.prompts, answers, strict=True)}

    return answer
