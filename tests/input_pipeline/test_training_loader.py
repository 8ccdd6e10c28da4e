"""Batches in one order, whoever makes them, from wherever they go on; bad examples cost themselves only."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import omni_jax.training.batches  # batches become trees
from input_pipeline.loader import Loader
from input_pipeline.training_batch import RowShape
from omni_jax.errors import ConfigError, DataError
from tests.input_pipeline.memory_source import CONFIG, MemorySource

assert omni_jax.training.batches
ROOM = RowShape(tokens=256, audio_blocks=6, patches=384, speech=64, pairs=2)
ALL = MemorySource("all", 18)
TEXT = MemorySource("text", 5, kinds=("text",), first=1000)


def loader(*sources, rows=4, **options):
    options = dict(shape=ROOM, seed=3, window=8, epochs=4) | options
    return Loader(sources or (ALL, TEXT), config=CONFIG, rows=rows, **options)


def drained(loader):
    with loader:
        return list(loader)


def same(ours, theirs):
    """Two lists of batches, to the last bit."""
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs):
        np.testing.assert_array_equal(left, right)


def batches(loader):
    return [batch for batch, _ in drained(loader)]


@pytest.fixture(scope="module")
def whole():
    """The run that others are compared with: 4 epochs of both sources, made in this process."""
    return drained(loader())


def test_an_epoch_brings_every_example_once_and_the_last_step_is_filled_with_padding(whole):
    names = [name for _, report in whole for name in report.names]
    assert Counter(names) == Counter([*ALL.names, *TEXT.names] * 4)
    for batch, report in whole:
        assert batch.token_ids.shape == (4, 256) and batch.vision.patches.shape[:2] == (4, 384)
        assert report.tokens == (batch.segment_ids > 0).sum() and report.skipped == ()
    assert len(whole) == loader().steps > 4
    ends = loader()
    assert (whole[-1][0].segment_ids > 0).any(1).sum() == 4 - (ends.steps * 4 - ends.plan.rows)


def test_tasks_number_the_sources(whole):
    tokens = Counter()
    for batch, _ in whole:
        tokens += Counter(batch.task_ids[batch.segment_ids > 0].tolist())
    assert tokens == {0: 4 * int(ALL.sizes[:, 0].sum()), 1: 4 * int(TEXT.sizes[:, 0].sum())}


def test_batches_without_sound_pictures_or_speech_are_ordinary(whole):
    """Their arrays are there, of the usual shapes, and hold nothing."""
    silent = batches(loader(TEXT))
    for batch in silent:
        assert not batch.audio.frames.any() and not batch.speech.segment_ids.any()
        assert (batch.vision_source == -1).all() and (batch.segment_ids > 0).any()
        assert [x.shape for x in jax.tree.leaves(batch)] == [x.shape for x in jax.tree.leaves(whole[0][0])]


@pytest.mark.parametrize(("hosts", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_hosts_share_the_same_global_rows(whole, hosts, accumulate):
    rows = 4 // accumulate
    each = rows // hosts if rows >= hosts else 1
    parts = [
        batches(loader(rows=rows, accumulate=accumulate, own=slice(host * each, host * each + each)))
        for host in range(hosts)
    ]
    for step, (batch, _) in enumerate(whole):
        # a host's batch holds its rows of the first micro-batch, then of the second
        def joined(*leaves):
            split = [leaf.reshape(accumulate, -1, *leaf.shape[1:]) for leaf in leaves]
            together = np.concatenate(split, axis=1)
            return together.reshape(-1, *together.shape[2:])

        same(jax.tree.map(joined, *(part[step] for part in parts)), batch)


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_goes_on_where_it_stopped(whole, step):
    first = loader()
    with first:
        for _ in range(step):
            next(first)
        state = json.loads(json.dumps(first.state()))
    assert state["step"] == step  # what was made ahead does not count
    second = loader(prefetch=3)
    second.restore(state)
    same(batches(second), [batch for batch, _ in whole[step:]])
    assert second.state()["step"] == len(whole)
    third = loader(first_step=step)
    same(batches(third), [batch for batch, _ in whole[step:]])


def test_a_run_that_has_ended_stays_ended(whole):
    done = loader(first_step=len(whole))
    assert drained(done) == [] and drained(done) == []
    beyond = loader(first_step=len(whole) + 5)
    assert drained(beyond) == []


def test_a_loader_can_be_gone_through_again(whole):
    again = loader()
    for _ in range(2):
        again.seek(0)
        same(batches(again), [batch for batch, _ in whole])


def test_a_run_without_epochs_has_no_end(whole):
    with loader(epochs=None) as endless:
        assert endless.steps is None
        taken = [next(endless)[0] for _ in range(len(whole) + 4)]
    same(taken[: len(whole) - 1], [batch for batch, _ in whole[:-1]])
    assert (taken[-1].segment_ids > 0).any()


# Worker processes


@pytest.fixture(scope="module")
def by_workers():
    """The same run by two processes that take turns, then, after an interruption, by one; and the loaders."""
    first = loader(workers=2)
    with first:
        taken = [next(first) for _ in range(2)]
        state = first.state()
    second = loader(workers=1)
    second.restore(state)
    with pytest.MonkeyPatch.context() as patch, second:  # as where there is little shared memory
        patch.setattr("input_pipeline.loader_ahead._shared_memory_holds", lambda size: False)
        return taken + list(second), first, second


def test_workers_make_the_same_batches_also_across_a_restart(whole, by_workers):
    same([batch for batch, _ in by_workers[0]], [batch for batch, _ in whole])
    for (_, report), (_, expected) in zip(by_workers[0], whole):
        assert (report.names, report.tokens, report.skipped) == (expected.names, expected.tokens, expected.skipped)


def test_batches_of_workers_are_plain_arrays_of_their_own(by_workers):
    leaves = [leaf for batch, _ in by_workers[0] for leaf in jax.tree.leaves(batch)]
    assert all(type(leaf) is np.ndarray and leaf.flags.owndata for leaf in leaves)


def test_waiting_is_counted_from_the_first_batch_on(by_workers):
    _, first, second = by_workers
    for one in (first, second):
        assert 1 <= one.totals.waits <= one.totals.steps  # nothing is ready when the first batch is asked for
        assert one.totals.seconds_waited > 0
    assert first.totals.steps == 2 and by_workers[0][0][1].waited > 0


def test_a_batch_that_is_ready_is_not_waited_for():
    with loader() as one:
        next(one)
        deadline = time.monotonic() + 30
        while not one._ahead._made[0].done() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert next(one)[1].waited is None
        assert one.totals.waits == 1


def test_a_worker_that_dies_ends_the_run_with_an_error():
    deadly = MemorySource("deadly", 12, kinds=("text",), deadly=frozenset([5]))
    with loader(deadly, workers=1) as one, pytest.raises(DataError, match="has died.*exit code -9.*fewer workers"):
        list(one)


def test_a_mistake_of_the_program_is_not_taken_for_a_corrupt_example():
    with pytest.raises(KeyError, match="a mistake"):
        drained(loader(MemorySource("broken", 6, kinds=("text",), broken=frozenset([2]))))


_PARENT = """
import sys, time
from tests.input_pipeline.test_training_loader import loader
if __name__ == "__main__":
    one = loader(workers=1, epochs=None)
    next(one)
    print("ready", flush=True)
    time.sleep(float(sys.argv[1]))
    print("left", flush=True)
