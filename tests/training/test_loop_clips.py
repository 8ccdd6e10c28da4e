"""Stages that train on recordings: the order of clips, what is refused, and a run from files to a model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.presets import preset
from omni_jax.training.metrics import read_rows
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run import Rows, run
from omni_jax.training.run_clips import CodedClips, OpenClips, SoundClips, TranscribedClips, VoicedClips
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import SpeechTokenizerStage, Token2WavStage
from tests.input_pipeline.media_files import write_audio

CLIPS = 6


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Tones of half a second with codes, text, and a voice."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    lines = []
    for number in range(CLIPS):
        tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(12_000) / 24_000)
        write_audio(folder / f"{number}.wav", tone.astype(np.float32), 24_000)
        np.save(folder / f"{number}.npy", rng.normal(size=192).astype(np.float32))
        line = {"audio": f"{number}.wav", "codes": rng.integers(0, 128, 25).tolist(), "text": f"Tone {number}."}
        lines.append(line | {"reference": f"{(number + 1) % CLIPS}.wav", "speaker": f"{number}.npy"})
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "clips.jsonl"


def config_of(recordings: Path, tmp_path: Path, checkpoint="none", **data) -> RunConfig:
    data = {"rows": 2, "clip_seconds": 2.0, "workers": 2} | data
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


def names(clips, steps: int) -> list[tuple[str, ...]]:
    return [next(clips)[1].names for _ in range(steps)]


def test_each_epoch_holds_every_recording_once_in_a_new_order(recordings, tmp_path):
    steps = names(opened(config_of(recordings, tmp_path)), 6)
    first, second = [sum(part, ()) for part in (steps[:3], steps[3:])]
    assert sorted(first) == sorted(second) == [f"clips.jsonl:{i + 1}" for i in range(CLIPS)]
    assert first != second


def test_a_place_in_the_order_can_be_gone_back_to_and_hosts_share_the_rows(recordings, tmp_path):
    config = config_of(recordings, tmp_path, augment=True)
    clips = opened(config)
    whole = [next(clips) for _ in range(4)]
    state = json.loads(json.dumps(clips.state()))
    later = next(clips)[0].mel
    again = opened(config)
    again.restore(state)
    assert np.array_equal(next(again)[0].mel, later)  # also what was drawn to change the sound
    half = opened(config, rows=Rows(2, slice(1, 2), 1))
    assert [next(half)[1].names[0] for _ in range(4)] == [report.names[1] for _, report in whole]
    other = opened(replace(config, data=replace(config.data, seed=1)))
    with pytest.raises(DataError, match="seed: was 0, is 1"):
        other.restore(state)


def test_held_out_recordings_are_gone_through_once(recordings, tmp_path):
    clips = opened(config_of(recordings, tmp_path), held_out=True)
    assert len(list(clips)) == 3
    clips.seek(0)
    assert len(list(clips)) == 3


@pytest.mark.parametrize("kind", [CodedClips, TranscribedClips, VoicedClips, SoundClips])
def test_batches_of_every_stage_have_their_rows(recordings, tmp_path, kind):
    batch, report = next(opened(config_of(recordings, tmp_path), kind))
    assert report.examples == 2 and not report.skipped
    assert all(np.asarray(getattr(batch, name)).shape[0] == 2 for name in batch.__dataclass_fields__)


def test_a_recording_that_cannot_be_used_leaves_its_row_to_the_next(recordings, tmp_path):
    lines = recordings.read_text().splitlines()
    bad = recordings.with_name("some.jsonl")
    broken = json.loads(lines[0]) | {"audio": "nowhere.wav"}
    bad.write_text("\n".join([json.dumps(broken), *lines[1:]]))
    clips = opened(config_of(bad, tmp_path, corrupt_share=0.5))
    reports = [next(clips)[1] for _ in range(3)]
    (skipped,) = sum((report.skipped for report in reports), ())
    assert skipped.name == "some.jsonl:1" and "nowhere.wav" in skipped.reason
    assert all(report.examples == 2 for report in reports)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "bad.jsonl:1: this is not JSON"), ('{"sound": 1}', 'bad.jsonl:1: a recording is an object with "audio"')],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(config_of(tmp_path / "bad.jsonl", tmp_path))


def test_a_speech_tokenizer_is_trained_from_files_to_a_folder(recordings, tmp_path, tiny_checkpoint):
    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import load_checkpoint_info

    config = config_of(recordings, tmp_path, tiny_checkpoint[1])
    summary = run(config, config.stage.open_data(config, {}))
    losses = [row["loss"] for row in read_rows(config.output)]
    assert summary.step == 4 and losses[-1] < losses[0]
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
