"""Two processes of four devices give what one process of eight gives, each loading its own part."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omni_jax.errors import ShardingError
from omni_jax.sharding import hosts
from tests.processes import on_devices

ROOT = Path(__file__).parents[2]


def run(checkpoint, processes: int) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for index in range(processes):
        environment = os.environ | on_devices(8 // processes)
        if processes > 1:
            environment |= {
                "OMNI_JAX_COORDINATOR": f"127.0.0.1:{port}",
                "OMNI_JAX_PROCESSES": str(processes),
                "OMNI_JAX_PROCESS": str(index),
            }
        command = [sys.executable, "-m", "tests.sharding.two_hosts", str(checkpoint)]
        running.append(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    results = []
    try:
        for one in running:
            out, err = one.communicate(timeout=400)
            assert one.returncode == 0, err[-3000:]
            results.append(json.loads(out.strip().splitlines()[-1]))
    finally:
        for one in running:
            one.kill()
    return results


def test_two_processes_give_the_losses_and_the_answers_of_one(tiny_checkpoint):
    ((one,), (first, second)) = (run(tiny_checkpoint[1], processes) for processes in (1, 2))
    np.testing.assert_allclose(first["losses"], one["losses"], atol=1e-5, rtol=0)
    assert first["losses"] == second["losses"]
    assert first["answers"] == second["answers"] == one["answers"]
    assert [len(answer) for answer in one["answers"]] == [10, 10]
    # each host loaded one half of the data and of the parameters
    assert (first["rows"], second["rows"], one["rows"]) == ([0, 4], [4, 8], [0, 8])
    assert first["held"] == second["held"] == one["held"] / 2
    told = [{"process": 0, "longer": ""}, {"process": 1, "longer": "é"}]
    assert first["gathered"] == second["gathered"] == told and one["gathered"] == told[:1]


def test_a_half_given_start_is_refused(monkeypatch):
    monkeypatch.setenv("OMNI_JAX_COORDINATOR", "127.0.0.1:1")
    with pytest.raises(ShardingError, match="processes, process must be given too. Set OMNI_JAX_PROCESSES"):
        hosts.start()


def test_alone_nothing_is_started():
    assert hosts.start() == (0, 1)
