"""Phones: a probe reads many recordings beside a few transcripts, and leaves nothing of its own in the model."""

import dataclasses
import json
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from examples.omni_tiny import spoken_rows
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.chain import CONFIGS
from examples.omni_tiny.lexicon import PHONES, labels, lexicon, said_as
from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.phones import PhoneBatch, PhonesStage, PhonesTask, with_recordings
from examples.omni_tiny.sentences import normal_words
from examples.omni_tiny.spoken_rows import Recordings, changed
from examples.omni_tiny.training import Training
from input_pipeline.request import audio_tokens
from input_pipeline.training_batch import RowShape
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import SourceConfig, load_config
from omni_jax.training.step import Trainer
from tests.examples.probed_runs import NumberedLoader, check_run
from tests.training.random_batches import random_batch, random_params

CONFIG = preset("tiny")
AUDIO = CONFIG.thinker_config.audio_config
TASK = PhonesTask(CONFIG, vision=False)
PARAMS = random_params(CONFIG, TASK.components)
# an even rate, so that a shorter run is the beginning of a longer one
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=0, total_steps=20, final_fraction=1.0)
STAGE = PhonesStage(clips=2, blocks=2)


def heard(count: int = 5, frames: int = 60) -> Recordings:
    rng = np.random.default_rng(3)
    mel = rng.normal(size=(count * frames, AUDIO.num_mel_bins)).astype(np.float16)
    said = [tuple(int(each) for each in rng.integers(1, len(PHONES) + 1, 4)) for _ in range(count)]
    return Recordings(mel, np.arange(1, count + 1) * frames, said, np.full(count, 1 / count))


def _transcript(sound: str, text: str) -> str:
    asked = [{"type": "audio", "audio": sound}, {"type": "text", "text": "Transcribe."}]
    roles = (("system", "You hear."), ("user", asked), ("assistant", text))
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in roles]}) + "\n"


def batch() -> PhoneBatch:
    talk = random_batch(CONFIG, 1, RowShape(tokens=48, audio_blocks=2))
    rows = heard().at(0, 2, 2, AUDIO.block_frames, 0)
    return PhoneBatch(talk, rows.mel, rows.frames, rows.phones)


def test_phones_of_a_text_are_numbered():
    assert list(labels("Five dogs!")) == [PHONES.index(phone) + 1 for phone in "fIv" + "dɔɡz"]
    for text, missing in (("the zebra", "'zebra'"), ("...", "no word")):
        with pytest.raises(DataError, match=f"{missing}.* is not in lexicon.json. Write it anew"):
            labels(text)


def test_the_lexicon_has_all_words_of_the_transcripts_and_is_what_hibari_says():
    training = Training(0, Amounts().scaled(0.02), np.arange(59_000) % 10)
    lines = training.lines()
    names = ["audio_text", *(f"audio_text_{name}" for name in FSDD_SPEAKERS)]
    words = {word for name in names for line in lines[name] for word in normal_words(line["messages"][-1]["content"])}
    assert words <= set(lexicon()) and len(words) > 200
    assert set().union(*lexicon().values()) <= set(PHONES)
    pytest.importorskip("hibari")
    assert {word: said_as(word) for word in lexicon()} == lexicon()


def test_a_phone_that_is_not_ours_is_refused(monkeypatch):
    monkeypatch.setattr("examples.omni_tiny.lexicon.phonemes", lambda british: lambda word: "ˈ" + word)
    assert said_as("did") == "did"
    for word in ("cat", "ˌ"):
        with pytest.raises(DataError, match="which is not in PHONES of lexicon.py"):
            said_as(word)


def _seeds(mel, count=80):
    return [changed(mel.astype(np.float32), np.random.default_rng(seed), most=230) for seed in range(count)]


def test_the_pace_changes_within_bounds():
    found = _seeds(np.ones((200, 128)))
    lengths = {len(each) for each in found}
    assert min(lengths) in range(164, 170) and max(lengths) == 230 and len(lengths) > 20
    assert {each.shape[1] for each in found} == {128}
    np.testing.assert_array_equal(_seeds(np.ones((200, 128)), 4)[3], found[3])


