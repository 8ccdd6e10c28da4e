"""A run that test_survival.py kills: a toy task through the real loop and checkpoints, or `omni-jax train` itself.

survival_run.py OUTPUT STEPS --signals "KILL KILL TERM" --processes 2
starts the run four times: the first three get a signal at a random moment, the last may end. Each start is a process of
its own (or several), forked before JAX is used, so that it need not be imported again. OUTPUT/ids.jsonl gets a line for
each step that is made, with the examples' ids; OUTPUT/final.npz the parameters after the last.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from omni_jax.sharding.hosts import own_rows
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.checkpoints import Checkpoints
from omni_jax.training.loop import Outcome, Plan, train
from omni_jax.training.metrics import Clock, Metrics
from omni_jax.training.signals import StopRequest

MARK = "OMNI_JAX_SURVIVAL_TEST"
ROWS, WIDTH, EXAMPLES, HEARTBEAT = 8, 4, 1000, 10


@struct.dataclass
class ToyState:
    step: jax.Array
    params: dict
    optimizer_state: tuple
    key: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class ToyTrainer:
    """Two matrices and noise from the state's key; skips steps that are not finite, as the real one does."""

    def __init__(self, mesh, *, width: int = WIDTH):
        self.optimizer, self.width, self.mesh = optax.adamw(0.05), width, mesh
        self.state_shapes = jax.eval_shape(self._start)
        split = NamedSharding(mesh, PartitionSpec("fsdp"))
        whole = NamedSharding(mesh, PartitionSpec())
        self.state_shardings = jax.tree.map(lambda x: split if x.ndim == 2 else whole, self.state_shapes)
        self.rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        self.jitted = jax.jit(self._step, donate_argnums=0, out_shardings=(self.state_shardings, whole))

    def _start(self) -> ToyState:
        draw = np.random.default_rng(1).normal(size=(2, self.width, self.width)).astype(np.float32)
        params = {"in/kernel": jnp.asarray(draw[0]), "out/kernel": jnp.asarray(draw[1])}
        zero = jnp.zeros((), jnp.int32)
        return ToyState(zero, params, self.optimizer.init(params), jnp.arange(2, dtype=jnp.uint32), zero, zero)

    def start(self) -> ToyState:
        return jax.jit(self._start, out_shardings=self.state_shardings)()

    def put(self, batch):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.rows, x), batch)

    def __call__(self, state, batch):
        return self.jitted(state, batch)

    def _step(self, state, batch):
        noise = jax.random.uniform(jax.random.fold_in(state.key, state.step), batch["x"].shape)

        def loss(params):
            hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ params["in/kernel"])
            return jnp.mean((hidden @ params["out/kernel"] - batch["y"]) ** 2)

        value, gradients = jax.value_and_grad(loss)(state.params)
        norm = optax.global_norm(gradients)
        good = jnp.isfinite(norm)
        updates, moments = self.optimizer.update(gradients, state.optimizer_state, state.params)
        new = optax.apply_updates(state.params, updates), moments
        params, moments = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, (state.params, state.optimizer_state))
        in_a_row = jnp.where(good, 0, state.skipped_in_a_row + 1)
        state = ToyState(state.step + 1, params, moments, state.key, state.skipped + ~good, in_a_row)
        values = {
            "loss": value,
            "weight": jnp.float32(ROWS),
            "part/toy": value,
            "weight/toy": jnp.float32(ROWS),
            "gradient_norm": norm,
            "learning_rate": jnp.float32(0.05),
            "skipped": state.skipped,
            "skipped_in_a_row": in_a_row,
        }
        return state, values


@dataclass(frozen=True)
class ToyReport:
    examples: int
    tokens: int
    names: tuple[str, ...]
    skipped: tuple = ()


