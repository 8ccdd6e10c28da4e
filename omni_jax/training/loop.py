"""The training loop: take a batch, step, report, save; the host prepares the next step while devices run this one."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from omni_jax.errors import NumericsError
from omni_jax.training.checkpoints import Checkpoints
from omni_jax.training.metrics import Clock, Metrics
from omni_jax.training.signals import StopRequest

# Steps that the devices are given ahead of the one whose result the host waits for: they never wait for the host, and
# no more than this many batches lie on them.
IN_FLIGHT = 2
# A batch that comes later than this, when the devices have nothing left to do, has made them wait.
_LATE = 1e-3
_NAMED = 8  # examples that a message lists


class Steps(Protocol):
    """`omni_jax.training.step.Trainer`."""

    def put(self, batch: Any) -> Any: ...

    def __call__(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]: ...


class Report(Protocol):
    """What a batch is made of, on this host: `input_pipeline.loader.Report`."""

    examples: int
    tokens: int  # without padding
    names: tuple[str, ...]
    skipped: tuple[Any, ...]  # examples that could not be used


class Data(Protocol):
    """`input_pipeline.loader.Loader`: batches in an order that its state alone decides."""

    def __iter__(self) -> Any: ...

    def state(self) -> dict[str, Any]:
        """The place after the last batch that was taken."""
        ...


@dataclass(frozen=True)
class Plan:
    """When to do what, in steps; 0 for never.

    patience: after so many skipped steps in a row, for NaN or a spike, the run ends.
    step_flops: operations of the model in one step on all devices; peak_flops: what they could do in a second.
    """

    total_steps: int
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0
    sample_every: int = 0
    patience: int = 10
    step_flops: float | None = None
    peak_flops: float | None = None


@dataclass
class Outcome:
    """reason: "done", "the data ended", or the signal that asked to stop."""

    state: Any
    step: int
    reason: str


@dataclass
class _Step:
    """One that the devices were given. Its values are on their way."""

    number: int
    values: dict[str, jax.Array]
    report: Report


@dataclass
class _Since:
    """What is counted between two rows of metrics."""

    steps: list[_Step] = field(default_factory=list)
    stepping: float = 0.0  # the clock's, at the last row
    input_waits: int = 0
    input_seconds: float = 0.0


def train(
    trainer: Steps,
    state: Any,
    data: Data,
    plan: Plan,
    *,
    first: int,
    checkpoints: Checkpoints,
    metrics: Metrics,
    clock: Clock,
    stop: StopRequest,
    about: Mapping[str, Any],
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    sample: Callable[[Any], Mapping[str, str]] | None = None,
    before_step: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Trains from step `first` to `plan.total_steps`, to the end of the data, or until it is asked to stop.

    The last state is saved in every case but an error.

    Args:
        state: after step `first`; donated. data: placed at its batch.
        about: stored with each checkpoint, beside the place in the data.
        evaluate: state -> losses on held-out data. sample: state -> what the model says, by prompt.
        before_step: called with the number of the step to come; the profiler.

    Raises:
        NumericsError: too many steps in a row were skipped; no state of them is saved. It names them and their data.
        CheckpointError: too many saves have failed.
    """
    batches, flight, since, step = iter(data), deque[_Step](), _Since(stepping=clock.stepping), first
    skipped: deque[_Step] = deque(maxlen=plan.patience)  # the last ones, in a row
    reason = "done" if plan.total_steps <= first else ""
    if jax.process_count() == 1:  # several stop together, at a step that all of them reach
        reason = reason or stop.reason

    def land(left: int) -> None:
        """Waits until no more than `left` steps are under way, and reports those that have ended."""
        while len(flight) > left:
            ended = flight.popleft()
            jax.block_until_ready(ended.values["loss"])
            since.steps.append(ended)
            clock.steps += 1
            clock.skipped += bool(ended.values["skipped_in_a_row"])
            if bool(ended.values["skipped_in_a_row"]):
                skipped.append(ended)
            else:
                skipped.clear()
            _check(skipped, plan)
            if plan.log_every and ended.number % plan.log_every == 0:
                metrics.write(ended.number, _row(since, plan, clock, checkpoints))

    def save() -> None:
        with clock.spent("save"):
            checkpoints.save(step, state, {**about, "loader": data.state(), "clock": clock.record()})

    while not reason:
        with clock.spent("input"):
            asked = time.perf_counter()
            batch, report = next(batches, (None, None))
            waited = time.perf_counter() - asked
        if batch is None:
            reason = "the data ended"
            break
        idle = bool(flight) and flight[-1].values["loss"].is_ready()
        if idle and waited > _LATE:
            since.input_waits, since.input_seconds = since.input_waits + 1, since.input_seconds + waited
        elif flight:
            clock.seconds["input"] -= waited  # the devices were at work meanwhile
        before_step(step + 1)
        with clock.spent("compile") if step == first else nullcontext():
            state, values = trainer(state, trainer.put(batch))
        step += 1
        flight.append(_Step(step, values, report))
        metrics.advance()
        land(IN_FLIGHT)

        if stop.reached(step):
            reason = stop.reason
        elif step >= plan.total_steps:
            reason = "done"
        for every, activity in ((plan.eval_every, evaluate), (plan.sample_every, sample)):
            if activity is not None and every and step % every == 0 and reason in ("", "done"):
                land(0)
                with clock.spent("evaluate"):
                    found = activity(state)
                if activity is evaluate:
                    metrics.write(step, {f"eval/{name}": value for name, value in found.items()})
                else:
                    for name, text in found.items():
                        metrics.text(step, name, text)
        if plan.save_every and step % plan.save_every == 0 and not reason:
            land(0)
            save()
    land(0)
    if since.steps:
        metrics.write(step, _row(since, plan, clock, checkpoints))
    if step > first or checkpoints.latest() is None:
        save()
        checkpoints.confirm(step)
    return Outcome(state, step, reason)