def test_speaker_tilt_floor_and_masks_change():
    """A line at mel bin 60 moves; an even spectrum is tilted, or raised to a floor, or masked."""
    line = np.zeros((200, 128))
    line[:, 60] = 4
    found = [int(np.median(each.argmax(axis=1))) for each in _seeds(line)]
    places = {place for place in found if place > 40}  # a mask may hide the line
    assert min(places) in range(52, 55) and max(places) in range(67, 70) and len(places) > 8

    found = _seeds(np.zeros((200, 128)))
    tilts = [float(np.median(each[:, -1] - each[:, 0])) for each in found]
    assert min(tilts) < -0.2 and max(tilts) > 0.2 and max(map(abs, tilts)) <= 0.3 + 1e-6

    steps = np.where(np.arange(200)[:, None] < 100, 0.0, 4.0) * np.ones(128)
    found = _seeds(steps)
    lowest = [float(np.median(each[:20])) for each in found]
    floors = sum(low > 1.5 for low in lowest)
    assert 0.15 * len(found) < floors < 0.45 * len(found)
    spread = [each[5:60, :].max(axis=0) - np.median(each[5:60]) for each in found]
    masked = sum(bool((own > 1).any()) for own, low in zip(spread, lowest) if low < 1)
    assert masked > 0.4 * (len(found) - floors)


def test_a_row_holds_whole_recordings_with_their_phones():
    recordings = heard(7, 90)
    rows = recordings.at(4, 3, 2, AUDIO.block_frames, 1)
    block = AUDIO.block_frames
    assert rows.mel.shape == (3, 2, block, AUDIO.num_mel_bins)
    for mel, frames, phones in zip(rows.mel.reshape(3, 2 * block, -1), rows.frames, rows.phones):
        used = int(frames.sum())
        assert frames.tolist() == [min(used, block), max(used - block, 0)]
        assert not mel[used:].any() and mel[:used].any(axis=1).all()
        said = phones[phones > 0].tolist()
        assert not phones[len(said) :].any() and len(said) % 4 == 0
        parts = {tuple(said[first : first + 4]) for first in range(0, len(said), 4)}
        assert parts <= set(recordings.phones)
        # the shortest recording has 0.82 of its frames, the longest 1.2 and a gap
        assert 90 * 0.8 * len(said) / 4 <= used <= (90 * 1.2 + 25) * len(said) / 4
    same, other = recordings.at(4, 3, 2, block, 1), recordings.at(5, 3, 2, block, 1)
    np.testing.assert_array_equal(same.mel, rows.mel)
    assert not np.array_equal(other.mel, rows.mel)


def test_phones_are_those_of_the_sound(monkeypatch):
    """Each recording is one level of sound and one phone: what is in the rows says both in one order."""
    monkeypatch.setattr(spoken_rows, "changed", lambda mel, rng, *, most: mel)
    mel = np.repeat(np.arange(1, 6), 60)[:, None] * np.ones(AUDIO.num_mel_bins)
    said = [(label,) for label in range(1, 6)]
    recordings = Recordings(mel.astype(np.float16), np.arange(1, 6) * 60, said, np.ones(5) / 5)
    rows, seen = recordings.at(2, 4, 2, AUDIO.block_frames, 0), set()
    for own, phones in zip(rows.mel[..., 0].reshape(4, -1), rows.phones):
        order = [[level for level, _ in groupby(each[each > 0].tolist())] for each in (own, phones)]
        assert order[0] == order[1] and len(order[0]) >= 3
        seen.update(order[0])
    assert seen == {1, 2, 3, 4, 5}


def test_shares_decide_what_is_drawn():
    def drawn(shares):
        recordings = dataclasses.replace(heard(2), shares=np.array(shares))
        found = recordings.at(0, 40, 2, AUDIO.block_frames, 0).phones
        first = [
            tuple(row[at : at + 4]) == recordings.phones[0] for row in found for at in range(0, len(row), 4) if row[at]
        ]
        return np.mean(first)

    assert drawn([0.0, 1.0]) == 0 and drawn([1.0, 0.0]) == 1
    assert 0.1 < drawn([0.2, 0.8]) < 0.3


def _recorded(folder, texts: dict[str, float]) -> None:
    lines = []
    for number, (text, seconds) in enumerate(texts.items()):
        sound = np.random.default_rng(number).normal(size=round(16_000 * seconds)) * 0.1
        soundfile.write(folder / f"{number}.flac", sound, 16_000)
        lines.append(_transcript(f"{number}.flac", text))
    (folder / "audio_text.jsonl").write_text("".join(lines))


