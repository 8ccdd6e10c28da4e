"""What the runs of the chain tell: the curves of each, and the time of each step.

Of runs/STEP/metrics.jsonl and run.json (`omni-jax train`), and of steps/STEP.json (`train_all.py`). What has not begun
is left out; what has not ended says so.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from examples.omni_tiny.chain import Given, Step, left_out, steps
from examples.omni_tiny.eyes import EyesStage
from examples.omni_tiny.glances import GlancesStage
from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.phones import PhonesStage
from examples.omni_tiny.train_all import RECORDS
from omni_jax.training.metrics import read_rows
from omni_jax.training.run_config import load_config
from omni_jax.training.run_stages import (
    DpoStage,
    SpeechTokenizerStage,
    TalkerStage,
    ThinkerStage,
    Token2WavStage,
    VocoderStage,
)

LAST = 0.05  # of the rows, whose mean a figure is at the end: single batches differ
_HELD_OUT, _SOURCE = "eval/", "source/"
# What shows best what a stage of training has learnt: keys of metrics.jsonl, and what they are.
FIGURES: Mapping[type, Mapping[str, str]] = {
    SpeechTokenizerStage: {
        "text": "text, nats a letter",
        "mel": "mel, mean error of its logarithm",
        "perplexity": "perplexity of a batch's codes",
    },
    Token2WavStage: {"conditional": "squared error, told the codes", "null": "squared error, told nothing"},
    VocoderStage: {"mel": "mel, mean error of its logarithm", "features": "difference of the judges' features"},
    EyesStage: {"loss": "nats a token", "accuracy": "tokens right"},
    GlancesStage: {
        "wide": "several digits right, by the probe",
        "digit": "single digits right, by the probe",
        "shapes": "shapes right, by the probe",
        "talk": "nats a token, of the Thinker",
    },
    PhonesStage: {"phones": "nats a phone, by the probe", "talk": "nats a token, of the Thinker"},
    ThinkerStage: {"loss": "nats a token", "accuracy": "tokens right"},
    TalkerStage: {"loss": "nats a code", "accuracy": "codes right"},
    DpoStage: {"accuracy": "pairs in the right order", "margin": "margin of rewards", "sft": "nats a code"},
}

_ANY = Given("", "0")  # a model that is trained further
Points = tuple[tuple[int, float], ...]  # (step, value)


@dataclass(frozen=True)
class Curve:
    """A figure over the steps of a run. held_out: of data that is not learnt. sources: of each kind of data."""

    title: str
    points: Points
    held_out: Points = ()
    sources: Mapping[str, Points] = field(default_factory=dict)

    @property
    def first(self) -> float:
        return self.points[0][1]

    @property
    def last(self) -> float:
        many = max(round(LAST * len(self.points)), 1)
        return float(np.mean([value for _, value in self.points[-many:]]))


@dataclass(frozen=True)
class Run:
    """A run of training, of which there are rows.

    about: the first line of its configuration. done, total: steps. ended: its model is there.
    """

    name: str
    about: str
    done: int
    total: int
    ended: bool
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Spent:
    """The time of a step, by the clock and of all processors, in seconds. beside: it is not of the chain."""

    name: str
    seconds: float
    processor_seconds: float
    ended: bool
    beside: bool


@dataclass(frozen=True)
class Told:
    """What `folder` holds of the chain, and of the chain without a person."""

    folder: Path

    @cached_property
    def steps(self) -> list[Step]:
        beside = (step for who in FSDD_SPEAKERS for model in (None, _ANY) for step in left_out(who, model=model))
        found = dict(self._chain)
        for step in beside:
            found.setdefault(step.name, step)
        return list(found.values())

    @cached_property
    def _chain(self) -> dict[str, Step]:
        """From nothing, or from a model that is given: a folder has steps of one of the two, most of the same names."""
        found = {step.name: step for step in steps()}
        return found | {step.name: step for step in steps(model=_ANY) if step.name not in found}

    @property
    def runs(self) -> list[Run]:
        found = (_run(self.folder, step) for step in self.steps if step.config is not None)
        return [run for run in found if run is not None]

    @property
    def times(self) -> list[Spent]:
        found = []
        for step in self.steps:
            record = _json(self.folder / RECORDS / f"{step.name}.json")
            seconds = record.get("seconds", 0.0)
            if seconds:
                ended = (self.folder / step.result).exists() and "made" in record
                found.append(
                    Spent(step.name, seconds, record.get("processor_seconds", 0.0), ended, step.name not in self._chain)
                )
        return found


def _run(folder: Path, step: Step) -> Run | None:
    place = folder / step.place
    rows = read_rows(place)
    if not rows:
        return None
    curves = tuple(_curves(type(load_config(step.config).stage), rows))
    if not curves:
        return None
    about = ast.get_docstring(ast.parse(step.config.read_text(encoding="utf-8"))).partition("\n")[0]
    done = max(row["step"] for row in rows)
    total = _json(place / "run.json").get("optimizer", {}).get("total_steps", done)
    return Run(step.name, about, done, total, (folder / step.result).exists(), curves)


def _curves(stage: type, rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    found = []
    for key, title in FIGURES[stage].items():
        points = _points(rows, key)
        if points:
            sources = _sources(rows) if key == "loss" else {}
            found.append(Curve(title, points, _points(rows, _HELD_OUT + key), sources))
    return found


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return tuple((row["step"], float(row[key])) for row in rows if isinstance(row.get(key), (int, float)))


def _sources(rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Losses by source; those of people as one, and nothing where there is only one source."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(_SOURCE))
    groups: dict[str, list[str]] = {}
    for key in keys:
        kind, _, who = key.removeprefix(_SOURCE).rpartition("_")
        human = who in FSDD_SPEAKERS
        groups.setdefault(
            f"{kind.removesuffix('_without')}, people" if human else key.removeprefix(_SOURCE), []
        ).append(key)
    if len(groups) < 2:
        return {}
    return {name: _mean_points(rows, keys) for name, keys in groups.items()}


def _mean_points(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Points:
    found = []
    for row in rows:
        values = [row[key] for key in keys if isinstance(row.get(key), (int, float))]
        if values:
            found.append((row["step"], float(np.mean(values))))
    return tuple(found)


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing if it is not there or only half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