"""


def begun(folder, seconds):
    """A process of its own that has taken a batch, and leaves its loader open."""
    script = folder / "parent.py"
    script.write_text(_PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, script, str(seconds)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout.readline() == b"ready\n"
    return parent


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    with begun(tmp_path, 300) as parent:
        threads = Path(f"/proc/{parent.pid}/task").iterdir()  # some thread of Grain has started the worker
        children = [int(each) for thread in threads for each in (thread / "children").read_text().split()]
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert workers
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(worker) for worker in workers)


def test_a_program_that_forgets_to_close_its_loader_ends_all_the_same(tmp_path):
    with begun(tmp_path, 0) as parent:
        try:
            assert parent.wait(timeout=60) == 0
        finally:
            parent.kill()


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Corrupt examples


def test_a_corrupt_example_leaves_padding_and_is_counted_and_logged_by_name(whole, caplog):
    bad = MemorySource("all", 18, corrupt=frozenset([2, 9]))
    with caplog.at_level(logging.WARNING), loader(bad, TEXT, max_corrupt_share=0.2) as one:
        taken = list(one)
    assert one.totals.skipped == 8 and one.totals.examples == 4 * (18 + 5) - 8
    found = Counter(each.name for _, report in taken for each in report.skipped)
    assert found == {"all, example 2": 4, "all, example 9": 4}
    assert "skipped all, example 2: all:2: the file is cut short." in caplog.text
    for (batch, report), (_, expected) in zip(taken, whole):  # all others are where they were
        missing = [each.name.replace(", example ", ":") for each in report.skipped]
        assert sorted([*report.names, *missing]) == sorted(expected.names)
        assert report.tokens == (batch.segment_ids > 0).sum()


def test_an_example_that_has_changed_since_it_was_measured_is_skipped():
    grown = MemorySource("grown", 12, kinds=("text",), swollen=frozenset([4]))
    with loader(grown, epochs=1) as one:
        skipped = [each for _, report in one for each in report.skipped]
    assert [each.name for each in skipped] == ["grown, example 4"]
    assert "changed since it was measured: 75 tokens (not 12)" in skipped[0].reason


def test_a_run_ends_when_more_than_the_stated_share_is_corrupt():
    source = MemorySource("some", 150, kinds=("text",), corrupt=frozenset(range(0, 150, 30)))  # 5 of 150
    kinds = dict(epochs=1, window=10, rows=1, shape=RowShape(tokens=64))
    with loader(source, max_corrupt_share=0.05, **kinds) as one:
        assert len(list(one)) == one.steps
    with loader(source, max_corrupt_share=0.01, **kinds) as one:
        with pytest.raises(DataError, match=r"of 1\d\d examples could not be used, .*0.01.*\n.*cut short"):
            list(one)
        assert one.totals.examples + one.totals.skipped >= 100


def test_a_run_that_was_stopped_ends_for_corrupt_data_where_another_does():
    source = MemorySource("some", 150, kinds=("text",), corrupt=frozenset(range(0, 150, 30)))  # 5 of 150
    kinds = dict(epochs=1, window=10, rows=1, shape=RowShape(tokens=64), max_corrupt_share=0.01)

    def end(state=None, steps=None):
        """The step that a run comes to, from a state or the beginning; and its state there."""
        with loader(source, **kinds) as one:
            if state is not None:
                one.restore(state)
            try:
                for _ in range(one.steps if steps is None else steps):
                    next(one)
            except DataError as error:
                return str(error).split("\n")[0], one.state()
            return None, json.loads(json.dumps(one.state()))

    whole, last = end()
    assert "examples could not be used" in whole
    state = None
    for _ in range(last["step"]):  # stopped after each step
        reason, state = end(state, steps=1)
        assert reason is None
    assert end(state, steps=1)[0] == whole


def test_a_run_of_which_nothing_can_be_read_ends_at_once():
    source = MemorySource("none", 40, kinds=("text",), corrupt=frozenset(range(40)))
    with loader(source) as one, pytest.raises(DataError, match="examples could not be used.*\n.*none:"):
        list(one)
    assert one.totals.skipped < 40


# Changed data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(seed=4), "seed: was 3, is 4"),
        (dict(shape=RowShape(256, 6, 384, 64, 3)), "shape: was"),
        (dict(weights=(0.5, 0.5)), "weights: was None"),
        (dict(rows=2), "rows of a step: were 4, are 2"),
    ],
)
def test_a_changed_plan_is_refused_by_what_has_changed(change, words):
    state = loader().state()
    with pytest.raises(DataError, match=f"not what this run was begun with.*\n  {words}"):
        loader(**change).restore(state)


def test_changed_sources_are_refused_by_name():
    state = json.loads(json.dumps(loader().state()))
    with pytest.raises(DataError, match="source text: had 5 examples, has 6"):
        loader(ALL, MemorySource("text", 6, kinds=("text",), first=1000)).restore(state)
    with pytest.raises(DataError, match="source text: its contents"):
        loader(ALL, MemorySource("text", 5, kinds=("text",), first=1000, fingerprint="2")).restore(state)
    with pytest.raises(DataError, match="sources: were"):
        loader(ALL).restore(state)


@pytest.mark.parametrize("epochs", [3, 5, None])
def test_a_run_may_be_made_longer_or_shorter_until_it_begins_what_is_packed_otherwise_then(epochs):
    weights = ALL.total, TEXT.total  # given, though they are what they would be: an epoch may end within a window
    whole = drained(loader(weights=weights))
    shared = loader(weights=weights).plan.rows_shared_with(epochs) // 4
    assert 0 < shared < len(whole)
    state = loader(weights=weights).state() | {"step": shared}
    other = loader(weights=weights, epochs=epochs)
    other.restore(state)
    if epochs is not None:  # every example as often as wanted, however the run was divided
        reports = [report for _, report in (*whole[:shared], *drained(other))]
        counted = Counter(name for report in reports for name in report.names)
        assert set(counted.values()) == {epochs} and len(counted) == 18 + 5
    with pytest.raises(DataError, match=f"epochs: were 4, are {epochs}.*after step {shared} some would come twice"):
        other.restore(state | {"step": shared + 1})


def test_without_weights_every_epoch_is_packed_for_itself():
    one, more = loader(rows=1), loader(rows=1, epochs=6)
    more.restore(one.state() | {"step": one.steps})
    names = [name for _, report in drained(more) for name in report.names]
    assert Counter(names) == Counter([*ALL.names, *TEXT.names] * 2)


def test_a_longer_run_that_goes_on_from_the_padded_end_of_a_shorter_one_would_miss_rows():
    one = loader(rows=3)
    assert one.plan.rows % 3
    end = one.state() | {"step": one.steps}
    loader(rows=3).restore(end)  # of the same length: it has ended
    with pytest.raises(DataError, match="some not at all.*--allow-change data"):
        loader(rows=3, epochs=5).restore(end)


def test_held_out_examples_count_anew_each_time():
    with loader(MemorySource("bad", 12, corrupt=frozenset([3])), epochs=1, max_corrupt_share=0.01) as held_out:
        for _ in range(12):
            held_out.seek(0)
            assert len(list(held_out)) == held_out.steps


def test_rows_of_a_host_must_be_among_those_of_the_step():
    with pytest.raises(ConfigError, match="are no part of 4"):
        loader(own=slice(2, 6))
