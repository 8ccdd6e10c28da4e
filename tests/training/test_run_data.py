"""The sources of a run: what they leave out is told, and too much of it ends the run before it begins."""

import json
import logging
from contextlib import nullcontext
from dataclasses import replace

import pytest

from input_pipeline.training_batch import RowShape
from omni_jax.errors import ConfigError, DataError
from omni_jax.training.run import Rows
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_data import Conversations
from omni_jax.training.run_stages import DpoStage, ThinkerStage

ROWS = Rows(2, slice(0, 2), 1)


def talk(said) -> dict:
    return {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": said}]}


def missing() -> dict:
    return {"messages": [{"role": "user", "content": "<image>?"}, talk("No.")["messages"][1]], "images": ["no.png"]}


def opened(tmp_path, tiny_checkpoint, lines, **options):
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig((SourceConfig(str(file)),), RowShape(tokens=64, patches=64), 2, workers=0)
    config = RunConfig(ThinkerStage(), str(tiny_checkpoint[1]), str(tmp_path / "out"), replace(data, **options))
    return Conversations(config, {"Chelsie": 1113})(config.data.sources, ROWS)


def seen(loader) -> int:
    """Examples in the first batch."""
    _, report = next(iter(loader))
    loader.close()
    return report.examples


def test_what_is_left_out_is_told(tmp_path, tiny_checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        loader = opened(tmp_path, tiny_checkpoint, [talk("Yes.")] * 8 + [missing()] * 2, corrupt_share=0.3)
    assert "talk: 2 of 10 samples are left out (2 missing media)." in caplog.text
    assert "talk.jsonl:9" in caplog.text
    assert seen(loader)


def test_too_much_that_is_broken_ends_the_run_before_it_begins(tmp_path, tiny_checkpoint):
    with pytest.raises(DataError, match=r"talk: 2 of 10 samples cannot be used, more than data.corrupt_share = 0.1"):
        opened(tmp_path, tiny_checkpoint, [talk("Yes.")] * 8 + [missing()] * 2, corrupt_share=0.1)


def test_samples_that_are_too_long_are_not_broken(tmp_path, tiny_checkpoint):
    long = talk("word " * 200)
    assert seen(opened(tmp_path, tiny_checkpoint, [talk("Yes."), long, long], corrupt_share=0.0))


def test_pairs_of_another_reference_policy_are_refused(tmp_path, tiny_checkpoint):
    policy = {"checkpoint": "/somewhere/else", "digest": "0123456789abcdef", "dtype": "float32"}
    pair = {"type": "speech", "voice": "Chelsie", "chosen": [1, 2], "rejected": [3], "reference": [-1.0, -2.0]}
    lines = [talk([{"type": "text", "text": "Yes."}, pair | {"reference_by": policy}])] * 4
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig((SourceConfig(str(file)),), RowShape(tokens=64, speech=64, pairs=2), 2, workers=0)
    for stage in (DpoStage(), DpoStage(other_reference=True)):
        config = RunConfig(stage, str(tiny_checkpoint[1]), str(tmp_path / "out"), data)
        with nullcontext() if stage.other_reference else pytest.raises(ConfigError, match="/somewhere/else .01234567"):
            stage.open_data(config, {"Chelsie": 1113})(data.sources, ROWS).close()


def test_the_thinker_learns_the_words_of_spoken_answers(tmp_path, tiny_checkpoint):
    """Such a run has no room for speech: what is said aloud is read."""
    spoken = talk([{"type": "text", "text": "Yes."}, {"type": "speech", "voice": "Chelsie", "codes": [1, 2, 3]}])
    loader = opened(tmp_path, tiny_checkpoint, [spoken] * 4, corrupt_share=0.0)
    assert seen(loader)
