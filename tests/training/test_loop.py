"""The loop: what it reports, when it evaluates and saves, and how it ends; on a toy task."""

import json
import math
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from omni_jax.errors import CheckpointError, ConfigError, NumericsError
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.checkpoints import Checkpoints
from omni_jax.training.loop import Plan, means, train
from omni_jax.training.loop_profile import Profiler, parse_steps
from omni_jax.training.metrics import Clock, Metrics, read_rows
from omni_jax.training.metrics_flops import flops_per_position
from omni_jax.training.signals import StopRequest
from tests.training.survival_run import ROWS, ToyData, ToyTrainer, run


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def trainer(mesh):
    return ToyTrainer(mesh)


def params_of(outcome) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in outcome.state.params.items()}


def loop(folder, trainer, state, data, plan) -> list[dict]:
    """The rows of a run of these parts."""
    with Checkpoints(folder / "checkpoints") as checkpoints, StopRequest() as stop:
        metrics = Metrics(folder, total=plan.total_steps)
        parts = dict(first=0, checkpoints=checkpoints, metrics=metrics, clock=Clock(), stop=stop, about={})
        train(trainer, state, data, plan, **parts)
        metrics.close()
    return read_rows(folder)


def same(one, other) -> bool:
    a, b = params_of(one), params_of(other)
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_rows_hold_losses_speeds_and_where_the_time_went(tmp_path, mesh):
    outcome = run(tmp_path, 12, mesh=mesh)
    assert (outcome.step, outcome.reason) == (12, "done")
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [5, 10, 12]  # the last one holds what was left
    assert [row["examples"] for row in rows] == [5 * ROWS, 5 * ROWS, 2 * ROWS]
    for row in rows:
        assert row["loss"] == row["toy"] > 0
        assert row["tokens_per_second"] == pytest.approx(10 * row["examples_per_second"])
        assert 0 < row["goodput"] < 1
        assert (
            row["skipped_steps"] == row["skipped_examples"] == 0 and "utilisation" not in row
        )  # a CPU has no stated peak
        assert row["seconds/compile"] > 0 and row["seconds/save"] > 0
    assert any((tmp_path / "tensorboard").iterdir())


def test_the_host_never_waits_for_the_step_it_has_just_begun(tmp_path, trainer, monkeypatch):
    """When a step is handed over, only those up to the third last have been waited for."""
    waited, begun = [], []
    real = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(len(begun)) or real(x))

    class Counting:
        put = staticmethod(trainer.put)

        def __call__(self, state, batch):
            begun.append(len(waited))
            return trainer(state, batch)

    loop(tmp_path, Counting(), trainer.start(), ToyData(), Plan(total_steps=8, log_every=100, save_every=0))
    assert begun == [0, 0, 0, 1, 2, 3, 4, 5]


def test_a_run_that_goes_on_equals_one_that_was_not_stopped(tmp_path, mesh):
    whole = run(tmp_path / "whole", 11, mesh=mesh)

    def stop_at(step: int) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    first = run(tmp_path / "parts", 11, mesh=mesh, hooks={"before_step": stop_at})
    assert (first.step, first.reason) == (7, "SIGTERM")
    second = run(tmp_path / "parts", 11, mesh=mesh)
    assert (second.step, second.reason) == (11, "done")
    assert same(whole, second)
    made = [json.loads(line) for line in (tmp_path / "parts" / "ids.jsonl").read_text().splitlines()]
    assert made == [json.loads(line) for line in (tmp_path / "whole" / "ids.jsonl").read_text().splitlines()]
    assert [row["step"] for row in read_rows(tmp_path / "parts")] == [5, 7, 10, 11]


def test_a_finished_run_is_left_as_it_is(tmp_path, mesh):
    done = run(tmp_path, 4, mesh=mesh)
    again = run(tmp_path, 4, mesh=mesh)
    assert again.step == 4 and same(done, again)
    assert len((tmp_path / "ids.jsonl").read_text().splitlines()) == 4


def test_the_second_ctrl_c_does_not_wait():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.reached(1) and stop.reason == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                stop.reached(2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_end_of_the_data_ends_the_run_with_a_checkpoint(tmp_path, mesh):
    outcome = run(tmp_path, 100, mesh=mesh, data_steps=4)
    assert (outcome.step, outcome.reason) == (4, "the data ended")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 4


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, mesh):
    outcome = run(tmp_path, 10, mesh=mesh, nan_steps=(3, 4, 8))
    assert int(outcome.state.skipped) == 3
    assert all(np.isfinite(leaf).all() for leaf in params_of(outcome).values())
    first, second = read_rows(tmp_path)
    assert (first["skipped_steps"], second["skipped_steps"]) == (2, 1)
    assert math.isfinite(first["loss"]) and first["loss"] > 0


