"""Hand-made lines and answers through a task: the rows of the report, without a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.evaluation.data import read_task
from omni_jax.evaluation.judge import Judge
from omni_jax.evaluation.report import Outcome, report_rows
from omni_jax.evaluation.scorers import Scorers
from omni_jax.evaluation.suites import load_suite
from omni_jax.evaluation.task import Task
from tests.input_pipeline.media_files import tone, write_audio


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def task_of(suite: str, name: str) -> Task:
    return next(task for task in load_suite(suite).tasks if task.name == name)


def media(folder: Path) -> None:
    """Files that are there; only sounds are real: their pitch says who speaks."""
    for name in ("x.png", "x.mp4"):
        (folder / name).write_bytes(b"x")
    write_audio(folder / "x.wav", tone(0.2, 24000), 24000)


def outcome(
    task: Task, folder: Path, lines: list[dict], answers: list[str], *, seen=None, sounds=None, **scorers
) -> Outcome:
    """What judges made of `answers` to `lines`."""
    media(folder)
    write_lines(folder / task.file, lines)
    data = read_task(task, folder)
    judge = Judge(data, Scorers(scorers))
    assert len(data.items) == len(answers)
    rows = {}
    for place, (item, answer) in enumerate(zip(data.items, answers)):
        scores, _ = judge.score(item, answer, seen, None if sounds is None else np.float32(sounds[place]))
        rows[item.index] = {"scores": scores, "floor": judge.floor(item)}
    return Outcome(data, rows)


def rows(task: Task, folder: Path, lines: list[dict], answers: list[str], **options) -> dict[str, dict]:
    return {row["name"]: row for row in report_rows([outcome(task, folder, lines, answers, **options)])}


def values(suite: str, name: str, folder: Path, lines: list[dict], answers: list[str], **options) -> dict[str, Any]:
    """Figures by the name of the row."""
    found = rows(task_of(suite, name), folder, lines, answers, **options)
    return {name: row["value"] for name, row in found.items()}
