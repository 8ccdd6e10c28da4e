"""The plan of a run: every example in its epoch, rows within every budget, one order for all who ask."""

import json
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.example_context import KINDS
from input_pipeline.plan import Plan, first_fit
from input_pipeline.training_batch import RowShape
from omni_jax.errors import CapacityError, ConfigError, DataError

ROOM = RowShape(tokens=64, audio_blocks=6, patches=128, speech=40, pairs=2)
BUDGETS = np.array([getattr(ROOM, kind) for kind in KINDS])
quickly = settings(max_examples=25, deadline=None)


def sizes(count, seed=0, largest=BUDGETS):
    """Of examples of every kind, half of each absent."""
    draw = np.random.default_rng(seed)
    table = draw.integers(1, largest + 1, (count, len(KINDS))) * (draw.random((count, len(KINDS))) < 0.5)
    table[:, 0] = draw.integers(1, largest[0] + 1, count)
    return table.astype(np.int32)


def examples(plan, rows=None):
    """All (source, example) in order."""
    return [pair for i in range(plan.rows if rows is None else rows) for pair in plan.row(i)]


counts = st.lists(st.integers(1, 90), min_size=1, max_size=4)


@quickly
@given(count=st.integers(1, 200), epochs=st.integers(1, 3), window=st.integers(1, 80), seed=st.integers(0, 9))
def test_each_epoch_holds_every_example_exactly_once(count, epochs, window, seed):
    plan = Plan([sizes(count, seed)], None, ROOM, seed, window=window, epochs=epochs)
    assert Counter(examples(plan)) == Counter({(0, i): epochs for i in range(count)})


@quickly
@given(counts=counts, epochs=st.integers(1, 2))
def test_sources_without_weights_end_their_epochs_together(counts, epochs):
    plan = Plan([sizes(count, i) for i, count in enumerate(counts)], None, ROOM, 0, window=16, epochs=epochs)
    wanted = {(source, i): epochs for source, count in enumerate(counts) for i in range(count)}
    assert Counter(examples(plan)) == Counter(wanted)


@quickly
@given(counts=counts, window=st.integers(1, 60), epochs=st.integers(1, 3))
def test_without_weights_no_row_comes_before_the_last_of_the_epoch_before(counts, window, epochs):
    plan = Plan([sizes(count, i) for i, count in enumerate(counts)], None, ROOM, 0, window=window)
    wanted, row = sorted((i, j) for i, count in enumerate(counts) for j in range(count)), 0
    for _ in range(epochs):
        seen = []
        while len(seen) < len(wanted):
            seen += plan.row(row)
            row += 1
        assert sorted(seen) == wanted


@given(counts=counts, window=st.integers(1, 100), data=st.data())
def test_no_row_exceeds_any_budget_and_none_is_empty(counts, window, data):
    tables = [sizes(count, i) for i, count in enumerate(counts)]
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(counts), max_size=len(counts)))
    plan = Plan(tables, weights, ROOM, 0, window=window)
    for index in range(60):
        row = plan.row(index)
        assert row
        assert (sum(tables[source][example] for source, example in row) <= BUDGETS).all()


@quickly
@given(counts=counts, data=st.data())
def test_any_stretch_of_draws_is_shared_by_weight(counts, data):
    weights = data.draw(st.lists(st.floats(0.05, 9), min_size=len(counts), max_size=len(counts)))
    # one example in a row and one row in a window: rows are draws
    plan = Plan([np.tile(np.int32([64, 0, 0, 0, 0]), (n, 1)) for n in counts], weights, ROOM, 0, window=1)
    first = data.draw(st.integers(0, 150))
    length = data.draw(st.integers(1, 150))
    drawn = Counter(plan.row(i)[0][0] for i in range(first, first + length))
    for source, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(drawn[source] - length * share) <= 1 + share * len(counts) + 1e-9


def test_sources_unlike_in_size_keep_their_shares_and_all_of_them_are_seen():
    plan = Plan([sizes(3, 1), sizes(2000, 2)], [0.25, 0.75], ROOM, 0, epochs=1)
    seen = Counter(examples(plan))
    assert set(seen) == {(0, i) for i in range(3)} | {(1, i) for i in range(2000)}
    small = sum(count for (source, _), count in seen.items() if source == 0)
    assert abs(small - sum(seen.values()) / 4) <= 2
    assert max(seen[0, i] for i in range(3)) - min(seen[0, i] for i in range(3)) <= 1


