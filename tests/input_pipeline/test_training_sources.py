"""Sources know their examples' sizes ahead, survive the trip to other processes, and report what they cannot use."""

import importlib.util
import io
import json
import multiprocessing
import os
import pickle
from dataclasses import astuple, replace

import numpy as np
import pytest
from PIL import Image

from input_pipeline import source_index
from input_pipeline.example_context import KINDS, sizes_of
from input_pipeline.loader import Loader
from input_pipeline.sources import JsonlSource, TfdsSource
from input_pipeline.training_batch import RowShape
from omni_jax.errors import DATA_ERROR_KINDS, DataError
from tests.input_pipeline.media_files import picture
from tests.input_pipeline.training_data import (
    CONFIG,
    ROOM,
    assistant,
    context,
    learned,
    mixed_lines,
    tokenizer,
    user,
    write_lines,
    write_media,
)

CONTEXT = context()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    return write_lines(folder / "mixed.jsonl", mixed_lines())


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    return JsonlSource(data, CONTEXT, ROOM, cache=tmp_path_factory.mktemp("cache"))


def equal(a, b):
    """Whether two examples are the same to the last bit."""
    return pickle.dumps(a) == pickle.dumps(b) or (
        a.name == b.name
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("token_ids", "position_ids", "weights"))
        and all(np.array_equal(x, y) for x, y in zip(a.audio, b.audio, strict=True))
        and all(np.array_equal(x.pixels, y.pixels) for x, y in zip(a.vision, b.vision, strict=True))
        and [s.codes.tolist() for s in a.speech] == [s.codes.tolist() for s in b.speech]
    )


def test_sizes_are_those_of_the_examples(source):
    assert len(source) == 5 and source.total == 8
    assert source.sizes.dtype == np.int32 and source.sizes.shape == (5, len(KINDS))
    for i, row in enumerate(source.sizes):
        assert tuple(row) == astuple(sizes_of(source.example(i), CONFIG))
    assert (source.sizes > 0).any(0)[:4].all()
    assert [source.example(i).name for i in range(5)] == [f"mixed.jsonl:{n}" for n in (1, 2, 4, 6, 8)]


def test_rejected_lines_are_listed_with_kind_and_reason(source):
    assert [(each.name, each.kind) for each in source.rejected] == [
        ("mixed.jsonl:3", "roles"),
        ("mixed.jsonl:5", "malformed"),
        ("mixed.jsonl:7", "corrupt media"),
    ]
    assert "broken.png" in source.rejected[2].reason
    assert all(each.kind in DATA_ERROR_KINDS and each.name not in each.reason for each in source.rejected)


def test_long_conversations_become_several_examples(data, source, tmp_path):
    tight = JsonlSource(data, CONTEXT, replace(ROOM, tokens=100), cache=tmp_path)
    assert [tight.example(i).name for i in range(len(tight))][2:4] == [
        "mixed.jsonl:4, exchange 1",
        "mixed.jsonl:4, exchange 2",
    ]
    assert [learned(tight.example(i)) for i in (2, 3)] == ["A beep.<|im_end|>", "Yes.<|im_end|>"]
    assert tight.fingerprint != source.fingerprint
    assert tight.sizes[:, 0].max() <= 100


def _examples(source, indices, queue):
    queue.put([source.example(i) for i in indices])


def test_a_source_works_in_another_process(source):
    source.example(0)  # its file is open here
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=_examples, args=(source, range(len(source)), queue))
    process.start()
    theirs = queue.get(timeout=60)
    process.join()
    assert all(equal(source.example(i), theirs[i]) for i in range(len(source)))


def test_measuring_is_done_once(data, source, tmp_path, monkeypatch):
    reports = []
    first = JsonlSource(data, CONTEXT, ROOM, cache=tmp_path, progress=lambda *report: reports.append(report))
    assert reports == [("measuring samples", 8, 8)]

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr("input_pipeline.sources.build_index", never)
    again = JsonlSource(data, CONTEXT, ROOM, cache=tmp_path)
    assert again.fingerprint == first.fingerprint == source.fingerprint
    assert (again.rejected, again.total) == (first.rejected, 8)
    np.testing.assert_array_equal(again.sizes, first.sizes)
    for change in (dict(context=context(train_on="last")), dict(limit=replace(ROOM, tokens=4000))):
        with pytest.raises(AssertionError, match="measured again"):
            JsonlSource(data, **{"context": CONTEXT, "limit": ROOM, **change}, cache=tmp_path)


