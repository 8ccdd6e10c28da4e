"""`omni-jax eval`: a random tiny checkpoint is asked, scored, stopped and gone on with."""

import json
from types import SimpleNamespace

import pytest

from input_pipeline.media import load_audio
from omni_jax.cli.conversation import Answerer
from omni_jax.cli.main import main
from omni_jax.evaluation import answers, judge
from tests.evaluation.scored import write_lines
from tests.input_pipeline.media_files import numbered_frame, picture, tone, write_audio, write_film, write_image

SUITE = """
from omni_jax.evaluation import metrics
from omni_jax.evaluation.metrics_text import digits_error_rate
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.task import Goal, Measure, Task, at_least, at_most
from omni_jax.sampling.options import SamplingOptions

SHORT = SamplingOptions(max_new_tokens=4)


def looks(name, **options):
    length = metrics.mean("length", lambda text, line: len(text))
    return Task(
        name,
        "looks.jsonl",
        ask("What?"),
        (Measure(name, length, goal=options.pop("goal", at_least(1))), Measure(f"{name}_size", metrics.accuracy(),
            extract=lambda text, line: str(line.get("seen")))),
        options=SHORT,
        **options,
    )


def says(name, speak, *measures, **options):
    return Task(name, "says.jsonl", ask("{reference}"), measures, options=SHORT, speak=speak, **options)


TASKS = (
    looks("looks"),
    looks("looks_blind", ablate="no_vision", goal=Goal("worse than", "looks")),
    says("talks", "answer", Measure("talks_wer", digits_error_rate(), of="heard", goal=at_most(0.5))),
    says(
        "reads",
        "reference",
        Measure("reads_wer", digits_error_rate(), of="heard"),
        Measure("reads_mos", metrics.mean_opinion(), of="mos"),
        clone="like",
    ),
)
"""
EARS = """
def hear(waveform, rate):
    assert rate == 24000 and waveform.dtype == "float32"
    return "one two"


def broken(waveform, rate):
    raise RuntimeError("no weights")
"""
SPEECH = ["--solver", "euler", "--steps", 2, "--max-codes", 30, "--recognizer", "suite_ears:hear"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_image(folder / "a.png", picture(56, 84))
    write_audio(folder / "b.wav", tone(0.5, 16000), 16000)
    write_audio(folder / "c.wav", tone(2.0, 16000), 16000)
    film = [numbered_frame(number) for number in range(10)]
    write_film(folder / "d.mp4", film, sound=tone(1.0, 48000))
    media = ({"image": "a.png"}, {"image": "a.png", "audio": "b.wav"}, {"video": "d.mp4", "use_audio": True})
    write_lines(folder / "looks.jsonl", [each | {"reference": "(84, 56)"} for each in media])
    line = {"voice": "Ethan", "like": "c.wav"}
    write_lines(folder / "says.jsonl", [line | {"reference": "One two."}, line | {"reference": "One four."}])
    (folder / "suite.py").write_text(SUITE)
    (folder / "suite_ears.py").write_text(EARS)
    return folder


@pytest.fixture
def run(folder, tiny_checkpoint, capsys, monkeypatch):
    """Runs the command in the folder: status, JSON result, standard error."""
    monkeypatch.chdir(folder)

    def run(*options, suite="suite.py", checkpoint=tiny_checkpoint[1]):
        argv = ["eval", "--suite", suite, "--checkpoint", checkpoint, "--data", folder, "--json", *options]
        status = main([str(each) for each in argv])
        captured = capsys.readouterr()
        return status, json.loads(captured.out.splitlines()[-1]) if captured.out else None, captured.err

    return run


def results(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_lines_are_asked_and_scored(run, tmp_path):
    status, result, told = run("--task", "looks", "--task", "looks_blind", "--batch", 2, "--to", tmp_path)
    assert status == 1 and result["pass"] is False  # a random model is no worse with its eyes shut
    looks, size, blind, _ = result["rows"]
    assert looks["name"] == "looks" and looks["pass"] is True and looks["goal"] == 1 and looks["count"] == 3
    assert looks["interval"][0] <= looks["value"] <= looks["interval"][1]
    assert looks["prompt"] == "system: You are a helpful assistant.\nuser: <image>What?"
    assert looks["decoding"]["max_new_tokens"] == 4
    assert looks["checkpoint"] == result["checkpoint"]["sha256"][:16]
    assert size["value"] == pytest.approx(2 / 3)  # the picture is seen as it is, the film is larger
    assert blind["ablate"] == "no_vision" and blind["rule"] == "worse than" and blind["pass"] is False
    assert "looks" in told and "NOT MET" in told and "checkpoint" in told and "max_new_tokens 4" in told
    settings, *lines = results(tmp_path, "looks")
    assert settings["settings"]["file"] == "looks.jsonl"
    assert [line["line"] for line in lines] == ["looks.jsonl:1", "looks.jsonl:2", "looks.jsonl:3"]
    blind_lines = results(tmp_path, "looks_blind")[1:]
    assert [line["text"] for line in blind_lines] != [line["text"] for line in lines]


def test_a_killed_run_goes_on(run, tmp_path, monkeypatch):
    options, whole = ("--task", "looks", "--batch", 2), []
    asked, real = [], answers.Asker._answered

    def counted(self, items, requests):
        asked.append([item.index for item in items])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(self, items, requests)

    with monkeypatch.context() as patch:
        patch.setattr(answers.Asker, "_answered", counted)
        whole = run(*options, "--to", tmp_path / "whole")[1]
        assert run(*options, "--to", tmp_path / "killed")[0] == 130
        with open(tmp_path / "killed" / "looks.jsonl", "a") as stream:
            stream.write('{"index": 2, "text"')
        status, result, _ = run(*options, "--to", tmp_path / "killed")
        assert status == 0 and asked == [[0, 1], [2], [0, 1], [2], [2]]
        assert result["rows"] == whole["rows"]
        assert results(tmp_path / "killed", "looks") == results(tmp_path / "whole", "looks")
    monkeypatch.setattr(Answerer, "load", None)  # all is there: nothing is loaded
    assert run(*options, "--to", tmp_path / "killed")[1]["rows"] == whole["rows"]
    assert run(*options, "--to", tmp_path / "killed", "--limit", 1)[1]["rows"][0]["count"] == 1


@pytest.fixture(scope="module")
def spoken(folder, tiny_checkpoint):
    """Both tasks that speak, and their sounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        argv = ["eval", "--suite", "suite.py", "--checkpoint", tiny_checkpoint[1], "--data", folder, *SPEECH]
        argv += ["--task", "talks", "--task", "reads", "--keep", folder / "wavs", "--to", folder / "spoken"]
        return SimpleNamespace(status=main([str(each) for each in argv]), to=folder / "spoken", wavs=folder / "wavs")


def test_spoken_answers_are_heard_and_kept(spoken):
    assert spoken.status == 0  # two right, and one of two wrong: a quarter
    talks, reads = results(spoken.to, "talks")[1:], results(spoken.to, "reads")[1:]
    assert [row["scores"]["talks_wer"] for row in talks] == [[0, 2], [1, 2]]
    assert [row["text"] for row in reads] == ["One two.", "One four."]  # spoken as they stand there
    for row, name in zip(reads, ("says-1.wav", "says-2.wav")):
        assert row["audio"] == str(spoken.wavs / "reads" / name)
        assert len(load_audio(row["audio"], sampling_rate=judge.RATE)) == 480 * row["codes"] > 0
        assert row["heard"] == "one two" and row["speech_reason"]


def test_what_has_no_scorer_is_not_measured(run, spoken, tmp_path):
    earlier = (spoken.to / "reads.jsonl").read_text().replace('"checkpoint": "', '"checkpoint": "another')
    (tmp_path / "reads.jsonl").write_text(earlier)
    status, result, told = run("--task", "reads", *SPEECH, "--to", spoken.to, "--compare", tmp_path)
    wer, mos = result["rows"]
    assert status == 0 and wer["value"] == 0.25 and wer["difference"] == 0 and result["pass"] is True
    assert mos["value"] is None and mos["pass"] is None and "--mos-scorer" in mos["why"] and "--mos-scorer" in told
    assert result["scorers"]["recognizer"] == "suite_ears:hear" and wer["decoding"]["speech"]["steps"] == 2


def test_a_suite_by_name(run, tmp_path, folder):
    sound = {"role": "user", "content": [{"type": "audio", "audio": str(folder / "b.wav")}]}
    write_lines(tmp_path / "test_hears_human.jsonl", 3 * [{"messages": [sound], "reference": "four", "answer": "four"}])
    argv = ("--data", tmp_path, "--to", tmp_path / "to", "--limit", 2)
    status, result, _ = run(*argv, suite="tiny")
    rows = {row["name"]: row for row in result["rows"]}
    assert status == 1 and rows["hears_human"]["count"] == 2 and rows["hears_human"]["goal"] == 0.04
    assert rows["sees_digit"]["value"] is None and "test_sees_digit.jsonl is not in" in rows["sees_digit"]["why"]
    assert next(iter(rows)) == "hears_unseen_speakers" and len(rows) == 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite", "nonsense"], "no suite 'nonsense'"),
        (["--task", "nonsense"], "no task 'nonsense'"),
        (["--data", "nowhere"], "is no folder"),
        (["--compare", "nowhere"], "is no folder"),
        (["--batch", 64], "at most 32"),
        (["--limit", 0], "1 or more"),
        (["--recognizer", "nowhere:hear"], "cannot be imported"),
        (["--suite", "asr"], "librispeech_test_clean.jsonl is not in"),
    ],
)
def test_bad_options(run, options, words):
    status, result, told = run(*options)
    assert status == 2 and result is None and words in told


def test_bad_lines_show_before_anything_is_loaded(run, tmp_path, folder, monkeypatch):
    load = Answerer.load
    monkeypatch.setattr(Answerer, "load", None)
    (tmp_path / "suite.py").write_text(SUITE)
    for line, words in (
        ({"image": "gone.png", "reference": "x"}, "looks.jsonl:2: " + str(tmp_path / "gone.png")),
        ({"image": str(folder / "a.png")}, "looks.jsonl:2: the key 'reference' is missing"),
    ):
        write_lines(tmp_path / "looks.jsonl", [{"image": str(folder / "a.png"), "reference": "x"}, line])
        status, _, told = run("--data", tmp_path, "--to", tmp_path / "to", suite=tmp_path / "suite.py")
        assert status == 2 and words in told
    write_lines(tmp_path / "says.jsonl", [{"reference": "x", "voice": "Nobody", "like": str(folder / "c.wav")}])
    status, _, told = run("--data", tmp_path, "--task", "talks", suite=tmp_path / "suite.py")
    assert status == 2 and "says.jsonl:1: " in told and "Nobody" in told
    assert not (tmp_path / "to").exists()
    broken = write_lines(tmp_path / "looks.jsonl", [{"image": "broken.png", "reference": "x"}])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(Answerer, "load", load)
    status, _, told = run("--data", tmp_path, "--task", "looks", "--to", tmp_path / "to", suite=tmp_path / "suite.py")
    assert status == 2 and f"{broken.name}:1: " in told and "broken.png" in told


def test_other_settings_need_another_folder(run, spoken, tmp_path):
    assert "another steps" in run("--task", "reads", *SPEECH, "--steps", 3, "--to", spoken.to)[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SPEECH[:-2], "another recognizer ('suite_ears:hear', now None)."),
        ([*SPEECH, "--steps", 3, "--solver", "rk4"], "another solver ('euler', now 'rk4'), steps (2, now 3)."),
        ([*SPEECH, "--speech-temperature", 0.5], "another speech_temperature (0.9, now 0.5)."),
        ([*SPEECH, "--max-codes", 20], "another max_codes (30, now 20)."),
        ([*SPEECH, "--seed", 1], "another seed (0, now 1)."),
        ([*SPEECH, "--dtype", "bfloat16"], "another dtype (None, now 'bfloat16')."),
    ],
)
def test_only_the_checkpoint_may_differ_from_an_earlier_run(run, spoken, tmp_path, options, words):
    status, _, told = run("--task", "reads", *options, "--to", tmp_path / "to", "--compare", spoken.to)
    assert status == 2 and words in told and "Only the checkpoint may differ" in told
    assert not (tmp_path / "to").exists()


def test_another_suite_is_not_compared_with(run, folder, spoken, tmp_path):
    other = tmp_path / "suite.py"
    other.write_text(SUITE.replace("max_new_tokens=4", "max_new_tokens=5"))
    _, _, told = run("--task", "talks", *SPEECH, "--to", tmp_path / "to", "--compare", spoken.to, suite=other)
    assert "another decoding.max_new_tokens (4, now 5), suite ('" in told


def test_a_broken_scorer_shows_before_anything_is_asked(run, spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(Answerer, "load", None)
    options = [*SPEECH[:-1], "suite_ears:broken"]
    status, _, told = run("--task", "talks", *options, "--to", tmp_path / "to")
    assert status == 2 and "--recognizer: failed on a recording of 0.50 s: RuntimeError: no weights" in told
    assert not (tmp_path / "to").exists()  # so that a mended one can begin there
    before = (spoken.to / "talks.jsonl").read_bytes()
    assert run("--task", "talks", *options, "--to", spoken.to, "--overwrite")[0] == 2
    assert (spoken.to / "talks.jsonl").read_bytes() == before