def test_epochs_and_rows_are_in_another_order_each_time():
    flat = np.tile(np.int32([64, 0, 0, 0, 0]), (50, 1))
    order = [example for _, example in examples(Plan([flat], None, ROOM, 0, window=10, epochs=2))]
    assert sorted(order[:50]) == sorted(order[50:]) == list(range(50))
    assert order[:50] != order[50:] and order[:50] != sorted(order[:50])
    assert order != [example for _, example in examples(Plan([flat], None, ROOM, 1, window=10, epochs=2))]


@quickly
@given(count=st.integers(1, 100), seed=st.integers(0, 5))
def test_rows_are_the_same_in_any_order_of_asking_and_in_any_copy(count, seed):
    plan = Plan([sizes(count, seed), sizes(7)], [0.5, 0.5], ROOM, seed, window=12)
    rows = [plan.row(i) for i in range(40)]
    places = list(range(40))
    random.Random(seed).shuffle(places)
    fresh, copy = (
        Plan([sizes(count, seed), sizes(7)], [0.5, 0.5], ROOM, seed, window=12),
        pickle.loads(pickle.dumps(plan)),
    )
    assert [fresh.row(i) for i in places] == [copy.row(i) for i in places] == [rows[i] for i in places]


def test_a_limited_run_is_the_beginning_of_an_unlimited_one():
    tables = [sizes(70, 1), sizes(30, 2)]
    limited = Plan(tables, None, ROOM, 3, window=20, epochs=1)
    endless = Plan(tables, None, ROOM, 3, window=20)
    assert endless.rows is None and limited.fingerprint == endless.fingerprint
    assert examples(limited) == examples(endless, limited.rows)
    with pytest.raises(IndexError):
        limited.row(limited.rows)


@quickly
@given(counts=counts, window=st.integers(1, 60), epochs=st.permutations([1, 2, 3, None]))
def test_plans_of_other_epochs_share_the_rows_before_the_window_that_one_cuts(counts, window, epochs):
    tables = [sizes(count, i) for i, count in enumerate(counts)]
    one, other = (Plan(tables, None, ROOM, 0, window=window, epochs=each) for each in epochs[:2])
    shared = one.rows_shared_with(other.epochs)
    assert shared == other.rows_shared_with(one.epochs) and one.rows_shared_with(one.epochs) is None
    assert [one.row(i) for i in range(shared)] == [other.row(i) for i in range(shared)]
    shorter = min(plan.rows for plan in (one, other) if plan.rows is not None)
    # not less than there are: what the shorter packs after them is at most a window
    assert sum(map(len, map(one.row, range(shared, shorter)))) < window or shared == shorter


def test_a_pickled_plan_is_small_and_counts_no_window_anew():
    plan = Plan([np.tile(np.int32([8, 0, 0, 0, 0]), (20000, 1))], None, ROOM, 0, window=1000)
    plan.row(5000)
    packed = pickle.dumps(plan)
    assert len(packed) < 20000 * 5 * 4 + 20000
    copy = pickle.loads(packed)
    assert copy.row(5000) == plan.row(5000)
    assert len(copy._windows) == 1


@quickly
@given(count=st.integers(1, 60), seed=st.integers(0, 50))
def test_packing_is_first_fit_of_the_largest_first(count, seed):
    table = sizes(count, seed)
    rows, free = np.zeros(count, int), []
    for i in sorted(range(count), key=lambda i: -(table[i] / BUDGETS).max()):
        row = next((r for r, room in enumerate(free) if (room >= table[i]).all()), len(free))
        if row == len(free):
            free.append(BUDGETS.copy())
        free[row] -= table[i]
        rows[i] = row
    np.testing.assert_array_equal(first_fit(table, BUDGETS), rows)


