"""Batches of recordings: each once an epoch, whoever makes them; what cannot be used costs its own row only."""

import dataclasses
import json
import logging
from collections import Counter

import numpy as np
import pytest
import soundfile

from input_pipeline.clip_kinds import CodedClips, SoundClips, TranscribedClips
from input_pipeline.clips import Clips
from input_pipeline.jsonl import JsonLines
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.presets import preset, speech_tokenizer_preset
from tests.input_pipeline.clip_data import CODES, write_clips, write_lines
from tests.input_pipeline.media_files import tone

MODEL = dataclasses.replace(preset("tiny"), speech_tokenizer_config=speech_tokenizer_preset("tiny", "inversion"))
COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """clips.jsonl tells of five recordings; beside them lies sound that cannot be used."""
    folder = tmp_path_factory.mktemp("clips")
    write_lines(folder / "clips.jsonl", write_clips(folder, COUNT))
    (folder / "noise.wav").write_bytes(b"RIFF" + bytes(range(200)))
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "short.wav", tone(0.01, 16_000), 16_000)
    soundfile.write(folder / "long.wav", tone(3.0, 16_000), 16_000)
    return folder


def clips(file, kind=CodedClips, *, rows=2, augment=False, **options):
    kind = kind(MODEL, ProcessorConfig(), seconds=2.0, augment=augment)
    return Clips([JsonLines(file)], kind, rows=rows, **options)


def drained(loader, steps=None):
    with loader:
        return [each for _, each in zip(range(steps or 10**6), loader)]


def same(ours, theirs):
    """Two lists of (batch, report), to the last bit; how long was waited aside."""
    assert len(ours) == len(theirs)
    for (batch, report), (other, expected) in zip(ours, theirs):
        for field in dataclasses.fields(batch):
            np.testing.assert_array_equal(getattr(batch, field.name), getattr(other, field.name))
        assert dataclasses.replace(report, waited=None) == dataclasses.replace(expected, waited=None)


def names(made):
    return [name for _, report in made for name in report.names]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]


def with_bad(folder, name, *bad, good=COUNT):
    """A file of good recordings with bad ones in between."""
    lines = (lines_of(folder) * good)[:good]
    for place, line in enumerate(bad):
        lines.insert(2 * place + 1, {**lines[0], "audio": line} if isinstance(line, str) else line)
    return write_lines(folder / name, lines)


# Order


def test_each_epoch_brings_every_recording_once_in_a_new_order_and_the_last_step_is_filled_up(folder):
    made = drained(clips(folder / "clips.jsonl", epochs=3))
    assert len(made) == 8 == clips(folder / "clips.jsonl", epochs=3).steps
    epochs = [tuple(names(made)[start : start + COUNT]) for start in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == [f"clips.jsonl:{i + 1}" for i in range(COUNT)] for epoch in epochs)
    assert len(set(epochs)) == 3
    batch, report = made[-1]
    assert report.examples == 1 and report.tokens == CODES and report.skipped == ()
    assert batch.frames[0].any() and not batch.frames[1].any() and (batch.codes[1] == -1).all()


def test_a_set_smaller_than_a_batch_is_one_step(folder):
    ((batch, report),) = drained(clips(folder / "clips.jsonl", rows=8, epochs=1, in_order=True))
    assert batch.mel.shape[0] == 8 and report.examples == COUNT and report.tokens == COUNT * CODES
    np.testing.assert_array_equal(batch.frames.sum(axis=1), [50] * COUNT + [0] * 3)


@pytest.mark.parametrize("kind", [CodedClips, TranscribedClips, SoundClips])
def test_in_order_nothing_is_left_to_chance(folder, kind):
    """As held-out data is read: not the sound, not the order, whatever the seed."""
    plain = drained(clips(folder / "clips.jsonl", kind, epochs=1, in_order=True))
    assert names(plain) == [f"clips.jsonl:{i + 1}" for i in range(COUNT)]
    same(drained(clips(folder / "clips.jsonl", kind, epochs=1, in_order=True, augment=True, seed=9)), plain)


def test_a_run_without_epochs_has_no_end(folder):
    endless = clips(folder / "clips.jsonl", rows=4)
    assert endless.steps is None
    counts = Counter(names(drained(endless, 10)))
    assert set(counts.values()) == {8}


