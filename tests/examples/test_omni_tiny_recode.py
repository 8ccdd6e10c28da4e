"""Codes of a tokenizer that has learnt more begin as those that stood in their places."""

import numpy as np
import pytest

from examples.omni_tiny import recode
from examples.omni_tiny.files import write_lines
from input_pipeline.jsonl import JsonLines
from omni_jax.errors import DataError


def coded(path, *recordings):
    write_lines(path, [{"audio": f"{place}.flac", "codes": codes} for place, codes in enumerate(recordings)])
    return JsonLines(path)


def test_how_often_a_code_stands_where_another_stood(tmp_path):
    before = coded(tmp_path / "before.jsonl", [1, 1, 2, 3], [2, 2])
    after = coded(tmp_path / "after.jsonl", [4, 4, 4, 1], [4, 0])
    shares = recode.old_shares(before, after, 6)
    np.testing.assert_allclose(shares[4], [0, 0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(shares[1], np.eye(6)[3])
    np.testing.assert_allclose(shares[0], np.eye(6)[2])
    assert not shares[[2, 3, 5]].any()


def test_a_code_begins_as_the_mean_of_the_old_ones_and_all_else_stays():
    shares = np.zeros((4, 4))
    shares[0, 1] = shares[2, 3] = 1
    shares[1, [0, 2]] = 0.5
    table = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2  # two rows are no codes
    found = recode.recoded(table, shares)
    np.testing.assert_allclose(found[:3], [table[1], (table[0] + table[2]) / 2, table[3]])
    assert (found[3:] == table[3:]).all()
    assert (recode.recoded(table, shares, kept=(0,))[0] == table[0]).all()
    assert recode.recoded(table.astype(np.float16), shares).dtype == np.float16


def test_nothing_changes_where_the_tokenizer_has_not(tmp_path):
    lines = coded(tmp_path / "lines.jsonl", [1, 1, 2, 3], [2, 2])
    table = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    np.testing.assert_allclose(recode.recoded(table, recode.old_shares(lines, lines, 5)), table, rtol=1e-6)


@pytest.mark.parametrize("others", [[[1, 1]], [[1, 1], [2, 2, 2]]])
def test_other_recordings_are_refused(tmp_path, others):
    before = coded(tmp_path / "before.jsonl", [1, 1], [2, 2])
    with pytest.raises(DataError, match="Code the same ones"):
        recode.old_shares(before, coded(tmp_path / "after.jsonl", *others), 5)
