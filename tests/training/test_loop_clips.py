"""Stages that train on recordings: how their data is opened, and runs from files to a model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.speech_batch import stacked
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.presets import preset
from omni_jax.training.batch_shapes import batch_shapes
from omni_jax.training.metrics import read_rows
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run import Rows, run
from omni_jax.training.run_clips import CodedClips, OpenClips, SoundClips, TranscribedClips, VoicedClips
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import SpeechTokenizerStage, Token2WavStage, VocoderStage, model_of
from tests.input_pipeline.clip_data import write_clips, write_lines

CLIPS = 6


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    return write_lines(folder / "clips.jsonl", write_clips(folder, CLIPS))


def config_of(recordings: Path, tmp_path: Path, checkpoint="none", **data) -> RunConfig:
    data = {"rows": 2, "clip_seconds": 2.0, "workers": 0} | data
    return RunConfig(
        stage=SpeechTokenizerStage(size="tiny", from_audio_encoder=False),
        checkpoint=str(checkpoint),
        output=str(tmp_path / "out"),
        data=DataConfig((SourceConfig(str(recordings)),), **data),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1, total_steps=4),
        dtype="float32",
        log_every=1,
    )


def opened(config: RunConfig, kind=CodedClips, rows: Rows | None = None, **options):
    whole = Rows(config.data.rows, slice(0, config.data.rows), 1)
    return OpenClips(config, preset("tiny"), ProcessorConfig(), kind)(config.data.sources, rows or whole, **options)


def test_the_configuration_reaches_the_data(recordings, tmp_path):
    config = config_of(recordings, tmp_path, epochs=2, rows=4, seed=5)
    clips = opened(config)
    assert clips.steps == 3 and clips.state()["seed"] == 5
    half = opened(config, rows=Rows(4, slice(2, 4), 2))
    assert half.steps == 2
    with clips, half:
        (_, first), (_, second), (batch, report) = next(clips), next(clips), next(half)
    assert batch.mel.shape[0] == 4 and report.names == first.names[2:] + second.names[2:]


def test_held_out_recordings_are_gone_through_once_as_they_are(recordings, tmp_path):
    """Every one of them, always the same, whatever the training data is made to be."""
    held_out = opened(config_of(recordings, tmp_path, rows=4), held_out=True)
    other = opened(config_of(recordings, tmp_path, rows=4, augment=True, seed=3, epochs=7), held_out=True)
    first = list(held_out)
    held_out.seek(0)
    again, same = list(held_out), list(other)
    for each in (first, again, same):
        assert [name for _, report in each for name in report.names] == [f"clips.jsonl:{i + 1}" for i in range(CLIPS)]
        for (batch, _), (expected, _) in zip(each, first, strict=True):
            np.testing.assert_array_equal(batch.mel, expected.mel)


@pytest.mark.parametrize("kind", [CodedClips, TranscribedClips, VoicedClips, SoundClips])
def test_batches_of_every_stage_have_their_rows(recordings, tmp_path, kind):
    batch, report = next(opened(config_of(recordings, tmp_path), kind))
    assert report.examples == 2 and not report.skipped
    assert all(np.asarray(getattr(batch, name)).shape[0] == 2 for name in batch.__dataclass_fields__)


@pytest.mark.parametrize("seconds", [2.0, 3.57])
@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        (SpeechTokenizerStage(size="tiny", route="inversion"), CodedClips),
        (SpeechTokenizerStage(size="tiny", route="scratch"), TranscribedClips),
        (Token2WavStage(), VoicedClips),
        (VocoderStage(), SoundClips),
    ],
)
def test_steps_are_compiled_for_the_batches_that_come(recordings, tmp_path, stage, kind, seconds):
    config = replace(config_of(recordings, tmp_path, clip_seconds=seconds), stage=stage)
    model = model_of(stage, preset("tiny"))
    empty = stacked([kind(model, ProcessorConfig(), seconds=seconds).empty()] * 2)
    expected = batch_shapes(config, model, 2)
    assert type(expected) is type(empty)
    for field in empty.__dataclass_fields__:
        ours, theirs = getattr(empty, field), getattr(expected, field)
        assert (field, ours.shape, ours.dtype) == (field, theirs.shape, theirs.dtype)


def test_sources_that_are_no_lines_of_recordings_are_refused(recordings, tmp_path):
    for sources, words in (
        ((), "one or more JSON lines files"),
        ((SourceConfig(str(recordings), weight=0.5),), "without weights"),
    ):
        config = config_of(recordings, tmp_path)
        with pytest.raises(ConfigError, match=words):
            opened(replace(config, data=replace(config.data, sources=sources)))
    with pytest.raises(DataError, match="nowhere.jsonl does not exist"):
        opened(config_of(tmp_path / "nowhere.jsonl", tmp_path))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="empty.jsonl: no lines"):
        opened(config_of(tmp_path / "empty.jsonl", tmp_path))


def test_a_speech_tokenizer_is_trained_from_files_to_a_folder(recordings, tmp_path, tiny_checkpoint):
    """By a worker process, with a recording that cannot be used."""
    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import load_checkpoint_info

    lines = [json.loads(line) for line in recordings.read_text().splitlines()]
    some = write_lines(recordings.with_name("some.jsonl"), [*lines[:5], {**lines[5], "audio": "nowhere.wav"}])
    config = config_of(some, tmp_path, tiny_checkpoint[1], workers=1, rows=4)
    summary = run(config, config.stage.open_data(config, {}))
    rows = read_rows(config.output)
    losses = [row["loss"] for row in rows]
    assert summary.step == 4 and losses[-1] < losses[0]
    assert sum(row["skipped_examples"] for row in rows) in (2, 3)  # once in each of 2 2/3 epochs
    assert all(row["tokens_per_second"] > 0 for row in rows)
    info = load_checkpoint_info(summary.model)
    assert "speech_tokenizer" in info.components and "thinker" in info.components
    assert read_config(summary.model).speech_tokenizer_config.route == "inversion"  # the next run finds it there


def test_a_tokenizer_that_the_audio_encoder_does_not_fit_is_refused(recordings, tmp_path, tiny_checkpoint):
    stage = SpeechTokenizerStage(size="tiny", route="scratch")
    config = replace(config_of(recordings, tmp_path, tiny_checkpoint[1]), stage=stage)
    with pytest.raises(ConfigError, match="Choose another size, or set stage.from_audio_encoder to False"):
        run(config, config.stage.open_data(config, {}))


def test_a_stage_whose_component_is_missing_says_so(recordings, tmp_path, tiny_checkpoint):
    from omni_jax.errors import CheckpointError
    from omni_jax.training.run_stages import fresh

    with pytest.raises(CheckpointError, match="The checkpoint has no dit"):
        fresh(Token2WavStage(), "dit", preset("tiny"), lambda name: {}, None)
