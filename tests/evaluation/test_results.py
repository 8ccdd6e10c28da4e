"""The file of results: goes on, cuts off half a line, knows other settings."""

import pytest

from omni_jax.errors import DataError
from omni_jax.evaluation.results import ResultsFile, read_results

SETTINGS = {"task": "a", "decoding": {"top_k": 1}, "pair": (1, 2)}


def test_a_run_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    ResultsFile(path, SETTINGS).add([{"index": 0, "text": "é"}, {"index": 3}])
    with open(path, "ab") as stream:
        stream.write(b'{"index": 4, "te')
    file = ResultsFile(path, SETTINGS)
    assert set(file.rows) == {0, 3}
    file.add([{"index": 4}])
    settings, rows = read_results(path)
    assert list(rows) == [0, 3, 4] and settings["task"] == "a"


def test_other_settings_are_named(tmp_path):
    ResultsFile(tmp_path / "a.jsonl", SETTINGS)
    with pytest.raises(DataError, match=r"another decoding.top_k \(1, now 2\)\.\n.*--overwrite"):
        ResultsFile(tmp_path / "a.jsonl", SETTINGS | {"decoding": {"top_k": 2}})


@pytest.mark.parametrize("content", ["", "[]\n", '{"settings": {}}\n{}\n', '{"settings": {}}\nx\n{"index": 1}\n'])
def test_damage_is_told(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="a.jsonl"):
        read_results(tmp_path / "a.jsonl")


def test_no_results(tmp_path):
    with pytest.raises(DataError, match="omni-jax eval"):
        read_results(tmp_path / "a.jsonl")
