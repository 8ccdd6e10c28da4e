"""Hosts of one run: they must see the same data, and each goes on with what it has counted."""

import json

import jax
import pytest

from input_pipeline.loader import Loader
from input_pipeline.training_batch import RowShape
from omni_jax.errors import DataError
from omni_jax.training import run_hosts
from omni_jax.training.run_hosts import HostsData, check_same_data
from tests.input_pipeline.memory_source import CONFIG, MemorySource


def data(count: int = 5, seed: int = 0) -> Loader:
    return Loader([MemorySource("text", count, kinds=("text",))], RowShape(tokens=64), CONFIG, rows=1, seed=seed)


def hosts(monkeypatch, *others, index=0):
    """As if there were other hosts that give these values, in turn, and this one were `index` of them."""
    values = iter(others)

    def gathered(value):
        all_of_them = list(next(values))
        all_of_them.insert(index, value)
        return json.loads(json.dumps(all_of_them))

    monkeypatch.setattr(run_hosts, "gathered", gathered)


def of_states(*loaders):
    """What other hosts with these data give in the two rounds of `check_same_data`."""
    states = [{key: value for key, value in each.state().items() if key not in ("step", "seen")} for each in loaders]
    return [[f"digest {i}" for i in range(len(states))], states]


def test_hosts_that_see_other_data_are_told_what_differs(monkeypatch):
    hosts(monkeypatch, *of_states(data(), data(6), data(seed=3)))
    with pytest.raises(DataError) as caught:
        check_same_data(data())
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  host 2: source text: had 5 examples, has 6", "  host 3: seed: was 0, is 3"]
    assert "same files" in lines[3]


def test_hosts_that_see_the_same_agree_wherever_they_are_in_it(monkeypatch):
    here, there, digests = data(), data(), []
    with there:
        next(there)
    monkeypatch.setattr(run_hosts, "gathered", lambda value: digests.append(value) or [value])
    check_same_data(here)
    check_same_data(there)
    check_same_data(data(6))
    assert digests[0] == digests[1] != digests[2]


def test_each_host_goes_on_with_its_own_counts(monkeypatch):
    hosts(monkeypatch, [{"examples": 90, "skipped": 10}])
    with data() as here:
        next(here)
        state = HostsData(here).state()
    own = state["seen"][0]
    assert state["seen"] == [own, {"examples": 90, "skipped": 10}] and own["examples"] > 0
    for count, index, wanted in ((2, 0, own), (2, 1, state["seen"][1]), (1, 0, (own["examples"] + 90, 10))):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        again = data()
        HostsData(again).restore(state)
        seen = again.totals.examples, again.totals.skipped
        assert seen == (wanted if isinstance(wanted, tuple) else tuple(wanted.values()))
        assert again.state()["step"] == 1