class ToyData:
    """Batches that follow from their number alone; each epoch sees every example once."""

    def __init__(self, rows: slice = slice(0, ROWS), *, nan_steps=(), steps: int | None = None, on_take=lambda: None):
        self.rows, self.nan_steps, self.steps, self.on_take, self.taken = rows, nan_steps, steps, on_take, 0

    def ids(self, step: int) -> np.ndarray:
        epoch, place = divmod(step * ROWS, EXAMPLES)
        return np.random.default_rng(epoch).permutation(EXAMPLES)[place : place + ROWS]

    def __iter__(self):
        while self.steps is None or self.taken < self.steps:
            step = self.taken
            ids = self.ids(step)
            draws = [np.random.default_rng(int(each)).normal(size=(2, WIDTH)) for each in ids]
            x, y = np.stack(draws, 1).astype(np.float32)
            if step + 1 in self.nan_steps:
                x = x * np.nan
            self.taken += 1
            self.on_take()
            own = ids[self.rows]
            names = tuple(f"toy.jsonl:{each}" for each in own)
            yield {"x": x[self.rows], "y": y[self.rows]}, ToyReport(len(own), 10 * len(own), names)

    def state(self) -> dict:
        return {"step": self.taken}

    def restore(self, state: dict) -> None:
        self.taken = state["step"]


class Recording:
    """A trainer that writes down which examples each step was made with."""

    def __init__(self, trainer, file: Path, data: ToyData, seconds: float):
        self.trainer, self.file, self.data, self.seconds = trainer, file, data, seconds
        self.put = trainer.put

    def __call__(self, state, batch):
        time.sleep(self.seconds)
        result = self.trainer(state, batch)
        if jax.process_index() == 0:
            ids = self.data.ids(self.data.taken - 1).tolist()
            with self.file.open("a") as out:
                out.write(json.dumps([self.data.taken, ids]) + "\n")
        return result


def run(
    output: Path,
    steps: int,
    *,
    seconds: float = 0.0,
    mesh=None,
    nan_steps=(),
    data_steps: int | None = None,
    hooks=None,
    **plan,
) -> Outcome:
    """Starts, or goes on from the newest checkpoint. `hooks` are those of `train`, `plan` fields of `Plan`."""
    output.mkdir(parents=True, exist_ok=True)
    mesh = mesh or make_mesh(fsdp=len(jax.devices()))
    trainer = ToyTrainer(mesh)
    data = ToyData(own_rows(ROWS, mesh), nan_steps=nan_steps, steps=data_steps)
    checkpoints, first, clock = Checkpoints(output / "checkpoints"), 0, Clock()
    if (step := checkpoints.latest()) is None:
        state = trainer.start()
    else:
        about = checkpoints.about(step)
        state = checkpoints.restore(step, trainer.state_shapes, trainer.state_shardings)
        data.restore(about["loader"])
        first, clock = step, Clock(about["clock"])
    metrics = Metrics(output, total=steps, first=first)
    try:
        with StopRequest() as stop:
            outcome = train(
                Recording(trainer, output / "ids.jsonl", data, seconds),
                state,
                data,
                Plan(**{"total_steps": steps, "log_every": 5, "save_every": 3} | plan),
                first=first,
                checkpoints=checkpoints,
                metrics=metrics,
                clock=clock,
                stop=stop,
                about={"config": {"steps": steps}},
                **(hooks or {}),
            )
    finally:
        metrics.close()
        checkpoints.close()
    return outcome


def one_run(output: Path, steps: int, seconds: float) -> None:
    """Trains, and at the end writes the parameters."""
    outcome = run(output, steps, seconds=seconds)
    print(f"ended at step {outcome.step}: {outcome.reason}", flush=True)
    if outcome.reason == "done":
        whole = NamedSharding(make_mesh(fsdp=len(jax.devices())), PartitionSpec())
        params = jax.jit(lambda tree: tree, out_shardings=whole)(outcome.state.params)
        if jax.process_index() == 0:
            np.savez(output / "final.npz", **{name: np.asarray(leaf) for name, leaf in params.items()})


def toy(output: Path, steps: int, seconds: float, processes: int, process: int, port: int) -> None:
    if processes > 1:
        # as `hosts.start`, but a silent neighbour is given up after 10 seconds, not 100
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        where = f"127.0.0.1:{port}"
        jax.distributed.initialize(where, processes, process, heartbeat_timeout_seconds=HEARTBEAT)
    one_run(output, steps, seconds)


