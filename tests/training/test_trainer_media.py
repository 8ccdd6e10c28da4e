"""The training step over a mesh, with sound and pictures in the batch."""

from tests.training.eight_devices import run_on_eight_devices


def test_a_mesh_changes_nothing_where_there_are_media():
    assert run_on_eight_devices("media") == ["True True True True"] * 2
