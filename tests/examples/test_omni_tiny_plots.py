"""The page of Omni-tiny: its numbers are those of the runs, and what was not measured is not there."""

import json

import numpy as np
import pytest

from examples.omni_tiny import chain, plots, train_all
from examples.omni_tiny.runs import FIGURES, Told
from omni_jax.errors import DataError
from omni_jax.training.run_config import load_config

PAGE = train_all.ROOT / "docs" / plots.PAGE
SOURCES = ("text", "read_aloud", "image_text", "audio_text", "audio_text_jackson", "audio_text_theo", "video_audio")


def write_run(folder, name, rows, *, total=100, ended=True):
    place = folder / "runs" / name
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "run.json").write_text(json.dumps({"optimizer": {"total_steps": total}}))
    if ended:
        (place / "model").mkdir()


def write_time(folder, name, seconds, **more):
    (folder / "steps").mkdir(exist_ok=True)
    (folder / "steps" / f"{name}.json").write_text(json.dumps({"seconds": seconds, "processor_seconds": 90.0, **more}))


@pytest.fixture
def folder(tmp_path):
    """A chain that was stopped in pretrain2, and has no vocoder yet."""
    rows = [{"step": s, "text": 5 / s, "mel": 1.0, "loss": 9.0} for s in range(10, 101, 10)]
    write_run(tmp_path, "speech_tokenizer", [*rows, {"step": 50, "eval/text": 0.7}, {"step": 100, "eval/text": 0.625}])
    rng = np.random.default_rng(0)
    rows = [
        {"step": s, "loss": 2 + rng.random(), "accuracy": rng.random()}
        | {f"source/{name}": 1 + 10 * rng.random() for name in SOURCES}
        for s in range(10, 2101, 10)
    ]
    write_run(tmp_path, "pretrain2", rows, total=4000, ended=False)
    with (tmp_path / "runs" / "pretrain2" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2110, "lo')  # is being written
    (tmp_path / "runs" / "sft").mkdir()  # has just begun
    write_time(tmp_path, "speech_tokenizer", 600.0, made=1.0)
    write_time(tmp_path, "pretrain2", 60.0)
    (tmp_path / "steps" / "sft.json").write_text("{")
    return tmp_path


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_a_table_has_what_the_rows_say(folder):
    told = Told(folder)
    assert [run.name for run in told.runs] == ["speech_tokenizer", "pretrain2"]
    found = cells(plots.stages(told.runs, told.times))
    assert found[0] == ["speech_tokenizer", "100", "10", "text, nats a letter", "0.5", "0.05", "0.625"]
    assert found[1][:3] == ["", "", ""] and found[1][4:] == ["1", "1", ""]
    assert found[2][1] == "2,100 of 4,000, not ended" and len(found) == 4


def test_what_a_figure_is_at_last_is_a_mean(folder):
    curve = Told(folder).runs[1].curves[0]
    assert curve.last == pytest.approx(np.mean([value for _, value in curve.points[-10:]]))
    assert len(curve.points) == 210


def test_people_are_one_source(folder):
    sources = Told(folder).runs[1].curves[0].sources
    assert set(sources) == {"text", "read_aloud", "image_text", "audio_text", "audio_text, people", "video_audio"}
    rows = [json.loads(line) for line in (folder / "runs/pretrain2/metrics.jsonl").read_text().splitlines()[:1]]
    wanted = np.mean([rows[0][f"source/audio_text_{who}"] for who in ("jackson", "theo")])
    assert sources["audio_text, people"][0] == (10, pytest.approx(wanted))


def test_times_are_those_of_the_steps(folder):
    write_time(folder, "sft_without_theo", 3600.0)
    write_time(folder, "recoded", 120.0)  # of a model that is trained further
    assert cells(plots.spent(Told(folder).times)) == [
        ["speech_tokenizer", "10.0", "1.5"],
        ["pretrain2, not ended", "1.0", "1.5"],
        ["recoded, not ended", "2.0", "1.5"],
        ["together", "13", "4"],
        ["sft_without_theo, not ended", "60.0", "1.5"],
    ]


def test_nothing_is_told_of_nothing(tmp_path):
    told = Told(tmp_path)
    assert plots.stages(told.runs, told.times) == plots.curves(told.runs) == plots.spent(told.times) == ""
    assert plots.figures(plots.read_evaluations(tmp_path / "evaluations")) == ""


def row(name, value, **more):
    return {
        "name": name, "value": value, "interval": None if value is None else [0.01, 0.1],
        "goal": 0.08, "rule": "at most", "floor": 0.012, "count": 1240, "pass": True, "why": None, **more,
    }  # fmt: skip


def write_evaluation(folder, *rows):
    (folder / "evaluations").mkdir()
    found = {"suite": "tiny", "checkpoint": {"sha256": "ab" * 32}, "rows": rows}
    (folder / "evaluations" / "tiny.json").write_text("a note\n" + json.dumps(found) + "\n")


def test_figures_stand_beside_their_floors_and_no_goal_vanishes(tmp_path):
    worse = {"rule": "worse than", "goal": 0.9, "difference": -0.3, "difference_interval": [-0.4, -0.2], "pass": False}
    deaf = {"pass": None, "floor": None, "count": 0, "why": "needs --mos-scorer"}
    alone = {"rule": "better than before", "goal": None, "pass": None, "why": "needs --compare with an earlier run"}
    rows = (
        row("hears", 0.05213, baseline=0.944),
        row("mos", None, **deaf),
        row("told beside it", None, **deaf | {"rule": None, "goal": None}),
        row("shuffled", 0.6, **worse),
        row("hard", 0.6, **alone),
    )
    write_evaluation(tmp_path, *rows)
    text = plots.figures(plots.read_evaluations(tmp_path / "evaluations"))
    assert text.startswith("**tiny**: suite tiny, checkpoint abababababababab\n")
    assert cells(text.partition("\n\n")[2]) == [
        ["hears", "0.0521", "0.01 – 0.1", "≤ 0.08", "0.012", "0.944", "1,240", "yes"],
        ["mos", "not measured", "", "≤ 0.08", "", "", "0", "needs --mos-scorer"],
        ["shuffled", "0.6", "0.01 – 0.1", "worse than 0.9; difference -0.3 (-0.4 – -0.2)", "0.012", "", "1,240", "no"],
        ["hard", "0.6", "0.01 – 0.1", "better than before", "0.012", "", "1,240", alone["why"]],
    ]


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="a.json does not end with a line of omni-jax eval --json"):
        plots.read_evaluations(tmp_path)


