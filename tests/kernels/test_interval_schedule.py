"""Schedules of pairs visit every key that is seen, and none twice; schedules of the compiler are counted rightly."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.kernels.interval_attention import schedule

BUNDLES = Path(__file__).parents[2] / "benchmarks" / "schedule_bundles.py"
spec = importlib.util.spec_from_file_location("schedule_bundles", BUNDLES)
bundles = sys.modules["schedule_bundles"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bundles)

STATIC = ("keys", "block", "chunk", "reach")
by_queries, by_keys = (jax.jit(make, static_argnames=STATIC) for make in (schedule.by_queries, schedule.by_keys))
# few numbers of keys, each of which is a compilation: one key, within a chunk, whole chunks, beyond them
cases = given(seed=st.integers(0, 10**6), keys=st.sampled_from([1, 90, 256, 641, 900]))


def random_bounds(seed, length, keys):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, keys + 1, length)
    return start, np.minimum(start + rng.integers(0, 200, length), keys)


def pairs_of(found):
    count = int(found.count)
    assert count <= found.owner.shape[0]
    words = np.asarray(found.word)[:count]
    return list(zip(np.asarray(found.owner)[:count].tolist(), schedule.other_start(words).tolist(), words.tolist()))


@settings(max_examples=30, deadline=None)
@cases
def test_pairs_of_queries_hold_each_key_that_is_seen_once(seed, keys):
    start, stop = random_bounds(seed, 256, keys)
    pairs = pairs_of(by_queries(jnp.array(start), jnp.array(stop), keys=keys, block=64, chunk=128))
    assert sorted({owner for owner, *_ in pairs}) == [0, 1, 2, 3]
    for block in range(4):
        own = [first for owner, first, _ in pairs if owner == block]
        held = [key for first in own for key in range(first, first + 128)]
        assert len(held) == len(set(held))
        for query in range(64 * block, 64 * block + 64):
            assert set(range(start[query], stop[query])) <= set(held)


@settings(max_examples=30, deadline=None)
@cases
def test_pairs_of_keys_hold_each_query_that_sees_them(seed, keys):
    start, stop = random_bounds(seed, 256, keys)
    pairs = pairs_of(by_keys(jnp.array(start), jnp.array(stop), keys=keys, block=128, chunk=64))
    assert sorted({owner for owner, *_ in pairs}) == list(range(-(-keys // 128)))
    visited = {(owner, first // 64) for owner, first, _ in pairs}
    for query in range(256):
        for owner in {key // 128 for key in range(start[query], stop[query])}:
            assert (owner, query // 64) in visited


@settings(max_examples=30, deadline=None)
@cases
def test_owners_begin_and_end_once_and_full_pairs_need_no_mask(seed, keys):
    start, stop = random_bounds(seed, 256, keys)
    pairs = pairs_of(by_queries(jnp.array(start), jnp.array(stop), keys=keys, block=64, chunk=32))
    for owner in range(4):
        words = [word for own, _, word in pairs if own == owner]
        assert [bool(word & schedule.FIRST) for word in words] == [True] + [False] * (len(words) - 1)
        assert [bool(word & schedule.LAST) for word in words] == [False] * (len(words) - 1) + [True]
    for owner, first, word in pairs:
        rows = slice(owner * 64, owner * 64 + 64)
        full = (start[rows] <= first).all() and (stop[rows] >= first + 32).all()
        assert bool(word & schedule.FULL) == full


def test_a_promised_reach_keeps_the_schedule_linear_in_length():
    sizes = []
    for length in (4096, 8192):
        place = jnp.arange(length)
        start, stop = place // 1024 * 1024, place // 1024 * 1024 + 1024
        found = by_queries(start, stop, keys=length, block=256, chunk=512, reach=1024)
        assert int(found.count) == length // 256 * 2
        sizes.append(found.owner.shape[0])
    assert sizes[1] == 2 * sizes[0]


def listing(*lines):
    return "\n".join(
        f"{hex(at) if at else '     0'} {tag:2} : {'> ' * depth}{{ {text} }}" for at, tag, depth, text in lines
    )


def test_bundles_of_a_grid_step_count_inner_loops_and_what_may_be_skipped():
    text = listing(
        (0, "", 0, "%1 = smov"),
        (0x10, "LB", 1, "%2 = sadd"),
        (0x20, "", 1, "%3 = sbr.rel (%p1_p0) target = $region10"),  # skips 0x20 to 0x120
        (0x30, "LB", 2, "%4 = vadd"),
        (0x4E, "", 2, "%p5_p1 = scmp.ge.s32.totalorder %s1_s2, 3 /* loop exit test */"),
        (0x4F, "", 2, "%6 = sbr.rel (!%p5_p1) target = $region11"),  # 0x20 bundles, 3 times
        (0x120, "PF", 1, "%7 = sadd"),
        (0x130, "", 1, "%8 = sbr.rel (%p2_p0) target = $region12"),  # short: the pipeline's own
        (0x140, "PF", 1, "%9 = sadd"),
        (0x1FF, "", 0, "%10 = sbr.rel (!%p9_p9) target = $region13"),
    )
    kernel = bundles.parse_kernel("kernel", text)
    assert kernel.regions == (0x100 + 2 * 0x20,)
    assert kernel.always == 0x200 - 0x10 - 0x100
    assert kernel.cycles(10, (0.5,)) == 10 * (kernel.always + kernel.regions[0] / 2)


def test_estimates_of_loops_count_with_their_trips_and_kernels_are_left_out():
    hlo = """HloModule m
%body.1 (p: f32[8]) -> f32[8] {
  %f.1 = f32[8] fusion(%p), backend_config={"estimated_cycles":"100"}
}
%until.1 (p: s32[]) -> pred[] {
  %limit = s32[] constant(5)
  %less = pred[] compare(%p, %limit), direction=LT
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %f.2 = f32[8] fusion(%p), backend_config={"estimated_cycles":"7"}
  %k = f32[8] custom-call(%f.2), custom_call_target="tpu_custom_call", backend_config={"estimated_cycles":"9"}
  %copy.1 = f32[8] copy(%k)
  %f.3 = f32[8] fusion(%k), backend_config={"estimated_cycles":"9223372036854775807"}
  %w = f32[8] while(%k), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %w.2 = f32[8] while(%w), condition=%until.1, body=%body.1
}
"""
    copies = {"copy.1": bundles.Kernel("copy.1", 2, (10,), 6), "k": bundles.Kernel("k", 1000, (), 1)}
    assert bundles.xla_cycles(hlo, copies) == bundles.xla_cycles(hlo) + 6 * 2 + 4 * 10
    assert bundles.xla_cycles(hlo) == 7 + 3 * 100 + 5 * 100
