"""A mesh over several TPU slices: only the data axis runs between them, and the rules stay the same."""

from compilers import compiled


def test_between_slices_only_the_data_axis_runs():
    found = compiled("tpu_slices.py", "libtpu")
    assert found["slices"] == [[0], [1]]
    assert found["between_slices"]
    assert found["refused"].startswith("There are 2 slices, which data = 1 does not divide over.")