def test_the_page_has_all_marks_and_keeps_its_text():
    text = PAGE.read_text()
    for name in ("stages", "curves", "times", "figures"):
        once = plots.with_block(text, name, "| new |\n")
        assert "| new |" in once and plots.with_block(once, name, "| newer |\n").count("| new") == 1
        assert plots.with_block(once, name, "").split() == plots.with_block(text, name, "").split()
    with pytest.raises(DataError, match=r"lacks the marks of 'stages'. Add the two lines <!-- stages"):
        plots.with_block("# Title\n", "stages", "")


def test_every_stage_has_figures_and_every_figure_a_stage():
    stages = {type(load_config(step.config).stage) for step in chain.steps() if step.config is not None}
    assert set(FIGURES) == stages and all(FIGURES.values())


def test_a_stage_shows_its_own_figures(tmp_path):
    rows = [{"step": step, "loss": 1.0, "accuracy": 0.5, "margin": 0.1, "mel": 2.0, "null": 3.0} for step in (1, 2)]
    for name in ("language", "talker_first", "talker_dpo", "vocoder", "token2wav"):
        write_run(tmp_path, name, rows)
    assert {run.name: [curve.title for curve in run.curves] for run in Told(tmp_path).runs} == {
        "language": ["nats a token", "tokens right"],
        "talker_first": ["nats a code", "codes right"],
        "talker_dpo": ["pairs in the right order", "margin of rewards"],
        "vocoder": ["mel, mean error of its logarithm"],
        "token2wav": ["squared error, told nothing"],
    }


def test_drawings_are_small_and_always_the_same(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is of the extra omni_tiny")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / plots.PAGE).write_text(PAGE.read_text())
    plots.main(plots.Args(folder, docs))
    drawn = {path.name: path.read_bytes() for path in (docs / plots.FIGURES).iterdir()}
    assert set(drawn) == {"speech_tokenizer.svg", "pretrain2.svg"}
    assert all(b"</svg>" in content and len(content) < 60_000 for content in drawn.values())
    assert "held out" in drawn["speech_tokenizer.svg"].decode() and "people" in drawn["pretrain2.svg"].decode()
    page = (docs / plots.PAGE).read_text()
    assert "![curves of pretrain2](omni_tiny/pretrain2.svg)" in page and "](omni_tiny/vocoder.svg" not in page
    plots.main(plots.Args(folder, docs))
    assert {path.name: path.read_bytes() for path in (docs / plots.FIGURES).iterdir()} == drawn
    assert (docs / plots.PAGE).read_text() == page