def test_short_texts_fill_rows_almost_to_the_end():
    draw = np.random.default_rng(0)
    table = np.zeros((5000, 5), np.int32)
    table[:, 0] = draw.integers(4, 400, 5000)
    plan = Plan([table], None, RowShape(tokens=1024), 0, epochs=1)
    fill = plan.fill()
    assert fill.examples == 5000 and fill.rows == plan.rows
    assert fill.share["tokens"] == table.sum() / (plan.rows * 1024) > 0.98
    assert set(fill.share) == {"tokens"}


def test_a_window_has_many_rows_even_where_examples_are_tiny():
    plan = Plan([np.tile(np.int32([2, 0, 0, 0, 0]), (500, 1))], None, RowShape(tokens=2048), 0)
    assert plan.window == 64 * 1024


def described(**changes):
    options = dict(counts=(9, 5), weights=(0.5, 0.5), shape=ROOM, seed=1, window=8, prints=("x", "y"), names=("a", "b"))
    options |= changes
    tables = [sizes(count, options.get("draw", 0)) for count in options["counts"]]
    return Plan(
        tables, options["weights"], options["shape"], options["seed"], window=options["window"],
        names=options["names"], fingerprints=options["prints"],
    )  # fmt: skip


def test_a_plan_knows_itself_after_a_detour_through_json():
    plan = described()
    assert plan.difference(json.loads(json.dumps(plan.describe()))) == []
    assert described().fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(seed=2), "seed: was 1, is 2"),
        (dict(weights=(0.4, 0.6)), "weights: was"),
        (dict(shape=RowShape(64, 6, 128, 40, 3)), "shape: was"),
        (dict(window=9), "window: was 8, is 9"),
        (dict(names=("a", "c")), "sources: were ['a', 'b'], are ['a', 'c']"),
        (dict(counts=(9, 6)), "source b: had 5 examples, has 6"),
        (dict(draw=1), "source a: sizes of its examples"),
        (dict(prints=("x", "z")), "source b: its contents"),
    ],
)
def test_what_changes_the_order_changes_the_fingerprint_and_is_named(change, words):
    then, now = described(), described(**change)
    assert now.fingerprint != then.fingerprint
    assert any(text.startswith(words) for text in now.difference(then.describe()))


def test_an_example_larger_than_a_row_is_refused_with_what_would_hold_it():
    table = sizes(5)
    table[3, 2] = 200
    with pytest.raises(
        CapacityError, match=r"Source films, example 3: 200 vision patches, but a row holds 128 \(1 of 5"
    ):
        Plan([table], None, ROOM, 0, names=["films"])
    with pytest.raises(CapacityError, match=r"rows have no room for any .*\n.*RowShape.audio_blocks to 1"):
        Plan([np.int32([[3, 1, 0, 0, 0]])], None, RowShape(tokens=8), 0)


@pytest.mark.parametrize(
    ("tables", "weights", "error", "words"),
    [
        ([], None, ConfigError, "nothing to train on"),
        ([sizes(3)], [0.0], ConfigError, "positive number"),
        ([sizes(3)], [1.0, 2.0], ConfigError, "positive number"),
        ([sizes(3)], [float("nan")], ConfigError, "positive number"),
        ([np.zeros((0, 5), np.int32)], None, ConfigError, "no examples"),
        ([np.zeros((2, 5), np.int32)], None, DataError, "cannot be"),
        ([np.zeros((2, 4), np.int32)], None, DataError, r"instead of \[examples, 5\]"),
    ],
)
def test_sources_that_cannot_be_mixed_are_refused(tables, weights, error, words):
    with pytest.raises(error, match=words):
        Plan(tables, weights, ROOM, 0)


def test_the_order_is_not_to_change_between_versions():
    """Checkpoints hold places in this order. If this fails on purpose, raise `plan._ORDER`."""
    tokens = [40, 20, 10, 30, 50, 60], [5, 64, 33, 12]
    tables = [np.int32([[count, 0, 0, 0, 0] for count in each]) for each in tokens]
    plan = Plan(tables, [0.5, 0.5], RowShape(tokens=64), 7, window=8)
    assert [plan.row(i) for i in range(5)] == [
        ((0, 4), (1, 3)),
        ((1, 0), (0, 2), (0, 1)),
        ((0, 3), (1, 2)),
        ((1, 1),),
        ((0, 5),),
    ]
