"""`omni-jax prepare`: shards, a report, and exit statuses."""

import json

import pytest

from input_pipeline.example_context import ExampleContext, speech_codes
from input_pipeline.records import RecordSource
from input_pipeline.tokenizer import Tokenizer
from omni_jax.cli.main import main
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.sampling.voices import load_speakers
from tests.input_pipeline.training_data import mixed_lines, said, user, write_lines, write_media


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    return write_lines(folder / "train.jsonl", mixed_lines())


@pytest.fixture
def prepare(tiny_checkpoint, data, tmp_path, capsys):
    def run(*options, file=data, to="shards"):
        argv = ["--data", file, "--checkpoint", tiny_checkpoint[1], "--to", tmp_path / to, "--workers", 1, *options]
        status = main(["prepare", *map(str, argv)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return run


def read(folder, checkpoint):
    config = read_config(checkpoint)
    voices = {name: speaker.token_id for name, speaker in load_speakers(checkpoint, config).items()}
    parts = Tokenizer.load(checkpoint), config, read_processor_config(checkpoint), voices, speech_codes(config)
    return RecordSource(folder, ExampleContext(*parts))


def test_shards_can_be_trained_on(prepare, tiny_checkpoint, tmp_path):
    status, out, _ = prepare("--shards", 3, "--max-rejected", 0.5)
    assert status == 0
    assert "5 examples of 8 lines in 3 shards" in out
    assert "train.jsonl:3: roles" in out and "report.json" in out
    source = read(tmp_path / "shards", tiny_checkpoint[1])
    assert [source.example(i).name for i in range(5)] == [f"train.jsonl:{n}" for n in (1, 2, 4, 6, 8)]
    report = json.loads((tmp_path / "shards" / "report.json").read_text())
    assert [each["name"] for each in report["rejected"]] == [f"train.jsonl:{n}" for n in (3, 5, 7)]


def test_too_many_rejected_lines_are_a_failure(prepare, tmp_path):
    status, out, err = prepare("--shards", 2, "--json")
    assert status == 2
    assert "More than --max-rejected 0.1" in err
    result = json.loads(out)
    assert (result["lines"], result["rejected_lines"], result["examples"]) == (8, 3, 5)
    assert result["rejected_kinds"] == {"roles": 1, "malformed": 1, "corrupt media": 1}
    assert "rejected" not in result and result["seconds"] > 0


def test_parts_come_together(prepare, tiny_checkpoint, tmp_path):
    status, out, _ = prepare("--shards", 3, "--part", "2/2", "--max-rejected", 1)
    assert status == 0 and "Other parts are not done yet" in out
    assert (tmp_path / "shards" / "report-2-of-2.json").exists()
    status, out, _ = prepare("--shards", 3, "--part", "1/2", "--max-rejected", 1)
    assert status == 0 and "Other parts" not in out
    assert len(read(tmp_path / "shards", tiny_checkpoint[1])) == 5
    prepare("--shards", 3, "--max-rejected", 1, to="whole")
    for file in (tmp_path / "whole").glob("data-*"):
        assert file.read_bytes() == (tmp_path / "shards" / file.name).read_bytes()


def test_with_other_options_another_folder_or_overwriting(prepare):
    assert prepare("--shards", 2, "--max-rejected", 1)[0] == 0
    status, _, err = prepare("--shards", 2, "--max-tokens", 100, "--max-rejected", 1)
    assert status == 2 and "another limit.tokens" in err and "--overwrite" in err
    status, out, _ = prepare("--shards", 2, "--max-tokens", 100, "--max-rejected", 1, "--overwrite", "--system", "")
    assert status == 0 and "examples of 8 lines" in out


def test_an_unknown_voice_is_told_with_its_line(prepare, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"messages": [user("Hi"), said("Hello.", codes=[1], voice="Nobody")]}])
    status, out, _ = prepare("--shards", 1, file=file)
    assert status == 2
    assert "a.jsonl:1: malformed: message 2, speech: there is no voice 'Nobody'. Voices: " in out


@pytest.mark.parametrize(
    "options, words",
    [
        (["--part", "3/2"], "--part '3/2' is not one of"),
        (["--part", "x"], "--part 'x'"),
        (["--shards", 0], "--shards 0 is out of range"),
        (["--workers", 0], "--workers 0"),
        (["--max-tokens", 0], "--max-tokens 0"),
        (["--max-rejected", 2], "--max-rejected 2"),
    ],
)
def test_bad_options(prepare, options, words):
    status, out, err = prepare(*options)
    assert (status, out) == (2, "") and words in err


def test_bad_places(prepare, tiny_checkpoint, data, tmp_path, capsys):
    assert main(["prepare", "--data", str(data), "--checkpoint", str(tiny_checkpoint[0]), "--to", "x"]) == 2
    assert "Import it first" in capsys.readouterr().err
    status, _, err = prepare(file=tmp_path / "none.jsonl")
    assert status == 2 and "none.jsonl: cannot be read: No such file" in err
    (tmp_path / "file").write_text("x")
    status, _, err = prepare(to="file/shards")
    assert status == 2 and "cannot be written: Not a directory" in err
