"""`omni-jax train` itself, with processes that decode for it, killed and started again."""

from pathlib import Path

import pytest

from tests.training.stages import asked, lay_out, line, parameters, write_lines
from tests.training.survival_run import MARK
from tests.training.test_survival import launch, made, same_steps_on_the_same_examples

STEPS = 12
CONFIG = """
from pathlib import Path
from tests.training.stages import shrunk
from input_pipeline.training_batch import RowShape
from dataclasses import replace
from omni_jax.training.run_config import SourceConfig

here = Path(__file__).parent
shape = RowShape(tokens=64, patches=16)
config = shrunk("sft", steps=12, learning_rate=1e-3, rows=2, shape=shape, workers=1, save_every=2)
data = replace(config.data, sources=(SourceConfig(str(here / "data" / "talk.jsonl")),))
config = replace(config, data=data, checkpoint=str(here / "checkpoints" / "assembled"), freeze=())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint) -> Path:
    """A configuration, and more samples than the run takes, each with a picture."""
    folder = tmp_path_factory.mktemp("survival") / "here"
    lay_out(folder, tiny_checkpoint[1])
    (folder / "config.py").write_text(CONFIG)
    lines = [line(asked(("cat.png", "house.png")[i % 2], f"What is {i}?"), f"It is {i * i}.") for i in range(80)]
    write_lines(folder / "data" / "talk.jsonl", lines)
    return folder


def still_running(output: Path) -> list[str]:
    """Processes that were started for a run, by the variable that it sets."""
    mark, found = f"{MARK}={output}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:  # gone, or another's
            continue
    return found


def run(folder: Path, name: str, signals: str = "", processes: int = 1) -> list[dict]:
    (folder / name).mkdir()
    return launch(folder / name, signals, processes, steps=STEPS, kind="train")


@pytest.fixture(scope="module")
def whole(folder) -> dict[int, Path]:
    """Runs that nothing disturbed, in one process and in two."""
    for processes in (1, 2):
        run(folder, f"whole-{processes}", processes=processes)
    return {processes: folder / f"whole-{processes}" for processes in (1, 2)}


def test_kills_at_random_moments_change_no_bit_and_no_sample(folder, whole):
    attempts = run(folder, "killed", "KILL KILL TERM KILL")
    assert [attempt["statuses"] for attempt in attempts] == [[-9], [-9], [0], [-9], [0]]
    assert parameters(folder / "killed" / "model") == parameters(whole[1] / "model")
    same_steps_on_the_same_examples(folder / "killed", whole[1], STEPS)
    assert not still_running(folder / "killed")  # what decodes has ended with those that were killed


def test_when_one_of_two_processes_is_killed_both_go_on_later(folder, whole):
    attempts = run(folder, "pair", "KILL", processes=2)
    assert attempts[0]["statuses"][0] == -9 and attempts[0]["statuses"][1] not in (0, -9)
    assert parameters(folder / "pair" / "model") == parameters(whole[2] / "model")
    for ids in ("ids.jsonl", "ids-1.jsonl"):  # of each host
        assert dict(made(folder / "pair", ids)) == dict(made(whole[2], ids))
    first, second = (dict(made(whole[2], ids)) for ids in ("ids.jsonl", "ids-1.jsonl"))
    both = [name for step in range(1, STEPS + 1) for name in (*first[step], *second[step])]
    assert both == [name for _, names in sorted(dict(made(whole[1])).items()) for name in names]
