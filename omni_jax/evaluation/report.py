"""Rows of figures out of the files of results: value, interval, floor, goal, and whether it is met."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from omni_jax.evaluation.data import TaskData
from omni_jax.evaluation.prompts import prompt_text
from omni_jax.evaluation.statistics import difference, interval
from omni_jax.evaluation.task import SCORER_OF, Measure, Task

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A task that was asked: rows of its results by index, and those of an earlier run that it is compared with."""

    data: TaskData
    rows: Mapping[int, Mapping[str, Any]]
    before: Mapping[int, Mapping[str, Any]] | None = None


def report_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each measure, in order."""
    by_name = {m.name: (outcome, m) for outcome in outcomes for m in outcome.data.task.measures}
    return [_row(outcome, measure, by_name) for outcome, measure in by_name.values()]


def not_measured(task: Task, why: str) -> list[Row]:
    """Rows of a task that was not asked."""
    return [_empty(measure, why) for measure in task.measures]


def passed(rows: Sequence[Row]) -> bool | None:
    """False where a goal is not met, None where one was not measured, else True."""
    verdicts = [row["pass"] for row in rows if row["rule"] is not None]
    return False if False in verdicts else None if None in verdicts else True


def _row(outcome: Outcome, measure: Measure, others: Mapping[str, tuple[Outcome, Measure]]) -> Row:
    task, total = outcome.data.task, measure.metric.total
    stats = _statistics(outcome.rows, measure.name)
    row = _empty(measure, "")
    row |= {
        "prompt": prompt_text(outcome.data.items[0].messages),
        "decoding": decoding(task),
        "ablate": task.ablate,
        "count": len(stats),
    }
    if not stats:
        scorer = SCORER_OF[measure.of]
        missing = f"needs --{scorer.replace('_', '-')}" if scorer else "no line is of this kind"
        missing += ", and true recordings of the voices" if measure.of == "nearest" else ""
        return row | {"why": missing}
    table = np.array(list(stats.values()))
    row |= {"value": total(table.sum(0)), "interval": list(interval(table, total)), "why": None}
    floors = _statistics(outcome.rows, measure.name, "floor")
    if floors:
        row["floor"] = total(np.array(list(floors.values())).sum(0))
    if outcome.before is not None:
        row |= _compared(_statistics(outcome.before, measure.name), stats, measure)
    return row | _judged(outcome, measure, row, stats, others)


def _empty(measure: Measure, why: str) -> Row:
    goal = measure.goal
    fixed = goal is not None and isinstance(goal.value, (int, float))
    return {
        "name": measure.name,
        "value": None,
        "goal": goal.value if fixed else None,
        "floor": measure.floor,
        "baseline": measure.baseline,
        "pass": None,
        "interval": None,
        "count": 0,
        "metric": measure.metric.name,
        "better": "higher" if measure.metric.higher_is_better else "lower",
        "rule": None if goal is None else goal.rule,
        "why": why,
    }


def _judged(
    outcome: Outcome, measure: Measure, row: Row, stats: Mapping[int, list[float]], others: Mapping[str, Any]
) -> Row:
    goal, sign = measure.goal, 1 if measure.metric.higher_is_better else -1
    if goal is None:
        return {}
    if goal.rule == "at least":
        return {"pass": bool(row["value"] >= goal.value)}
    if goal.rule == "at most":
        return {"pass": bool(row["value"] <= goal.value)}
    if goal.rule == "chance":
        chance = constant_share(outcome.data, measure, goal.value, stats)
        return {"goal": chance, "pass": bool(row["interval"][0] <= chance)}
    if goal.rule == "better than before":
        if "difference" not in row:
            return {"why": "needs --compare with an earlier run"}
        low, high = (sign * side for side in row["difference_interval"])
        return {"goal": row["before"], "pass": bool(min(low, high) > 0)}
    if goal.value not in others or not (own := _statistics(others[goal.value][0].rows, goal.value)):
        return {"why": f"needs the figure of {goal.value}"}
    compared = _compared(own, stats, measure)
    if not compared:
        return {"why": f"has no lines in common with {goal.value}"}
    low, high = (sign * side for side in compared["difference_interval"])
    return {"goal": compared["before"], "pass": bool(max(low, high) < 0)} | compared


def _compared(before: Mapping[int, list[float]], after: Mapping[int, list[float]], measure: Measure) -> Row:
    """Figures on the lines that both have."""
    common = sorted(set(before) & set(after))
    if not common:
        return {}
    first, second = (np.array([stats[i] for i in common]) for stats in (before, after))
    value, (low, high) = difference(first, second, measure.metric.total)
    told = {"before": measure.metric.total(first.sum(0)), "difference": value}
    return told | {"difference_interval": [low, high]}


def constant_share(data: TaskData, measure: Measure, key: str | None, stats: Mapping[int, Any]) -> float:
    """How often the best constant answer would be right, one for each value of `key`: what guessing can reach."""
    groups: dict[Any, Counter] = {}
    for item in data.items:
        if item.index in stats:
            groups.setdefault(item.line.get(key) if key else None, Counter())[str(measure.reference(item.line))] += 1
    best = sum(counts.most_common(1)[0][1] for counts in groups.values())
    return best / max(sum(counts.total() for counts in groups.values()), 1)


def decoding(task: Task) -> dict[str, Any]:
    """How answers are drawn."""
    return asdict(task.options) | {"speak": task.speak}


def _statistics(rows: Mapping[int, Mapping[str, Any]], name: str, kind: str = "scores") -> dict[int, list[float]]:
    found = {index: row.get(kind, {}).get(name) for index, row in sorted(rows.items())}
    return {index: stats for index, stats in found.items() if stats is not None}