def _check(skipped: Sequence[_Step], plan: Plan) -> None:
    if not skipped:
        return
    ended = skipped[-1]
    in_a_row = int(ended.values["skipped_in_a_row"])
    if in_a_row < plan.patience:
        return
    names = list(dict.fromkeys(name for step in skipped for name in step.report.names))
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    loss, norm = float(ended.values["loss"]), float(ended.values["gradient_norm"])
    raise NumericsError(
        f"Steps {ended.number - in_a_row + 1} to {ended.number} were skipped, each for a loss or gradient that is not "
        f"finite or far out of range (the last: loss {loss:g}, gradient norm {norm:g}). Nothing of them was kept.\n"
        f"Their data: {shown or 'not named'}.\n"
        "Look at these examples, or lower the learning rate; then continue from the last checkpoint."
    )


def means(values: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Loss and parts over several batches: each mean counts by its weight, and those that nothing counted are absent.

    Args:
        values: of each batch "loss", "weight", and "part/NAME", "weight/NAME".
    """
    out: dict[str, float] = {}
    names = {"loss": "weight"} | {
        name: name.replace("part/", "weight/", 1) for each in values for name in each if name.startswith("part/")
    }
    for name, weight in names.items():
        weights = np.array([each.get(weight, 0) for each in values], np.float64)
        if np.sum(weights) > 0:
            found = np.array([each.get(name, 0) for each in values], np.float64)
            out[name.removeprefix("part/")] = float(np.sum(found * weights) / np.sum(weights))
    return out


def _row(since: _Since, plan: Plan, clock: Clock, checkpoints: Checkpoints) -> dict[str, Any]:
    """Means over the steps since the last row, and speeds; empties `since`."""
    ended, seconds = since.steps, clock.stepping - since.stepping
    values = jax.device_get([step.values for step in ended])
    kept = [each for each in values if not each["skipped_in_a_row"]]
    row = means(kept)
    hosts, seconds = jax.process_count(), max(seconds, 1e-9)
    if kept:
        row["gradient_norm"] = float(np.mean([each["gradient_norm"] for each in kept]))
        row["learning_rate"] = float(kept[-1]["learning_rate"])
    row |= {
        "skipped_steps": len(values) - len(kept),
        "examples": hosts * sum(step.report.examples for step in ended),
        "skipped_examples": sum(len(step.report.skipped) for step in ended),
        "seconds_per_step": seconds / len(ended),
        "tokens_per_second": hosts * sum(step.report.tokens for step in ended) / seconds,
        "examples_per_second": hosts * sum(step.report.examples for step in ended) / seconds,
        "goodput": clock.goodput,
        "input_waits": since.input_waits,
        "input_seconds": since.input_seconds,
        "failed_saves": checkpoints.failures,
    }
    if plan.step_flops and plan.peak_flops:
        row["utilisation"] = plan.step_flops * len(ended) / seconds / plan.peak_flops
    row |= {f"seconds/{activity}": spent for activity, spent in clock.seconds.items()}
    since.steps, since.stepping, since.input_waits, since.input_seconds = [], clock.stepping, 0, 0.0
    return row
