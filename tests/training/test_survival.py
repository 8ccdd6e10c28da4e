"""Real processes that are killed, stopped and started again: nothing is lost, nothing is seen twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.checkpoints import Checkpoints
from tests.training import survival_run
from tests.training.survival_run import ToyData, ToyTrainer

STEPS = 40
SCRIPT = Path(survival_run.__file__)


def launch(output: Path, signals: str = "", processes: int = 1, *, steps: int = STEPS, **options: str) -> list[dict]:
    """What became of each start; the last may end, the others get a signal. Options are those of the script."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    if "kind" in options:  # of a real model: compiled once, not at each start
        environment["JAX_COMPILATION_CACHE_DIR"] = str(output.parent / "xla")
    command = [sys.executable, str(SCRIPT), str(output), str(steps), "--signals", signals]
    command += ["--processes", str(processes), "--seconds-per-step", "0.05"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    attempts = json.loads(done.stdout.splitlines()[-1])
    assert attempts[-1]["statuses"] == [0] * processes, (output / "log-0").read_text()[-3000:]
    return attempts


def parameters(output: Path) -> dict[str, bytes]:
    with np.load(output / "final.npz") as content:
        return {name: content[name].tobytes() for name in content.files}


def made(output: Path, ids: str = "ids.jsonl") -> list[tuple[int, list[int]]]:
    return [tuple(json.loads(line)) for line in (output / ids).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[int, Path]:
    """Runs that nothing disturbed, in one process and in two."""
    folders = {processes: tmp_path_factory.mktemp(f"whole-{processes}") for processes in (1, 2)}
    for processes, folder in folders.items():
        launch(folder, processes=processes)
    return folders


def same_steps_on_the_same_examples(output: Path, undisturbed: Path, steps: int = STEPS) -> None:
    """Whenever a step was made, it was with its own examples; each example has its place in one step only."""
    wanted = dict(made(undisturbed))
    assert list(wanted) == list(range(1, steps + 1))
    assert all(wanted[step] == ids for step, ids in made(output))
    # what counts of the killed runs: for each step the last time that it was made
    assert dict(made(output)) == wanted
    seen = [each for ids in dict(made(output)).values() for each in ids]
    assert len(seen) == len(set(seen)) == sum(map(len, wanted.values()))


def test_ten_kills_at_random_moments_change_nothing(tmp_path, whole):
    attempts = launch(tmp_path, " ".join(["KILL"] * 10))
    assert [attempt["statuses"] for attempt in attempts] == [[-9]] * 10 + [[0]]
    assert parameters(tmp_path) == parameters(whole[1])
    same_steps_on_the_same_examples(tmp_path, whole[1])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in rows}) == [row["step"] for row in rows]  # each stands there once, in order


def test_preemption_and_ctrl_c_save_and_end_well(tmp_path, whole):
    attempts = launch(tmp_path, "TERM INT")
    assert [attempt["statuses"] for attempt in attempts] == [[0]] * 3
    ends = [line for line in (tmp_path / "log-0").read_text().splitlines() if line.startswith("ended at step")]
    assert [line.split(": ")[1] for line in ends] == ["SIGTERM", "SIGINT", "done"]
    # nothing was made twice: each went on exactly where the one before had stopped
    assert [step for step, _ in made(tmp_path)] == list(range(1, STEPS + 1))
    assert parameters(tmp_path) == parameters(whole[1])


def test_when_one_of_two_processes_is_killed_the_other_ends_and_both_go_on_later(tmp_path, whole):
    attempts = launch(tmp_path, "KILL KILL TERM", processes=2)
    for attempt in attempts[:2]:
        assert attempt["statuses"][attempt["victim"]] == -9
        assert attempt["statuses"][1 - attempt["victim"]] not in (0, -9)  # by itself, with an error
        assert attempt["seconds"] < 60
    assert attempts[2]["statuses"] == [0, 0]  # both have saved the same step, though one was told
    assert parameters(tmp_path) == parameters(whole[2])
    same_steps_on_the_same_examples(tmp_path, whole[2])


def test_one_process_goes_on_from_the_checkpoint_of_two(whole):
    trainer = ToyTrainer(make_mesh(jax.devices()[:1]))
    with Checkpoints(whole[2] / "checkpoints") as checkpoints:
        assert checkpoints.latest() == STEPS
        state = checkpoints.restore(STEPS, trainer.state_shapes, trainer.state_shardings)
        data = ToyData()
        data.restore(checkpoints.about(STEPS)["loader"])
    assert {name: np.asarray(leaf).tobytes() for name, leaf in state.params.items()} == parameters(whole[2])
    assert data.taken == STEPS


def test_two_processes_learn_what_one_does(whole):
    with np.load(whole[1] / "final.npz") as one, np.load(whole[2] / "final.npz") as two:
        for name in one.files:
            np.testing.assert_allclose(one[name], two[name], atol=1e-5)