def test_recordings_are_read_from_transcripts(tmp_path):
    # the third is longer than a row, the fourth has more phones, the last is said faster than the probe can tell
    texts = {"nine": 1.0, "tiger walks": 2.0, "small dog": 9.0, "big " * 40: 6.0, "in the evening today": 0.3}
    _recorded(tmp_path, texts)
    path = tmp_path / "audio_text.jsonl"
    found = Recordings.read([path], ProcessorConfig(), frames=600, digits=0.25)
    assert found.ends.tolist() == [100, 300] and found.mel.shape == (300, 128)
    assert list(found.phones) == [labels("nine"), labels("tiger walks")]
    assert found.shares.tolist() == [0.2, 0.8]
    with pytest.raises(DataError, match="no recording fits in a row of 0.5 s. Give more blocks"):
        Recordings.read([path], ProcessorConfig(), frames=50, digits=0.25)
    with pytest.raises(DataError, match="other.jsonl: cannot be read"):
        Recordings.read([tmp_path / "other.jsonl"], ProcessorConfig(), frames=600, digits=0.25)
    before = found.digest
    _recorded(tmp_path, {"nine": 1.0, "tiger walk": 2.0})
    assert Recordings.read([path], ProcessorConfig(), frames=600, digits=0.25).digest != before


@pytest.mark.parametrize(
    ("text", "sound", "message"),
    [("the zebra", "0.flac", "'zebra'"), ("nine", "none.flac", "none.flac"), ("nine", "short.flac", "short.flac")],
)
def test_what_is_wrong_with_a_recording_is_told_with_its_line(tmp_path, text, sound, message):
    _recorded(tmp_path, {"nine": 1.0})
    soundfile.write(tmp_path / "short.flac", np.zeros(100), 16_000)
    (tmp_path / "audio_text.jsonl").write_text(_transcript("0.flac", "nine") + _transcript(sound, text))
    with pytest.raises(DataError, match=f"audio_text.jsonl:2: .*{message}"):
        Recordings.read([tmp_path / "audio_text.jsonl"], ProcessorConfig(), frames=600, digits=1.0)


@pytest.mark.parametrize(
    "line",
    ["no json", '{"messages": [{}, {}]}', '{"messages": [{}, {"content": []}, {}]}', _transcript("0.flac", ["nine"])],
)
def test_lines_that_are_no_transcript_are_named(tmp_path, line):
    path = tmp_path / "audio_text.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="audio_text.jsonl:1: not a recording and its transcript"):
        Recordings.read([path], ProcessorConfig(), frames=600, digits=1.0)


def test_the_probe_reads_the_tokens_of_each_block_where_there_is_sound():
    given = jax.tree.map(jnp.asarray, batch())
    rng = np.random.default_rng(0)
    probe = {path.split("/")[-1]: rng.normal(size=value.shape) for path, (_, value) in TASK.auxiliary.items()}
    params = jax.tree.map(jnp.asarray, PARAMS | {"probe": {"phones": probe}})
    scores, silent = TASK.scores(params, given.mel, given.frames)
    encoder = AudioEncoder(AUDIO)
    for row in range(2):
        for block in range(2):
            frames = int(given.frames[row, block])
            tokens, _ = encoder.apply(
                {"params": params["audio_encoder"]}, given.mel[row, block][None], jnp.array([frames])
            )
            tokens, real = np.asarray(tokens[0]), audio_tokens(frames)
            tokens = tokens / np.sqrt((tokens**2).mean(axis=-1, keepdims=True) + 1e-6)
            expected = (tokens @ probe["kernel"] + probe["bias"]).reshape(2 * len(tokens), -1)
            places = slice(block * len(expected), (block + 1) * len(expected))
            np.testing.assert_allclose(scores[row, places], expected, atol=1e-4, rtol=1e-4)
            assert silent[row, places].tolist() == [0] * 2 * real + [1] * (len(expected) - 2 * real)