def test_several_files_are_one_set(folder):
    files = [
        JsonLines(write_lines(folder / f"{name}.jsonl", lines_of(folder)[:count]))
        for name, count in (("x", 2), ("y", 3))
    ]
    kind = CodedClips(MODEL, ProcessorConfig(), seconds=2.0)
    expected = ["x.jsonl:1", "x.jsonl:2", "y.jsonl:1", "y.jsonl:2", "y.jsonl:3"]
    assert names(drained(Clips(files, kind, rows=2, epochs=1, in_order=True))) == expected
    mixed = names(drained(Clips(files, kind, rows=2, epochs=1)))
    assert sorted(mixed) == expected and mixed != expected


# Resuming, hosts, workers


@pytest.fixture(scope="module")
def whole(folder):
    """The run that others are compared with: augmented sound, 3 epochs, made in this process."""
    return drained(clips(folder / "clips.jsonl", augment=True, epochs=3))


def test_worker_processes_go_on_with_the_same_batches(folder, whole):
    first = clips(folder / "clips.jsonl", augment=True, epochs=3)
    drained(first, 3)
    state = json.loads(json.dumps(first.state()))
    assert state["step"] == 3  # what was made ahead does not count
    second = clips(folder / "clips.jsonl", augment=True, epochs=3, workers=2)
    second.restore(state)
    made = drained(second)
    same(made, whole[3:])
    assert all(np.asarray(leaf).flags.owndata for batch, _ in made for leaf in vars(batch).values())
    assert second.state()["step"] == 8


def test_a_run_that_has_ended_can_be_gone_through_again(folder, whole):
    again = clips(folder / "clips.jsonl", augment=True, epochs=3)
    again.seek(5)
    same(drained(again), whole[5:])
    assert drained(again) == []
    again.seek(7)
    same(drained(again), whole[7:])


@pytest.mark.parametrize(("hosts", "accumulate"), [(2, 1), (1, 2)])
def test_hosts_share_the_rows_of_a_step_and_agree_on_its_place(folder, hosts, accumulate):
    file, rows = folder / "clips.jsonl", 4 // accumulate
    together = drained(clips(file, rows=4, augment=True, epochs=3))
    each = rows // hosts
    parts = [clips(file, rows=rows, accumulate=accumulate, own=slice(h * each, (h + 1) * each), augment=True, epochs=3)
             for h in range(hosts)]  # fmt: skip
    made = [drained(part) for part in parts]
    for step, (batch, report) in enumerate(together):
        np.testing.assert_array_equal(np.concatenate([part[step][0].mel for part in made]), batch.mel)
        assert sum((part[step][1].names for part in made), ()) == report.names
    states = [{**part.state(), "seen": None} for part in parts]
    assert states == states[:1] * hosts and states[0]["step"] == len(together)


def test_waiting_is_told_of_the_first_batch_which_is_never_ready(folder):
    assert drained(clips(folder / "clips.jsonl"), 1)[0][1].waited > 0


def test_changed_data_is_refused_by_what_has_changed(folder):
    lines = lines_of(folder)
    state = clips(folder / "clips.jsonl").state()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    same_name = elsewhere / "clips.jsonl"
    for change, words in (
        (lambda: clips(folder / "clips.jsonl", seed=1), "seed: was 0, is 1"),
        (lambda: clips(folder / "clips.jsonl", rows=3), "rows: was 2, is 3"),
        (lambda: clips(write_lines(same_name, lines[:4])), "source clips.jsonl: had 5 recordings, has 4"),
        (lambda: clips(write_lines(same_name, lines[::-1])), "source clips.jsonl: its lines"),
        (lambda: clips(write_lines(folder / "b.jsonl", lines)), r"sources: were \['clips.jsonl'\], are \['b.jsonl'\]"),
    ):
        with pytest.raises(DataError, match=f"not what this run was begun with.*\n  {words}\n"):
            change().restore(state)
    clips(write_lines(same_name, lines)).restore(state)  # the same lines elsewhere


@pytest.mark.parametrize("epochs", [2, 5, None])
def test_a_run_may_be_made_longer_or_shorter_until_the_earlier_end(folder, whole, epochs):
    """3 epochs of 5 are 8 steps, the last of them not full."""
    last = {2: 5, 5: 7, None: 7}[epochs]
    state = clips(folder / "clips.jsonl", augment=True, epochs=3).state()
    other = clips(folder / "clips.jsonl", augment=True, epochs=epochs)
    other.restore(state | {"step": last})
    if epochs is not None:
        counts = Counter(names(whole[:last]) + names(drained(other)))
        assert set(counts.values()) == {epochs} and len(counts) == COUNT
    with pytest.raises(DataError, match=f"epochs: were 3, are {epochs}. After step {last} .*--allow-change data"):
        other.restore(state | {"step": last + 1})