def test_a_changed_file_is_measured_anew(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one two"}])
    before = JsonlSource(file, CONTEXT, ROOM)
    assert [path.parent.name for path in tmp_path.rglob("*.npz")] == [".omni_jax"]
    write_lines(file, [{"text": "one two"}, {"text": "three"}])
    after = JsonlSource(file, CONTEXT, ROOM)
    assert (len(before), len(after)) == (1, 2) and before.fingerprint != after.fingerprint


def test_a_damaged_cache_is_made_anew(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one two"}])
    first = JsonlSource(file, CONTEXT, ROOM)
    (kept,) = tmp_path.rglob("*.npz")
    whole = kept.read_bytes()
    damaged = [whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :] for place in range(0, len(whole), 7)]
    for content in (b"", whole[:100], b"garbage", *damaged):
        kept.write_bytes(content)
        assert JsonlSource(file, CONTEXT, ROOM).fingerprint == first.fingerprint


def test_the_place_of_the_data_does_not_matter_to_the_fingerprint(tmp_path):
    sources = [
        JsonlSource(write_lines(write_media(tmp_path / place) / "mixed.jsonl", mixed_lines()), CONTEXT, ROOM)
        for place in ("here", "there")
    ]
    assert sources[0].fingerprint == sources[1].fingerprint
    (tmp_path / "there" / "cat.png").unlink()
    third = JsonlSource(tmp_path / "there" / "mixed.jsonl", CONTEXT, ROOM, cache=tmp_path / "fresh")
    assert third.fingerprint != sources[0].fingerprint


def test_workers_measure_the_same(data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(source_index, "_CHUNK", 3)
    several = JsonlSource(data, CONTEXT, ROOM, cache=tmp_path, workers=2)
    np.testing.assert_array_equal(several.sizes, source.sizes)
    assert (several.rejected, several.fingerprint) == (source.rejected, source.fingerprint)


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one two"}])
    assert len(JsonlSource(file, CONTEXT, ROOM, cache=file / "no_folder")) == 1


def test_media_that_went_bad_since_are_told(tmp_path):
    folder = write_media(tmp_path / "data")
    source = JsonlSource(write_lines(folder / "mixed.jsonl", mixed_lines()), CONTEXT, ROOM)
    os.remove(folder / "cat.png")
    with pytest.raises(DataError, match=r"mixed\.jsonl:1: message 1, item 1: .*cat\.png: no such file") as caught:
        source.example(0)
    assert caught.value.kind == "missing media"
    assert pickle.loads(pickle.dumps(caught.value)).kind == "missing media"
    assert learned(source.example(2)).startswith("A beep.")


def test_data_of_which_nothing_can_be_used(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", ["{", {"messages": []}])
    with pytest.raises(DataError, match=r"none of 2 samples can be used. The first: a\.jsonl:1: not JSON"):
        JsonlSource(file, CONTEXT, ROOM)


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


def write_dataset(folder, count=4):
    """A prepared dataset of the catalogue's form, written without TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "question": tfds.features.Text(),
            "sound": tfds.features.Tensor(shape=(None,), dtype=np.int16),
        }
    )
    features.save_config(folder)
    writer = ArrayRecordWriter(str(folder / "toy-train.array_record-00000-of-00001"), "group_size:1")
    for i in range(count):
        png, example = io.BytesIO(), tf_example_pb2.Example()
        Image.fromarray(picture(60, 90, seed=i)).save(png, "PNG")
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        example.features.feature["question"].bytes_list.value.append(f"Question {i}?".encode())
        example.features.feature["sound"].int64_list.value.extend([100 * i] * 4000)
        writer.write(example.SerializeToString())
    writer.close()
    split = {
        "name": "train",
        "shardLengths": [str(count)],
        "numBytes": "1000",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    about = {"name": "toy", "version": "1.0.0", "fileFormat": "array_record", "moduleName": "toy", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


def as_conversation(record):
    """What the dataset's user writes."""
    items = [
        {"type": "image", "image": record["image"]},
        {"type": "audio", "audio": (record["sound"], 16000)},
        {"type": "text", "text": record["question"].decode()},
    ]
    return {"messages": [user(items), assistant("An answer.")]}


def test_a_dataset_of_tfds(tmp_path):
    folder = write_dataset(tmp_path / "toy" / "1.0.0")
    source = TfdsSource(folder, "train", as_conversation, CONTEXT, ROOM, cache=tmp_path)
    again = pickle.loads(pickle.dumps(source))
    assert len(again) == 4 and again.name == "toy"
    for i in range(4):
        example = again.example(i)
        assert tuple(source.sizes[i]) == astuple(sizes_of(example, CONFIG))
        assert example.name == f"toy/train:{i}"
        assert f"Question {i}?" in tokenizer().decode(example.token_ids)
        assert (len(example.audio), len(example.vision)) == (1, 1)
    assert len(TfdsSource(folder, "train[1:3]", as_conversation, CONTEXT, ROOM, cache=tmp_path)) == 2


def test_a_function_that_no_other_process_can_import_is_used_in_workers(tmp_path, monkeypatch):
    """As that of a configuration file is."""
    (tmp_path / "config.py").write_text(
        "ANSWER = 'An answer.'\n"
        "def answer():\n    return {'role': 'assistant', 'content': ANSWER}\n"
        "def to_conversation(record):\n"
        "    return {'messages': [{'role': 'user', 'content': record['question'].decode()}, answer()]}\n"
    )
    spec = importlib.util.spec_from_file_location("_run_config_of_a_test", tmp_path / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(source_index, "_CHUNK", 2)
    args = write_dataset(tmp_path / "toy" / "1.0.0"), "train", module.to_conversation, CONTEXT, ROOM
    source = TfdsSource(*args, cache=tmp_path / "cache", workers=1)
    assert learned(source.example(3)) == "An answer.<|im_end|>"
    options = dict(rows=2, epochs=1, workers=1)
    with Loader([source], RowShape(tokens=256), CONFIG, **options) as loader:
        names = [name for _, report in loader for name in report.names]
    assert sorted(names) == [f"toy/train:{i}" for i in range(4)]


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be opened as a dataset"):
        TfdsSource(tmp_path, "train", as_conversation, CONTEXT, ROOM, cache=tmp_path)
    folder = write_dataset(tmp_path / "toy" / "1.0.0", 1)
    with pytest.raises(DataError, match="split validation"):
        TfdsSource(folder, "validation", as_conversation, CONTEXT, ROOM, cache=tmp_path)


def test_what_reads_tfds_does_not_need_tensorflow(tmp_path):
    import subprocess
    import sys

    folder = write_dataset(tmp_path / "toy" / "1.0.0", 1)
    program = (
        "import sys\n"
        "from tests.input_pipeline.test_training_sources import *\n"
        f"source = TfdsSource({str(folder)!r}, 'train', as_conversation, CONTEXT, RowShape(4096, 9, 999), "
        f"cache={str(tmp_path)!r})\nprint(len(source.example(0).vision), 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "False"], done.stderr
