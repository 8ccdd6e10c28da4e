"""Codes of a tokenizer that has learnt more begin as those that stood in their places."""

import numpy as np
import pytest

from examples.omni_tiny import recode
from examples.omni_tiny.files import write_lines
from input_pipeline.jsonl import JsonLines
from omni_jax.errors import DataError


def coded(path, *recordings, names="abcdef"):
    write_lines(path, [{"audio": f"{name}.flac", "codes": codes} for name, codes in zip(names, recordings)])
    return JsonLines(path)


def test_how_often_a_code_stands_where_another_stood(tmp_path):
    before = coded(tmp_path / "before.jsonl", [1, 1, 2, 3], [2, 2])
    after = coded(tmp_path / "after.jsonl", [4, 4, 4, 1], [4, 0])
    wanted = np.zeros((6, 6))
    wanted[4, 1], wanted[4, 2], wanted[1, 3], wanted[0, 2] = 2, 2, 1, 1
    assert (recode.together(before, after, 6) == wanted).all()


def test_a_code_begins_as_the_mean_of_the_old_ones_and_all_else_stays():
    counts = np.zeros((4, 4))
    counts[0, 1], counts[2, 3], counts[1, 0], counts[1, 2] = 7, 1, 1, 3
    table = np.arange(12, dtype=np.float16).reshape(6, 2)  # two rows are no codes
    found = recode.recoded(table, counts)
    np.testing.assert_allclose(found[:3], [table[1], table[0] / 4 + table[2] * 0.75, table[3]])
    assert (found[3:] == table[3:]).all() and found.dtype == np.float32
    assert (recode.recoded(table, counts, kept=(0,))[0] == table[0]).all()
    with pytest.raises(DataError, match="cannot hold 4 codes"):
        recode.recoded(table[:3], counts)


def test_what_reads_and_says_codes_changes_and_nothing_else():
    rng = np.random.default_rng(0)
    talker = {
        "embed": {"embedding": rng.normal(size=(8, 3))},
        "codec_head": {"kernel": rng.normal(size=(5, 8))},
        "layers": {"kernel": rng.normal(size=(2, 2))},
    }
    parts = {"dit": {"codes": {"embedding": rng.normal(size=(7, 4))}, "output": rng.normal(size=3)}, "talker": talker}
    counts = np.zeros((6, 6))
    counts[0, 5] = counts[1, 2] = 1  # 0 and 1 are new; 2 to 5 come no more
    found = recode.with_codes(parts, counts)
    tables = found["dit"]["codes"]["embedding"], found["talker"]["embed"]["embedding"]
    np.testing.assert_allclose(tables[0][1], parts["dit"]["codes"]["embedding"][2], rtol=1e-6)
    np.testing.assert_allclose(tables[1][:2], talker["embed"]["embedding"][[5, 2]], rtol=1e-6)
    np.testing.assert_allclose(
        found["talker"]["codec_head"]["kernel"][:, :2], talker["codec_head"]["kernel"][:, [5, 2]], rtol=1e-6
    )
    assert (tables[0][[0, 2, 3, 4, 5, 6]] == parts["dit"]["codes"]["embedding"][[0, 2, 3, 4, 5, 6]].astype("f4")).all()
    assert (tables[1][2:] == talker["embed"]["embedding"][2:].astype("f4")).all()
    assert (found["talker"]["codec_head"]["kernel"][:, 2:] == talker["codec_head"]["kernel"][:, 2:].astype("f4")).all()
    assert found["dit"]["output"] is parts["dit"]["output"] and found["talker"]["layers"] is talker["layers"]


def test_nothing_changes_where_the_tokenizer_has_not(tmp_path):
    lines = coded(tmp_path / "lines.jsonl", [1, 1, 2, 3], [2, 2])
    table = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    np.testing.assert_allclose(recode.recoded(table, recode.together(lines, lines, 5)), table, rtol=1e-6)


@pytest.mark.parametrize(
    "others, names, said",
    [
        ([[1, 1]], "ab", "after.jsonl 1. Code the same ones"),
        ([[1, 1], [2, 2, 2]], "ab", "after.jsonl:2 is no recording of before.jsonl:2"),
        ([[1, 1], [2, 2]], "ba", "after.jsonl:1 is no recording of before.jsonl:1"),
        ([[1, 1], [2, 5]], "ab", "after.jsonl:2: code 5 .* has 5 codes"),
        ([[1, 1], []], "ab", "after.jsonl:2: no .codes., a list"),
    ],
)
def test_other_recordings_are_refused(tmp_path, others, names, said):
    before = coded(tmp_path / "before.jsonl", [1, 1], [2, 2])
    with pytest.raises(DataError, match=said):
        recode.together(before, coded(tmp_path / "after.jsonl", *others, names=names), 5)
