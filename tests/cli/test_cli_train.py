"""`omni-jax train` from a configuration file to a folder that chat reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from omni_jax.cli.main import main
from omni_jax.interop.restore import load_checkpoint_info, restore_leaves
from omni_jax.training.metrics import read_rows

CONFIG = """
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint={checkpoint!r},
    output={output!r},
    data=DataConfig((SourceConfig({data!r}, name="talk"),), shape=RowShape(tokens=64), rows=2, workers=0),
    held_out=(SourceConfig({data!r}),),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=6),
    freeze=("^thinker/embed",),
    dtype="float32",
    log_every=2,
    save_every=2,
    eval_every=3,
    held_out_batches=1,
    prompts=("Hello?",),
    sample_every=6,
    sample_tokens=4,
)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "talk.jsonl"
    pairs = [("Hello?", "Hi!"), ("Why?", "Because."), ("Where?", "There."), ("Who?", "You and I.")]
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in pairs
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def config(tmp_path, tiny_checkpoint, data) -> Path:
    return written(tmp_path / "tiny.py", tiny_checkpoint[1], tmp_path / "out", data)


def written(file: Path, checkpoint: Path, output: Path, data: Path) -> Path:
    file.write_text(CONFIG.format(checkpoint=str(checkpoint), output=str(output), data=str(data)))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint, data) -> Path:
    """A folder of a finished run, to be looked at only."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", "--config", str(written(folder / "c.py", tiny_checkpoint[1], folder / "out", data))]) == 0
    return folder


def parameters(folder: Path) -> dict[str, bytes]:
    info = load_checkpoint_info(folder)
    return {path: leaf.tobytes() for path, leaf in restore_leaves(info, list(info.shapes)).items()}


def test_a_run_leaves_metrics_checkpoints_and_a_model(trained, tiny_checkpoint):
    output = trained / "out"
    rows = read_rows(output)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert any("source/talk" in row for row in rows)
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 6]
    assert [row["step"] for row in rows if "sample/Hello?" in row] == [6]
    assert sorted(int(path.name) for path in (output / "checkpoints").iterdir()) == [2, 4, 6]
    before, after = parameters(tiny_checkpoint[1]), parameters(output / "model")
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert "thinker/lm_head/kernel" in changed
    # frozen, not part of this stage, or only there to be carried along: bit for bit as before
    assert all(path.startswith("thinker/") and not path.startswith("thinker/embed") for path in changed)
    for name in ("config.json", "tokenizer.json", "import.json"):
        assert (output / "model" / name).read_bytes() == (tiny_checkpoint[1] / name).read_bytes()


def test_frozen_parts_keep_their_bits_though_computing_is_in_a_narrower_dtype(config, tmp_path, tiny_checkpoint):
    options = ["--dtype", "bfloat16", "--optimizer.total-steps", "2", "--sample-every", "0", "--eval-every", "0"]
    assert main(["train", "--config", str(config), *options, "--data.rows", "1"]) == 0
    before, after = parameters(tiny_checkpoint[1]), parameters(tmp_path / "out" / "model")
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert "thinker/lm_head/kernel" in changed
    assert all(path.startswith("thinker/") and not path.startswith("thinker/embed") for path in changed)


def test_the_model_is_one_that_chat_and_export_read(trained, tmp_path, capsys):
    model = str(trained / "out" / "model")
    assert main(["chat", "--checkpoint", model, "--text", "Hello?", "--max-new-tokens", "3"]) == 0
    assert main(["export", "--from", model, "--to", str(tmp_path / "published")]) == 0
    assert list((tmp_path / "published").glob("*.safetensors"))


def test_the_same_command_goes_on_where_a_run_was_lost(trained, tmp_path, tiny_checkpoint, data, capsys):
    """As after a crash between steps 4 and 6: the last checkpoints are gone, rows of metrics are there already."""
    folder = tmp_path / "lost"
    shutil.copytree(trained / "out", folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    shutil.rmtree(folder / "model")
    file = written(tmp_path / "c.py", tiny_checkpoint[1], folder, data)
    assert main(["train", "--config", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (result["step"], result["reason"], result["model"]) == (6, "done", str(folder / "model"))
    assert result["metrics"]["step"] == 6 and "Going on from step 4" in err
    assert parameters(folder / "model") == parameters(trained / "out" / "model")
    assert [row["step"] for row in read_rows(folder) if "loss" in row] == [2, 4, 6]


def test_a_finished_run_only_says_so(trained, tmp_path, tiny_checkpoint, data, capsys):
    before = parameters(trained / "out" / "model")
    assert main(["train", "--config", str(trained / "c.py")]) == 0
    assert "Step 6: done." in capsys.readouterr().out
    assert parameters(trained / "out" / "model") == before


def test_a_changed_configuration_is_refused_by_its_keys_unless_accepted(trained, capsys):
    command = ["train", "--config", str(trained / "c.py"), "--optimizer.learning-rate", "2e-3", "--log-every", "1"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "optimizer.learning_rate: was 0.001, is 0.002" in err and "log_every" not in err
    assert "--allow-change optimizer.learning_rate" in err
    assert main([*command, "--allow-change", "optimizer.learning_rate"]) == 0


def test_without_resume_a_used_output_is_refused(trained, capsys):
    assert main(["train", "--config", str(trained / "c.py"), "--no-resume"]) == 2
    assert "holds a run up to step 6" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused_naming_both(trained, tmp_path, tiny_checkpoint, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint[1], other)
    content = json.loads((other / "config.json").read_text())
    text = content["thinker_config"]["text_config"]
    text["num_hidden_layers"] += 1
    (other / "config.json").write_text(json.dumps(content))
    assert main(["train", "--config", str(trained / "c.py"), "--checkpoint", str(other)]) == 2
    err = capsys.readouterr().err
    assert str(tiny_checkpoint[1]) in err and str(other) in err
    layers = text["num_hidden_layers"]
    assert f"thinker.num_hidden_layers: {layers - 1} there, {layers} here" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", "^nothing/like/this"], "'^nothing/like/this' matches no parameter"),
        (["--mesh", "fsdp=3"], "needs 3 devices"),
        (["--mesh", "rows=2"], "there is no axis 'rows'"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        (["--data.sources.0.path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.shape.tokens", "8"], "tokens (at most 8)"),
        (["--optimizer.total-steps", "0"], "total_steps"),
        (["--held-out-batches", "0"], "held_out_batches = 0"),
        (["--profile", "5"], "not of the form 10:15"),
    ],
)
def test_what_is_wrong_shows_before_training(config, options, message, capsys):
    assert main(["train", "--config", str(config), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_configuration_is_named(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path / "none.py")]) == 2
    assert "none.py does not exist" in capsys.readouterr().err
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert main(["train", "--config", str(tmp_path / "empty.py")]) == 2
    assert "does not say config = RunConfig(...)" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("config = RunConfig(\n")
    assert main(["train", "--config", str(tmp_path / "broken.py")]) == 2
    assert "broken.py cannot be run: SyntaxError" in capsys.readouterr().err


def test_help_lists_what_a_file_may_say(config, capsys):
    assert main(["train", "--help"]) == 0
    assert "configs/sft.py" in capsys.readouterr().out
    assert main(["train", "--config", str(config), "--help"]) == 0
    assert "--optimizer.learning-rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "configs").glob("*.py")), ids=lambda file: file.stem
)
def test_every_configuration_of_the_project_can_be_read(file):
    from omni_jax.training.run_config import load_config

    config = load_config(file)
    text = file.read_text()
    assert config.output == f"runs/{file.stem}"
    for word in (f"omni-jax train --config configs/{file.name}", "Paper", "Chips", "Memory"):
        assert word in text
    assert np.isfinite(config.optimizer.learning_rate)
