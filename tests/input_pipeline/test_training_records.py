"""Prepared shards hold what the JSON lines give, whoever makes them and however often they are stopped."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import pytest

from input_pipeline.example_context import ExampleContext
from input_pipeline.jsonl import JsonLines
from input_pipeline.prepare_shards import Preparation, begin, make_shard, make_shards, report_of
from input_pipeline.records import RecordSource
from input_pipeline.sources import JsonlSource
from input_pipeline.training_batch import RowShape
from omni_jax.errors import DataError
from tests.input_pipeline.test_training_sources import equal
from tests.input_pipeline.training_data import (
    CONFIG,
    PROCESSOR,
    ROOM,
    context,
    mixed_lines,
    tokenizer,
    write_lines,
    write_media,
)

CONTEXT = context()
TIGHT = replace(ROOM, tokens=100)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    return write_lines(folder / "mixed.jsonl", mixed_lines() * 3)


def preparation(data, folder, *, limit=TIGHT, shards=4, context=CONTEXT):
    made = Preparation(JsonLines(data), context, limit, Path(folder), shards)
    begin(made)
    return made


def prepared(data, folder, **options):
    made = preparation(data, folder, **options)
    return made, make_shards(made, range(made.shards))


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    prepared(data, folder)
    return folder


def test_records_give_the_examples_of_the_lines(data, shards, tmp_path):
    records = pickle.loads(pickle.dumps(RecordSource(shards, CONTEXT)))
    lines = JsonlSource(data, CONTEXT, TIGHT, cache=tmp_path)
    assert len(records) == len(lines) == 18
    np.testing.assert_array_equal(records.sizes, lines.sizes)
    order = np.random.default_rng(0).permutation(len(records))
    assert all(equal(records.example(int(i)), lines.example(int(i))) for i in order)
    assert lines.conversation(1) == records.conversation(1) == {"text": "A plain text, to be learned as it is."}


def test_media_travel_with_the_records(data, shards, tmp_path):
    moved = shutil.copytree(shards, tmp_path / "elsewhere")
    hidden = data.parent.rename(data.parent.with_name("hidden"))
    try:
        records = RecordSource(moved, CONTEXT)
        films = [i for i, row in enumerate(records.sizes) if row[2] > 24]
        assert films and all(records.example(i).vision for i in films)
        assert records.fingerprint == RecordSource(shards, CONTEXT).fingerprint
    finally:
        hidden.rename(data.parent)


def test_a_record_keeps_the_encoded_bytes(data, shards):
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(shards / "data-00000-of-00004.array_record"))
    record = msgpack.unpackb(reader.read([0])[0])
    reader.close()
    assert (record["name"], len(record["sizes"])) == ("mixed.jsonl:1", 5)
    item = record["conversation"]["messages"][0]["content"][0]
    assert item == {"type": "image", "image": (data.parent / "cat.png").read_bytes()}


def test_the_report_names_every_rejected_line(data, tmp_path):
    report = report_of(*prepared(data, tmp_path / "shards"))
    numbers = [n for start in (0, 8, 16) for n in (start + 3, start + 5, start + 7)]
    assert [each["name"] for each in report["rejected"]] == [f"mixed.jsonl:{n}" for n in numbers]
    assert report["rejected_kinds"] == {"roles": 3, "malformed": 3, "corrupt media": 3}
    assert (report["lines"], report["examples"], report["rejected_lines"]) == (24, 18, 9)
    assert report["rejected_share"] == 9 / 24
    assert report["totals"]["tokens"] == int(RecordSource(tmp_path / "shards", CONTEXT).sizes[:, 0].sum())


def test_any_number_of_makers_gives_the_same_files(data, shards, tmp_path):
    expected = content(shards)
    two = preparation(data, tmp_path / "two")
    make_shards(two, range(4), workers=2)
    assert content(tmp_path / "two") == expected
    parts = preparation(data, tmp_path / "parts")
    make_shards(parts, [3, 1])
    assert not (tmp_path / "parts" / "index.json").exists()
    with pytest.raises(DataError, match=r"index\.json is missing. Run omni-jax prepare, all of its parts"):
        RecordSource(tmp_path / "parts", CONTEXT)
    make_shards(preparation(data, tmp_path / "parts"), [0, 2])
    assert content(tmp_path / "parts") == expected


def test_a_shard_can_be_made_by_anything_that_calls_a_function(data, shards, tmp_path):
    made = preparation(data, tmp_path / "shards")
    work = pickle.loads(pickle.dumps(partial(make_shard, made)))  # as Beam would send it
    markers = [work(shard) for shard in (2, 0, 1, 3)]
    assert sum(marker["count"] for marker in markers) == 18
    make_shards(made, range(4))
    assert content(tmp_path / "shards") == content(shards)


def test_finished_shards_are_not_made_again(data, shards, tmp_path, monkeypatch):
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / "data-00002-of-00004.json").unlink()  # killed between the shard and its marker
    os.truncate(folder / "data-00001-of-00004.array_record", 100)
    (folder / "index.json").unlink()
    from input_pipeline import prepare_shards

    made, write = [], prepare_shards._write
    monkeypatch.setattr(
        prepare_shards, "_write", lambda p, stretch, path: made.append(stretch[0]) or write(p, stretch, path)
    )
    prepared(data, folder)
    assert made == [6, 12]
    assert content(folder) == content(shards)


def prepare_slowly(data, folder):
    """What the process that is killed runs: about a tenth of a second for each line."""
    from input_pipeline import prepare_shards

    records = prepare_shards._records
    prepare_shards._records = lambda *arguments: (time.sleep(0.1), records(*arguments))[1]
    prepared(Path(data), folder)


def test_killed_at_any_moment_it_goes_on(data, shards, tmp_path):
    folder = tmp_path / "shards"
    module = "tests.input_pipeline.test_training_records"
    program = f"from {module} import prepare_slowly\nprepare_slowly({str(data)!r}, {str(folder)!r})"
    seen = [0]
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            whole = len(list(folder.glob("data-*.json")))
            if whole > seen[-1] and list(folder.glob(".data-*")):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(len(list(folder.glob("data-*.json"))))
        assert process.returncode == -signal.SIGKILL
    assert seen == sorted(seen) and seen[-1] > 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("data-*.array_record")}
    prepared(data, folder)
    kept = [path for path in before if path.with_suffix(".json").exists() and path.stat().st_mtime_ns == before[path]]
    assert len(kept) >= seen[-1]
    assert content(folder) == content(shards)


def test_workers_end_with_the_process_that_was_killed(data, tmp_path):
    program = (
        "import os, time\nfrom input_pipeline.processes import spawned\n"
        "if __name__ == '__main__':\n"
        "    pool = spawned(1, print)\n    print(pool.submit(os.getpid).result(), flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True, env=environment
    )
    lines = iter(process.stdout.readline, "")
    worker = int(next(line for line in lines if line.strip()))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{worker}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()


def test_other_data_or_options_want_another_folder(data, shards, tmp_path):
    with pytest.raises(DataError, match=r"another limit\.tokens"):
        preparation(data, shards, limit=ROOM)
    with pytest.raises(DataError, match=r"another source\.shards"):
        preparation(data, shards, shards=5)
    other = write_lines(tmp_path / "mixed.jsonl", mixed_lines())
    with pytest.raises(DataError, match=r"another source\.sha256"):
        preparation(other, shards)
    with pytest.raises(DataError, match=r"another context\.default_system"):
        preparation(data, shards, context=context(default_system=None))
    with pytest.raises(DataError, match="not empty, and omni-jax prepare did not make it"):
        preparation(data, data.parent)


def test_overwriting_makes_them_anew(data, shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    made = Preparation(JsonLines(data), CONTEXT, ROOM, folder, 2)
    begin(made, overwrite=True)
    make_shards(made, range(2))
    assert len(list(folder.glob("data-*"))) == 4
    assert len(RecordSource(folder, CONTEXT)) == 15


def test_records_must_be_read_as_they_were_prepared(shards):
    assert len(RecordSource(shards, context(train_on="last"))) == 18
    with pytest.raises(DataError, match="prepared with another default_system, so"):
        RecordSource(shards, context(default_system=None))
    other = replace(CONTEXT, processor=replace(PROCESSOR, image_max_pixels=784))
    with pytest.raises(DataError, match="another processor"):
        RecordSource(shards, other)
    mute = ExampleContext(tokenizer(), replace(CONFIG, talker_config=None), PROCESSOR)
    with pytest.raises(DataError, match="another num_codes"):
        RecordSource(shards, mute)
    silent = RecordSource(shards, replace(mute, with_speech=False), RowShape(4096, 64, 16384))
    assert len(silent) == 18 and not silent.sizes[:, 3:].any()
    assert not any(silent.example(i).speech for i in range(len(silent)))


def test_records_that_are_longer_than_the_rows_are_left_out(shards):
    whole = RecordSource(shards, CONTEXT)
    room = replace(ROOM, tokens=60)
    short = RecordSource(shards, CONTEXT, room)
    fits = whole.sizes[:, 0] <= 60
    np.testing.assert_array_equal(short.sizes, whole.sizes[fits])
    assert len(short.rejected) == int((~fits).sum()) > 0 and short.total == len(whole)
    assert all(len(short.example(i).token_ids) == short.sizes[i, 0] for i in range(len(short)))
    assert short.fingerprint != whole.fingerprint
    with pytest.raises(DataError, match="none of 18 records fits"):
        RecordSource(shards, CONTEXT, replace(ROOM, tokens=3))


def test_missing_and_damaged_shards(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    file = folder / "data-00003-of-00004.array_record"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"data-00003-of-00004\.array_record has \d+ bytes, not"):
        RecordSource(folder, CONTEXT)
    middle = len(good) // 2
    file.write_bytes(good[:middle] + bytes(64) + good[middle + 64 :])
    source = RecordSource(folder, CONTEXT)
    outcomes = []
    for i in range(len(source)):
        try:
            source.example(i)
            outcomes.append("good")
        except DataError as error:
            outcomes.append(error.kind)
    assert "corrupt media" in outcomes and outcomes[0] == "good"
    file.unlink()
    with pytest.raises(DataError, match=r"data-00003-of-00004\.array_record is missing"):
        RecordSource(folder, CONTEXT)
    (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json cannot be read"):
        RecordSource(folder, CONTEXT)


def test_more_shards_than_lines(tmp_path):
    data = write_lines(tmp_path / "a.jsonl", [{"text": "one two"}, "{", {"text": "three four"}])
    prepared(data, tmp_path / "shards", shards=7)
    source = RecordSource(tmp_path / "shards", CONTEXT)
    assert [source.example(i).name for i in range(len(source))] == ["a.jsonl:1", "a.jsonl:3"]
    assert len(json.loads((tmp_path / "shards" / "index.json").read_text())["shards"]) == 7


def test_a_full_disk_is_told_and_leaves_no_half_shard(data, tmp_path, monkeypatch):
    from input_pipeline import prepare_shards

    made = preparation(data, tmp_path / "shards")
    make_shard(made, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_shards, "_records", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device. Make room"):
        make_shards(made, range(4))
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert names == {"prepare.json", "data-00000-of-00004.array_record", "data-00000-of-00004.json"}