def test_settings_that_cannot_be_are_refused(folder):
    for options, words in (
        (dict(own=slice(1, 3)), "no part of 2"),
        (dict(seed=-1), "seed = -1"),
        (dict(epochs=0), "epochs = 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            clips(folder / "clips.jsonl", **options)


# What cannot be used


def test_a_bad_recording_leaves_its_row_empty_and_all_others_where_they_were(folder, caplog):
    """Unreadable, missing, empty, too short for a mel: whatever it is, it is counted and told."""
    bad = ("noise.wav", "nowhere.wav", "empty.wav", {"audio": "short.wav", "codes": [1]})
    loader = clips(with_bad(folder, "bad.jsonl", *bad, good=20), rows=4, epochs=3)
    with caplog.at_level(logging.WARNING):
        made = drained(loader)
    for step, (batch, report) in enumerate(made):
        wanted = min(4, 3 * 24 - 4 * step)
        assert report.examples + len(report.skipped) == wanted
        assert (batch.frames.any(axis=1)).sum() == report.examples
        assert report.tokens == report.examples * CODES == (batch.codes >= 0).sum()
    assert Counter(names(made)) == {f"bad.jsonl:{i}": 3 for i in range(1, 25) if i not in (2, 4, 6, 8)}
    skipped = [each for _, report in made for each in report.skipped]
    assert Counter(each.name for each in skipped) == {f"bad.jsonl:{i}": 3 for i in (2, 4, 6, 8)}
    reasons = {each.name: each.reason for each in skipped}
    assert "nowhere.wav: no such file" in reasons["bad.jsonl:4"] and "at least 0.04 s" in reasons["bad.jsonl:8"]
    assert len(caplog.records) == 12 and f"skipped bad.jsonl:4: {reasons['bad.jsonl:4']}" in caplog.text
    assert loader.state()["seen"] == {"used": 60, "too_long": 0, "corrupt": 12}


def test_other_rows_stay_the_same_beside_a_bad_one(folder):
    lines = lines_of(folder)
    good = drained(clips(folder / "clips.jsonl", augment=True, epochs=1))
    bad = drained(clips(write_lines(folder / "one.jsonl", [{**lines[0], "audio": "noise.wav"}, *lines[1:]]),
                        augment=True, epochs=1))  # fmt: skip
    empty = 0
    for (ours, _), (theirs, _) in zip(bad, good, strict=True):
        for row in range(2):
            empty += bool(theirs.frames[row].any() and not ours.frames[row].any())
            assert not ours.frames[row].any() or np.array_equal(ours.mel[row], theirs.mel[row])
    assert empty == 1


def test_recordings_that_are_too_long_are_left_out_but_not_corrupt(folder, caplog):
    file = with_bad(folder, "long.jsonl", *["long.wav"] * 12, good=13)
    with caplog.at_level(logging.WARNING):
        made = drained(loader := clips(file, epochs=1, max_corrupt_share=0.0))
    assert sum(report.examples for _, report in made) == 13 and caplog.text.count("longer than the limit of 2 s") == 12
    assert loader.state()["seen"] == {"used": 13, "too_long": 12, "corrupt": 0}


def test_a_run_ends_when_more_than_the_stated_share_is_corrupt(folder):
    file = with_bad(folder, "many.jsonl", *["nowhere.wav"] * 6, good=11)
    assert len(drained(clips(file, epochs=2, rows=4, max_corrupt_share=0.5))) == 9
    file = with_bad(folder, "more.jsonl", *["nowhere.wav"] * 14, good=14)
    file = write_lines(folder / "more.jsonl", [*file.read_text().splitlines(), *[lines_of(folder)[0] | {"audio": "x"}]])
    with pytest.raises(DataError, match=r"of \d+ recordings could not be used, .*share of 0.5.*\n  more.jsonl:\d+: "):
        drained(clips(file, epochs=3, max_corrupt_share=0.1))


def test_what_was_seen_before_a_stop_counts_afterwards(folder):
    """Two bad ones of the first ten after a stop are no large share of a hundred."""
    file = with_bad(folder, "two.jsonl", *["nowhere.wav"] * 6, good=6)
    loader = clips(file, max_corrupt_share=0.05)
    loader.restore(loader.state() | {"seen": {"used": 200, "too_long": 0, "corrupt": 1}})
    drained(loader, 6)
    assert loader.state()["seen"] == {"used": 206, "too_long": 0, "corrupt": 7}


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_a_run_that_is_stopped_again_and_again_ends_where_one_that_is_not_does(folder, share):
    file = with_bad(folder, "stopped.jsonl", *["nowhere.wav"] * 3, good=37)

    def ended(steps_at_a_time):
        state, made = clips(file, epochs=4, max_corrupt_share=share).state(), 0
        try:
            while True:
                loader = clips(file, epochs=4, max_corrupt_share=share)
                loader.restore(json.loads(json.dumps(state)))
                now = len(drained(loader, steps_at_a_time))
                state, made = loader.state(), made + now
                if now < steps_at_a_time:
                    return made
        except DataError:
            return "too much is corrupt"

    assert ended(9) == ended(10**6) == ("too much is corrupt" if share == 0.05 else 80)


def test_held_out_recordings_count_anew_each_time(folder):
    loader = clips(with_bad(folder, "held.jsonl", "nowhere.wav", good=19), epochs=1, in_order=True)
    with loader:
        for _ in range(8):
            loader.seek(0)
            assert len(list(loader)) == 10


@pytest.mark.parametrize("audio", ["nowhere.wav", "long.wav"])
def test_a_run_of_which_nothing_can_be_used_ends(folder, audio):
    lines = [line | {"audio": audio} for line in lines_of(folder)[:3]]
    with pytest.raises(DataError, match=r"None of 3 recordings can be used. The first:\n  none.jsonl:\d: "):
        drained(clips(write_lines(folder / "none.jsonl", lines)), 10)


def test_a_mistake_of_the_program_is_not_taken_for_a_bad_recording(folder, monkeypatch):
    def broken(*arguments, **options):
        raise ValueError("a mistake")

    monkeypatch.setattr("input_pipeline.speech_batch.coded_row", broken)
    with pytest.raises(ValueError, match="a mistake"):
        drained(clips(folder / "clips.jsonl"), 1)


def test_a_disk_that_fails_costs_the_recording(folder, monkeypatch):
    def broken(*arguments, **options):
        raise OSError(5, "Input/output error")

    file = with_bad(folder, "disk.jsonl", "nowhere.wav")
    loader = clips(file, epochs=1)
    monkeypatch.setattr("input_pipeline.clip_kinds.load_sound", broken)
    with pytest.raises(DataError, match="None of 6 recordings can be used.*\n.*Input/output error"):
        drained(loader)


# Lines


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ({"sound": 1}, 'not a recording, which is an object with "audio"'),
        ([1], "not a recording"),
        ({"audio": "0.wav"}, 'no "codes"'),
        ({"audio": "0.wav", "codes": [1, 128, 3]}, "code 128 at index 1, but the model has 128 codes"),
    ],
)
def test_bad_lines_are_told_before_the_run_begins_or_skipped_where_they_are_few(folder, line, words):
    file = write_lines(folder / "lines.jsonl", ["", line])
    with pytest.raises(DataError, match=f"None of 1 recordings can be used.*\n  lines.jsonl:2: {words}"):
        clips(file)
    made = drained(clips(write_lines(folder / "lines.jsonl", [*lines_of(folder), line]), epochs=1))
    (skipped,) = [each for _, report in made for each in report.skipped]
    assert skipped.name == "lines.jsonl:6" and words in skipped.reason
    many = write_lines(folder / "lines.jsonl", lines_of(folder) * 25 + [line] * 2)
    with pytest.raises(DataError, match="2 of 127 recordings could not be used, more than a share of 0.01"):
        clips(many)


def test_only_line_feeds_end_a_line(folder):
    """Other characters that some editors take for line ends stand in texts."""
    text = "One\u2028two\u0085three."
    lines = [{"audio": "0.wav", "text": text}, {"audio": "1.wav", "text": "Five."}]
    file = write_lines(folder / "odd.jsonl", lines)
    ((batch, report),) = drained(clips(file, TranscribedClips, epochs=1, in_order=True))
    assert report.names == ("odd.jsonl:1", "odd.jsonl:2") and (batch.text_ids[0] > 0).sum() == len(text.encode())