def command_line(output: Path, steps: int, seconds: float, processes: int, process: int, port: int) -> None:
    """`omni-jax train` on the configuration that lies beside the output; batches are written down as they are taken."""
    from input_pipeline.loader import Loader
    from omni_jax.cli.main import main as omni

    if processes > 1:
        where = {"COORDINATOR": f"127.0.0.1:{port}", "PROCESSES": processes, "PROCESS": process}
        os.environ |= {f"OMNI_JAX_{name}": str(value) for name, value in where.items()}
        os.environ["OMNI_JAX_HEARTBEAT"] = str(HEARTBEAT)
    os.environ[MARK] = str(output)  # processes that decode have it too
    take = Loader.__next__

    def taken(loader: Loader):
        batch, report = take(loader)
        time.sleep(seconds)
        with (output / ("ids.jsonl" if process == 0 else f"ids-{process}.jsonl")).open("a") as out:
            out.write(json.dumps([loader.state()["step"], list(report.names)]) + "\n")
        return batch, report

    Loader.__next__ = taken
    options = ["--output", str(output), "--optimizer.total-steps", str(steps)]
    if omni(["train", "--config", str(output.parent / "config.py"), *options]):
        raise RuntimeError("omni-jax train has failed")


KINDS = {"toy": toy, "train": command_line}


def in_child(kind: str, log: Path, *args: Any) -> int:
    """A new process, forked from this one (which has imported JAX and not begun to use it); its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        KINDS[kind](*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # not through JAX's exit handlers: they would wait for a process that has died
        os._exit(status)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Attempt:
    """All processes of one start of the run."""

    def __init__(self, output: Path, steps: int, seconds: float, processes: int = 1, kind: str = "toy"):
        output.mkdir(parents=True, exist_ok=True)
        port, self.ids = free_port(), output / "ids.jsonl"
        self.before = lines(self.ids)
        self.children = [
            in_child(kind, output / f"log-{process}", output, steps, seconds, processes, process, port)
            for process in range(processes)
        ]
        self.statuses: dict[int, int] = {}

    def ended(self) -> bool:
        """Whether all have; looks without waiting."""
        for child in self.children:
            if child not in self.statuses:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    self.statuses[child] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) == len(self.children)

    def until(self, condition, seconds: float) -> bool:
        """Waits for `condition()`, the end of all processes, or so long; whether the condition came true."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if condition():
                return True
            if self.ended():
                return condition()
            time.sleep(0.01)
        return False

    def made(self, steps: int) -> bool:
        """Whether so many steps were made."""
        return lines(self.ids) >= self.before + steps

    def signal(self, process: int, number: int) -> None:
        if self.children[process] not in self.statuses:
            os.kill(self.children[process], number)

    def finish(self, seconds: float = 900) -> list[int]:
        """Exit status of each process; those that do not end in time are killed, and -9."""
        if not self.until(self.ended, seconds):
            for process in range(len(self.children)):
                self.signal(process, signal.SIGKILL)
            self.until(self.ended, 10)
        return [self.statuses[child] for child in self.children]


def main() -> None:
    """Prints one JSON object: what became of each attempt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--kind", choices=KINDS, default="toy")
    parser.add_argument("--signals", default="", help="one for each attempt but the last: KILL, TERM, INT")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds-per-step", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import tensorboardX  # noqa: F401  imports PyTorch where there is one: once, before the forks

    if args.kind == "train":
        import omni_jax.cli.train  # noqa: F401

    draw, attempts = random.Random(args.seed), []
    for number, name in enumerate([*args.signals.split(), None]):
        attempt = Attempt(args.output, args.steps, args.seconds_per_step, args.processes, args.kind)
        victim = number % args.processes
        if name is not None:
            wanted = draw.randint(1, 6)
            attempt.until(partial(attempt.made, wanted), 600)
            time.sleep(draw.uniform(0, 2 * args.seconds_per_step))
            attempt.signal(victim, signal.Signals[f"SIG{name}"])
        began = time.monotonic()
        statuses = attempt.finish()
        attempts.append({"signal": name, "victim": victim, "statuses": statuses, "seconds": time.monotonic() - began})
    print(json.dumps(attempts))


if __name__ == "__main__":
    main()
