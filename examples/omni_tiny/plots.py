"""Writes what the runs of Omni-tiny tell into docs/omni_tiny.md: tables, and a figure of curves for each stage.

    python -m examples.omni_tiny.plots --data .omni_tiny --docs docs

Between marks only; the text around them stays. Figures of `omni-jax eval --json` are taken from
evaluations/NAME.json in the folder of the data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import arg

from examples.omni_tiny.files import whole
from examples.omni_tiny.program import run_main
from examples.omni_tiny.runs import Curve, Points, Run, Spent, Told
from omni_jax.errors import DataError, OmniError

PAGE, FIGURES, EVALUATIONS = "omni_tiny.md", "omni_tiny", "evaluations"
_MOST_POINTS = 100  # of a curve; more are joined to means, so that figures stay small
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "omni-tiny", "font.size": 8}
_SIGNS = {"at least": "≥", "at most": "≤"}


@dataclass(frozen=True)
class Args:
    """Write tables and figures of the runs into docs/omni_tiny.md.

    example:
      python -m examples.omni_tiny.plots --data .omni_tiny
    """

    data: Annotated[Path, arg(metavar="DIR")] = Path(".omni_tiny")
    """The folder of the chain."""
    docs: Annotated[Path, arg(metavar="DIR")] = Path("docs")
    """The folder with omni_tiny.md, which has the marks."""


def main(args: Args) -> None:
    """Draws, and writes the page anew.

    Raises:
        DataError: the page or a mark in it is missing, or a file of figures is damaged.
        OmniError: matplotlib is not installed.
    """
    told, page = Told(args.data), args.docs / PAGE
    if not page.is_file():
        raise DataError(f"{page} does not exist. Give the folder of the documentation as --docs.")
    runs, times = told.runs, told.times
    evaluations = read_evaluations(args.data / EVALUATIONS)
    text = page.read_text(encoding="utf-8")
    for name, content in {
        "stages": stages(runs, times),
        "curves": curves(runs),
        "times": spent(times),
        "figures": figures(evaluations),
    }.items():
        text = with_block(text, name, content)
    for run in runs:
        with whole(args.docs / FIGURES / f"{run.name}.svg") as partial:
            draw(run, partial)
    with whole(page) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{len(runs)} runs, {len(evaluations)} evaluations, in {page}")


# The page


def with_block(text: str, name: str, content: str) -> str:
    """`text` with what stands between the marks of `name` replaced.

    Raises:
        DataError: no such marks.
    """
    start, end = f"<!-- {name}: examples/omni_tiny/plots.py -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise DataError(f"{PAGE} lacks the marks of {name!r}. Add the two lines {start.strip()} and {end.strip()}.")
    return before + start + (f"\n{content}\n" if content else "") + end + after


def stages(runs: Sequence[Run], times: Sequence[Spent]) -> str:
    """What each stage bought, and what it cost."""
    minutes, rows = {each.name: f"{each.seconds / 60:.0f}" for each in times}, []
    for run in runs:
        done = f"{run.done:,}" if run.ended else f"{run.done:,} of {run.total:,}, not ended"
        told = run.name, done, minutes.get(run.name, "")
        for curve in run.curves:
            held_out = number(curve.held_out[-1][1]) if curve.held_out else ""
            rows.append((*told, curve.title, number(curve.first), number(curve.last), held_out))
            told = "", "", ""
    return table(("stage", "steps", "minutes", "", "at first", "at last", "held out"), rows)


def curves(runs: Sequence[Run]) -> str:
    parts = (f"**{run.name}.** {run.about}\n\n![curves of {run.name}]({FIGURES}/{run.name}.svg)\n" for run in runs)
    return "\n".join(parts)


def spent(times: Sequence[Spent]) -> str:
    """All steps; those of the chain are added up."""
    own = [each for each in times if not each.beside]
    rows = [_time(each) for each in own]
    if own:
        total = (f"{sum(seconds) / 60:.0f}" for seconds in zip(*((e.seconds, e.processor_seconds) for e in own)))
        rows.append(("together", *total))
    return table(("step", "minutes", "of processors"), rows + [_time(each) for each in times if each.beside])


def _time(each: Spent) -> tuple[str, str, str]:
    name = each.name if each.ended else f"{each.name}, not ended"
    return name, f"{each.seconds / 60:.1f}", f"{each.processor_seconds / 60:.1f}"


def figures(evaluations: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Tables of evaluations, each below its name; of what was not measured, rows with a goal say so, and why."""
    parts = []
    for name, found in evaluations:
        rows = [_figure(row) for row in found["rows"] if row["value"] is not None or row["rule"] is not None]
        if rows:
            about = f"**{name}**: suite {found['suite']}, checkpoint {found['checkpoint']['sha256'][:16]}\n\n"
            columns = ("", "value", "95 % interval", "goal", "floor", "baseline", "lines", "met")
            parts.append(about + table(columns, rows))
    return "\n".join(parts)


def _figure(row: dict[str, Any]) -> tuple[str, ...]:
    interval = " – ".join(map(number, row["interval"])) if row["interval"] else ""
    goal = "" if row["rule"] is None else f"{_SIGNS.get(row['rule'], row['rule'])} {number(row['goal'])}".strip()
    if row.get("difference") is not None:
        sides = " – ".join(map(number, row["difference_interval"]))
        goal += f"; difference {number(row['difference'])} ({sides})"
    met = {True: "yes", False: "no", None: row.get("why") or ""}[row["pass"]]
    value = "not measured" if row["value"] is None else number(row["value"])
    beside = number(row["floor"]), number(row.get("baseline")), f"{row['count']:,}"
    return row["name"], value, interval, goal, *beside, met


def read_evaluations(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """What `omni-jax eval --json` said last, by the name of the file.

    Raises:
        DataError: a file holds something else.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8").strip().rpartition("\n")[2])
            content["rows"], content["suite"], content["checkpoint"]["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} does not end with a line of omni-jax eval --json. Remove it.") from error
        found.append((path.stem, content))
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; of no rows nothing."""
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: Any) -> str:
    """Three digits that count."""
    if not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# The figures


def draw(run: Run, path: Path) -> None:
    """An SVG of a run: its figures beside each other. The same rows give the same bytes.

    Raises:
        OmniError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OmniError(f"matplotlib is not installed ({error}). Run: pip install 'omni-jax[omni-tiny]'") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.2 * max(len(run.curves), 2), 2.5), layout="constrained")
        for panel, curve in zip(figure.subplots(1, len(run.curves), squeeze=False)[0], run.curves, strict=True):
            _panel(panel, curve)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _panel(panel: Any, curve: Curve) -> None:
    for name, points in curve.sources.items():
        panel.plot(*_thinned(points), linewidth=0.8, label=name)
    panel.plot(*_thinned(curve.points), color="black", linewidth=1.2, label="all" if curve.sources else "training")
    if curve.held_out:
        panel.plot(*zip(*curve.held_out), "o--", color="tab:red", markersize=3, linewidth=0.8, label="held out")
    values = [value for _, value in curve.points]
    if min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
    panel.set_title(curve.title, fontsize=8)
    panel.set_xlabel("step")
    panel.grid(linewidth=0.3)
    if curve.sources or curve.held_out:
        panel.legend(fontsize=6)


def _thinned(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; of many points means of neighbours."""
    found = np.array(points, np.float64)
    parts = np.array_split(found, min(len(found), _MOST_POINTS))
    return tuple(np.array([part.mean(axis=0) for part in parts]).T)


if __name__ == "__main__":
    run_main(main, Args)