def test_the_probe_learns_beside_the_encoder_and_stays_out_of_the_model():
    freeze = ["^thinker/"]
    step = Trainer(CONFIG, TASK, OPTIMIZER, make_mesh(jax.devices()[:1]), freeze=freeze)
    state, given, reports = step.start(PARAMS), batch(), []
    first = jax.tree.map(np.asarray, state.params)
    for _ in range(6):
        state, report = step(state, step.put(given))
        reports.append(jax.tree.map(float, report))
    assert reports[-1]["part/phones"] < 0.8 * reports[0]["part/phones"]
    for report in reports:
        assert report["loss"] == pytest.approx(report["part/phones"] + TASK.talk_weight * report["part/talk"], rel=1e-4)
    moved = {path for path, value in state.params.items() if not np.array_equal(value, first[path])}
    assert {path.split("/")[0] for path in moved} == {"audio_encoder", "probe"}
    assert {path for path in moved if path.startswith("probe/")} == set(TASK.auxiliary)
    assert set(step.kept(state)) == set(step.merged(state)) == {"thinker", "audio_encoder"}


def test_data_goes_on_with_the_same_recordings():
    def taken(data, count):
        found = iter(data)
        return [next(found)[0] for _ in range(count)]

    whole = taken(with_recordings(NumberedLoader(), heard(), STAGE, AUDIO.block_frames, 5), 4)
    first, again = (with_recordings(NumberedLoader(), heard(), STAGE, AUDIO.block_frames, 5) for _ in range(2))
    taken(first, 2)
    again.restore(json.loads(json.dumps(first.state())))
    for expected, found in zip(whole[2:], taken(again, 2), strict=True):
        assert found.talk == expected.talk
        for name in ("mel", "frames", "phones"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not np.array_equal(whole[0].mel, whole[1].mel)
    with pytest.raises(DataError, match="it began with .* Give the recordings of then"):
        with_recordings(NumberedLoader(), heard(6), STAGE, AUDIO.block_frames, 5).restore(first.state())
    with pytest.raises(DataError, match="it was stopped by an earlier program"):
        again.restore({"step": 2})
    again.seek(1)
    np.testing.assert_array_equal(taken(again, 1)[0].mel, whole[1].mel)
    again.close()
    assert again._loader.closed


def test_the_configuration_is_of_this_stage_and_trains_the_encoder_alone(monkeypatch):
    config = load_config(CONFIGS / "phones.py")
    task = config.stage.task(config, CONFIG, ("a", "b"))
    assert isinstance(task, PhonesTask) and isinstance(config.stage, PhonesStage)
    trained = Trainer(CONFIG, task, config.optimizer, make_mesh(jax.devices()[:1]), freeze=config.freeze).trained
    assert {path.split("/")[0] for path in trained} == {"audio_encoder", "probe"}
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, shape=RowShape(tokens=512)))
    with pytest.raises(ConfigError, match="data.shape.audio_blocks is 0, and this stage learns by it"):
        config.stage.task(without, CONFIG, ("a",))
    with pytest.raises(ConfigError, match="nothing that is held out"):
        config.stage.task(dataclasses.replace(config, eval_every=10, held_out=config.data.sources), CONFIG, ("a",))
    with pytest.raises(ConfigError, match="accumulate = 2: this stage takes one batch a step"):
        config.stage.task(dataclasses.replace(config, accumulate=2), CONFIG, ("a",))
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="made for one device, and there are 2"):
        config.stage.task(config, CONFIG, ("a",))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clips": 0}, "clips = 0 and .* must be at least 1"),
        ({"blocks": 0}, "blocks = 0 must be at least 1"),
        ({"digits": 0.0}, "digits = 0 must be above 0"),
        ({"digits": float("nan")}, "digits = nan must be above 0"),
        ({"talk_weight": -1.0}, "talk_weight = -1 at least 0"),
        ({"recordings": ()}, "stage.recordings is empty"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PhonesStage(**wrong)


def test_a_run_goes_on_where_it_was_and_its_model_has_no_probe(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _recorded(tmp_path, {"nine": 1.0, "tiger walks": 1.5})
    usual = load_config(CONFIGS / "phones.py")

    def config(output, steps):
        sources, shape = (SourceConfig("audio_text.jsonl"),), RowShape(tokens=256, audio_blocks=2)
        data = dataclasses.replace(usual.data, sources=sources, shape=shape, workers=0)
        stage = dataclasses.replace(STAGE, recordings=("audio_text.jsonl",))
        return dataclasses.replace(
            usual, stage=stage, checkpoint=str(tiny_checkpoint[1]), output=output, data=data,
            optimizer=dataclasses.replace(OPTIMIZER, total_steps=steps), freeze=("^thinker/",), save_every=2,
        )  # fmt: skip

    check_run(config, "audio_encoder")