def test_too_many_in_a_row_end_the_run_naming_steps_and_data(tmp_path, mesh):
    with pytest.raises(NumericsError, match=r"Steps 5 to 7 were skipped[^$]*loss nan[^$]*toy.jsonl:\d+") as error:
        run(tmp_path, 20, mesh=mesh, nan_steps=range(5, 20), patience=3)
    bad = {f"toy.jsonl:{each}" for step in (4, 5, 6) for each in ToyData().ids(step)}
    named = {word.strip(",.") for word in str(error.value).split() if word.startswith("toy.jsonl")}
    assert named <= bad and len(named) == 8
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        latest = checkpoints.latest()
        trainer = ToyTrainer(mesh)
        state = checkpoints.restore(latest, trainer.state_shapes, trainer.state_shardings)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_evaluation_and_samples_come_when_they_are_due(tmp_path, mesh):
    steps = []

    def evaluate(state):
        steps.append(int(state.step))
        return {"loss": 2.0, "source/a": 3.0}

    run(
        tmp_path,
        6,
        mesh=mesh,
        hooks={"evaluate": evaluate, "sample": lambda state: {"sample/Why?": f"Because {int(state.step)}."}},
        eval_every=2,
        sample_every=3,
    )
    assert steps == [2, 4, 6]
    rows = read_rows(tmp_path)
    assert [row["eval/source/a"] for row in rows if "eval/loss" in row] == [3.0] * 3
    assert [row["sample/Why?"] for row in rows if "sample/Why?" in row] == ["Because 3.", "Because 6."]


def test_evaluating_changes_nothing(tmp_path, mesh):
    plain = run(tmp_path / "plain", 5, mesh=mesh)
    watched = run(tmp_path / "watched", 5, mesh=mesh, hooks={"evaluate": lambda state: {"loss": 1.0}}, eval_every=1)
    assert same(plain, watched)


def test_waiting_for_data_is_counted_where_the_devices_have_nothing_to_do(tmp_path, trainer, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("omni_jax.training.loop.time.perf_counter", lambda: now[0])

    class Idle(ToyTrainer):
        """Has always ended when the next batch is asked for."""

        def __init__(self):
            self.put = trainer.put

        def __call__(self, state, batch):
            return jax.block_until_ready(trainer(state, batch))

    def late():
        now[0] += 0.25

    for name, data, waits in (("quick", ToyData(), 0), ("slow", ToyData(on_take=late), 4)):
        rows = loop(tmp_path / name, Idle(), trainer.start(), data, Plan(total_steps=5, log_every=5))
        assert rows[0]["input_waits"] == waits  # for the first batch nobody waits
        assert rows[0]["input_seconds"] == waits * 0.25


def test_time_between_two_starts_is_not_productive(monkeypatch):
    clock = Clock({"started": 0.0, "productive": 50.0})
    monkeypatch.setattr("omni_jax.training.metrics.time.time", lambda: 100.0)
    assert clock.goodput == pytest.approx(0.5, abs=0.01)
    assert clock.record()["started"] == 0.0


def test_means_count_by_weight_and_leave_out_what_nothing_counted():
    rows = [
        {"loss": 1.0, "weight": 3.0, "part/a": 5.0, "weight/a": 1.0, "part/b": 0.0, "weight/b": 0.0},
        {"loss": 2.0, "weight": 1.0, "part/a": 9.0, "weight/a": 3.0, "part/b": 0.0, "weight/b": 0.0},
    ]
    assert means(rows) == {"loss": 1.25, "a": 8.0}


def test_rows_after_the_checkpoint_are_made_again_and_a_torn_line_is_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 5, "loss": 1}\n{"step": 10, "loss": 2}\n{"step": 15, "lo')
    metrics = Metrics(tmp_path, total=20, first=7)
    metrics.write(8, {"loss": float("nan")})
    metrics.close()
    assert read_rows(tmp_path) == [{"step": 5, "loss": 1}, {"step": 8, "loss": None}]


def test_operations_are_counted_by_what_is_trained_and_what_gradients_pass():
    shapes = {
        path: jax.ShapeDtypeStruct((10, 10), np.float32)
        for path in ("audio_encoder/out/kernel", "thinker/layers/kernel", "thinker/embed/embedding", "talker/kernel")
    }
    assert flops_per_position(shapes, {"thinker/layers/kernel"}) == {
        "audio_encoder": 200,  # forward only: nothing before it is trained
        "thinker": 600,
        "talker": 400,  # frozen, but gradients pass on to the Thinker
    }
    assert flops_per_position(shapes, {"talker/kernel"}) == {"audio_encoder": 200, "thinker": 200, "talker": 600}


def test_a_profile_is_taken_of_the_steps_named_and_when_a_file_asks(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    with Profiler(tmp_path, (3, 4)) as profiler:
        for step in range(1, 13):
            if step == 7:
                (tmp_path / "profile.now").touch()
            events.append(step)
            profiler(step)
        os.kill(os.getpid(), signal.SIGUSR1)
        profiler(13)
    assert events == [1, 2, 3, "start", 4, 5, "stop", 6, 7, "start", 8, 9, 10, 11, 12, "stop", "start", "stop"]
    assert not (tmp_path / "profile.now").exists()
    (tmp_path / "profile.now").touch()
    hosts, events = [Profiler(tmp_path), Profiler(tmp_path)], events[:0]
    monkeypatch.setattr(Path, "exists", lambda path: True)  # what both may have seen before one removed it
    for host in hosts:
        host(1)
    assert [host._last for host in hosts] == [5, None]
    assert parse_steps("10:15") == (10, 15)
    with pytest.raises(ConfigError, match="not of the form 10:15"):
        parse_steps("15:10")


def test_a_save_that_keeps_failing_ends_the_run_and_leaves_the_last_good_one(tmp_path, mesh, monkeypatch):
    run(tmp_path, 3, mesh=mesh)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(CheckpointError, match="the disk is full. The checkpoint of step 3 is whole"):
        run(tmp_path, 30, mesh=mesh)
    monkeypatch.undo()
    assert run(tmp_path, 12, mesh=mesh).step == 12
    assert same(run(tmp_path, 12, mesh=mesh), run(tmp_path / "other", 12, mesh=mesh))
