"""The same losses on one device, on eight in three meshes, and on two processes, from media on disk."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.processes import on_devices
from tests.training.stages import lay_out, run_in_child

MODULE = "tests.training.stages_meshes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "here"
    lay_out(folder, tiny_checkpoint[1])
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> list[float]:
    return run_in_child(MODULE, folder, "alone")["alone"]


@pytest.fixture(scope="module")
def eight(folder, alone):
    return run_in_child(MODULE, folder, "eight", **on_devices(8))


@pytest.mark.parametrize("mesh", ["data", "fsdp and tensor", "fsdp and context"])
def test_eight_devices_have_the_losses_of_one(mesh, alone, eight):
    assert len(alone) == 4 and alone[-1] < alone[0]
    np.testing.assert_allclose(eight[mesh], alone, atol=1e-5, rtol=0)


def test_a_run_of_one_device_goes_on_with_the_same_losses_on_another_mesh(alone, eight):
    np.testing.assert_allclose(eight["taken up"], alone, atol=1e-5, rtol=0)
    assert eight["taken up"][:2] == alone[:2]  # these are of the first run


def test_two_processes_have_the_losses_of_one(folder, alone):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"OMNI_JAX_COORDINATOR": f"127.0.0.1:{free.getsockname()[1]}", "OMNI_JAX_PROCESSES": "2"}
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(run_in_child, MODULE, folder, "pair", **common, OMNI_JAX_PROCESS=str(i)) for i in (0, 1)]
        found = made[0].result()["pair"]
        made[1].result()
    np.testing.assert_allclose(found, alone, atol=1e-5, rtol=0)


def test_what_does_not_divide_over_the_mesh_is_refused_by_name(eight):
    expected = {
        "rows": "A batch of 6 rows does not divide over data x fsdp = 8",
        "parameter": "does not divide",
        "devices": "needs 3 devices, but there are 8",
    }
    for name, text in expected.items():
        message, begun = eight[f"wrong {name}"]
        assert text in message and not begun
