"""`omni-jax train` on data and checkpoints that are wrong: what is wrong is named before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest

from omni_jax.cli.main import main
from tests.cli.test_cli_train import written


def talk(question: str = "Hello?", **message) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Hi!", **message}]}


def write(file: Path, lines: list) -> Path:
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        (talk(loss=False), "nothing to learn"),
        ({"messages": [{"role": "user", "content": "Hello?"}]}, "it ends with a user"),
        ({"messages": [{"role": "robot", "content": "Hello?"}]}, "role 'robot' is not known"),
        ({**talk("<image>What?"), "images": ["gone.png"]}, "gone.png"),
    ],
    ids=["malformed", "empty mask", "no answer", "unknown role", "missing media"],
)
def test_data_of_which_nothing_can_be_used_is_refused_by_its_line(line, message, tmp_path, tiny_checkpoint, capsys):
    data = write(tmp_path / "talk.jsonl", ["", line])
    config = written(tmp_path / "c.py", tiny_checkpoint[1], tmp_path / "out", data)
    assert main(["train", "--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert "talk.jsonl:2" in err and message in err
    assert not (tmp_path / "out" / "run.json").exists()


def test_samples_that_cannot_be_used_are_left_out_by_name_or_end_the_run(tmp_path, tiny_checkpoint, caplog, capsys):
    data = write(tmp_path / "talk.jsonl", [talk(), "{not json", talk("Why?"), talk("Where?"), talk(loss=False)])
    config = written(tmp_path / "c.py", tiny_checkpoint[1], tmp_path / "out", data)
    command = ["train", "--config", str(config), "--optimizer.total-steps", "2"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "1 of 5 samples cannot be used" in err and "talk.jsonl:2: not JSON" in err
    caplog.clear()
    assert main([*command, "--data.corrupt-share", "0.2"]) == 0
    assert "2 of 5 samples are left out" in caplog.text
    assert "talk.jsonl:2: not JSON" in caplog.text and "talk.jsonl:5: nothing to learn" in caplog.text


def test_a_checkpoint_whose_weights_are_of_another_architecture_is_refused(tmp_path, tiny_checkpoint, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint[1], other)
    content = json.loads((other / "config.json").read_text())
    content["thinker_config"]["text_config"]["intermediate_size"] = 96
    (other / "config.json").write_text(json.dumps(content))
    data = write(tmp_path / "talk.jsonl", [talk()])
    config = written(tmp_path / "c.py", other, tmp_path / "out", data)
    assert main(["train", "--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert "thinker/layers/mlp" in err and "128" in err and "96" in err
    assert not (tmp_path / "out" / "checkpoints").is_dir() or not list((tmp_path / "out" / "checkpoints").iterdir())
