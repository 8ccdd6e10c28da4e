"""Interval attention: the TPU kernels, interpreted, say what the reference says, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.kernels import patterns
from omni_jax.kernels.interval_attention import block_sizes, interval_attention, interval_plan
from omni_jax.kernels.interval_attention.schedule import most_pairs
from omni_jax.kernels.target import Target, assume_target

few = settings(max_examples=5, deadline=None)
# (heads, key-value heads, head size). A program takes seconds to compile, so tests share lengths, heads and reaches.
REACHES = [None, 111]


def random_inputs(length, keys, heads, kv_heads, head_dim, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [
        (length, heads, head_dim),
        (keys, kv_heads, head_dim),
        (keys, kv_heads, head_dim),
        (length, heads, head_dim),
    ]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnames=("implementation", "reach"))
def value_and_gradients(inputs, start, stop, implementation, reach=None):
    query, key, value, cotangent = inputs

    def attend(query, key, value):
        return interval_attention(
            query, key, value, start, stop, reach=reach, implementation=implementation, interpret=True
        )

    out, pull = jax.vjp(attend, query, key, value)
    return out, *pull(cotangent)


def assert_as_reference(inputs, bounds, reach=None, tolerance=1e-5):
    ours = value_and_gradients(inputs, *bounds, "tpu", reach)
    exact = value_and_gradients([x.astype(jnp.float32) for x in inputs], *bounds, "reference")
    for name, got, expected in zip(("out", "query", "key", "value"), ours, exact):
        assert got.dtype == inputs[0].dtype
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(np.float32(got), expected, rtol=0, atol=tolerance * scale, err_msg=name)


def segments(draw, length):
    ends = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
    ids = np.searchsorted(ends, np.arange(length), side="right") + 1
    ids[draw(st.integers(0, length)) :] = 0
    return jnp.array(ids)


@few
@given(data=st.data())
@pytest.mark.parametrize(("heads", "length"), [((3, 1, 128), 333), ((7, 1, 128), 150)])
def test_causal_segments_with_grouped_queries(heads, length, data):
    assert_as_reference(random_inputs(length, length, *heads), patterns.causal_segments(segments(data.draw, length)))


@few
@given(data=st.data())
@pytest.mark.parametrize(("heads", "length", "reach"), [((4, 2, 64), 333, 111), ((8, 8, 80), 150, 64)])
def test_packed_blocks_of_short_reach(heads, length, reach, data):
    lengths = jnp.array(data.draw(st.lists(st.integers(0, reach), min_size=6, max_size=6)))
    bounds = patterns.packed_blocks(lengths, length)
    start, stop = bounds[0], jnp.minimum(bounds[1], length)
    assert_as_reference(random_inputs(length, length, *heads), (start, stop), reach=reach)


@few
@given(data=st.data())
@pytest.mark.parametrize(("heads", "length", "keys"), [((1, 1, 128), 333, 700), ((2, 2, 64), 150, 1)])
def test_any_bounds_over_keys_of_another_length(heads, length, keys, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    bounds = [jnp.asarray(rng.integers(0, keys + 1, length), jnp.int32) for _ in range(2)]
    assert_as_reference(random_inputs(length, keys, *heads), bounds)


@pytest.mark.parametrize(("reach", "look"), zip(REACHES, [(1, 0), (0, 2)]))
def test_neighbouring_blocks_of_a_batch(reach, look):
    bounds = patterns.neighbouring_blocks(
        jnp.array([111, 70, 0]), 111, block_size=37, look_back=look[0], look_ahead=look[1]
    )
    assert_as_reference(random_inputs(333, 333, 4, 2, 64), bounds, reach)


@pytest.mark.parametrize(("heads", "reach"), [((4, 2, 64), 111), ((3, 1, 128), None)])
def test_bfloat16_is_near_to_float32(heads, reach):
    bounds = patterns.within_blocks(jnp.array([111, 37, 1]), 111)
    assert_as_reference(random_inputs(333, 333, *heads, jnp.bfloat16), bounds, reach, tolerance=2e-2)


@pytest.mark.parametrize("reach", REACHES)
def test_rows_that_see_nothing_give_zeros_and_take_no_gradient(reach):
    start, stop = patterns.within_blocks(jnp.array([111, 0, 111]), 111)
    out, *grads = value_and_gradients(random_inputs(333, 333, 4, 2, 64), start, stop, "tpu", reach)
    for x in (out, *grads):
        assert not x[111:222].any()
        assert x[:111].any()
        assert np.isfinite(x).all()


@pytest.mark.parametrize("reach", REACHES)
def test_what_nobody_sees_may_be_anything(reach):
    query, key, value, cotangent = random_inputs(333, 333, 4, 2, 64)
    start, stop = patterns.packed_blocks(jnp.array([60, 64, 30]), 333)
    expected = value_and_gradients([query, key, value, cotangent], start, stop, "tpu", reach)[0]
    key, value = (x.at[154:].set(1e30) for x in (key, value))
    got = value_and_gradients([query, key, value, cotangent], start, stop, "tpu", reach)[0]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("reach", REACHES)
def test_one_token(reach):
    assert_as_reference(random_inputs(1, 1, 2, 2, 64), (jnp.array([0], jnp.int32), jnp.array([1], jnp.int32)), reach)


def test_whole_frames_with_heads_that_straddle_registers():
    assert_as_reference(random_inputs(150, 150, 8, 8, 80), patterns.packed_blocks(jnp.array([100, 40]), 150))


@pytest.mark.parametrize("length, keys, most", [(1300, 1300, 18), (700, 1300, 9), (1300, 700, 9)])
def test_chunks_that_have_grown_hold_each_pair(length, keys, most, monkeypatch):
    monkeypatch.setattr(block_sizes, "MAX_PAIRS", most)
    value_and_gradients.clear_cache()
    start = jnp.arange(length) % 37 * keys // 74
    assert_as_reference(random_inputs(length, keys, 2, 1, 128), (start, jnp.minimum(start + 600, keys)))


def test_chunks_grow_where_pairs_would_not_fit_their_memory(monkeypatch):
    monkeypatch.setattr(block_sizes, "MAX_PAIRS", 8)
    value_and_gradients.clear_cache()
    inputs = random_inputs(1300, 1300, 2, 1, 128)
    bounds = patterns.packed_blocks(jnp.array([700, 30, 513]), 1300)
    plan = interval_plan(*bounds, 1300, heads=2, kv_heads=1, head_dim=128, dtype=jnp.float32, implementation="tpu").tpu
    # one chunk for each block: 8 of queries, in whole chunks, and 6 of keys
    assert (plan.sizes.forward.chunk, plan.sizes.keys.chunk) == (2048, 2048)
    assert (plan.queries.owner.size, plan.keys.owner.size) == (8, 6)
    assert_as_reference(inputs, bounds)


@pytest.mark.parametrize("length, reach", [(8192, None), (98_304, None), (131_072, None), (500_000, 20_000)])
def test_pairs_fit_scalar_memory_at_any_length(length, reach):
    shape = dict(heads=16, kv_heads=16, head_dim=80, length=length, keys=length, reach=reach)
    sizes = block_sizes.choose(Target("tpu", "v5p"), **shape)
    for one in (sizes.forward, sizes.queries, sizes.keys):
        pairs = most_pairs(length, length, block=one.block, chunk=one.chunk, reach=reach)
        assert pairs <= 98_304  # of 8 bytes, in 1 MiB
        assert one.chunk % one.part == 0
    if length == 8192:
        assert (sizes.forward.chunk, sizes.keys.chunk) == (512, 256)  # no more than must be


def test_a_plan_is_made_once_for_all_layers_of_a_scan():
    query, key, value, _ = random_inputs(150, 150, 2, 2, 64)
    start, stop = patterns.packed_blocks(jnp.array([60, 64]), 150)
    shape = dict(heads=2, kv_heads=2, head_dim=64, dtype=jnp.float32)

    @functools.partial(jax.jit, static_argnames="implementation")
    def layers(query, implementation):
        plan = interval_plan(start, stop, 150, reach=64, implementation=implementation, **shape)

        @jax.checkpoint
        def layer(x, _):
            options = dict(plan=plan, implementation=implementation, interpret=True)
            return x + interval_attention(x, key, value, **options), None

        return jax.lax.scan(layer, query, None, length=2)[0].sum()

    ours, expected = (jax.grad(layers)(query, implementation) for implementation in ("tpu", "reference"))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("reach", [None, 64])
def test_the_kernels_trace_under_shard_map(reach):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    query, key, value, _ = random_inputs(150, 150, 2, 2, 64)
    bounds = patterns.packed_blocks(jnp.array([60, 64]), 150)

    def loss(implementation, *inputs):
        def local(*inputs):
            options = dict(reach=reach, implementation=implementation, interpret=implementation == "tpu")
            return interval_attention(*inputs, **options)

        # The interpreter mixes arrays that vary over the mesh with constants, which the check would refuse.
        local = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return (local(*inputs) ** 2).sum()

    grads = [
        jax.jit(jax.grad(functools.partial(loss, implementation)))(query, key, value, *bounds)
        for implementation in ("tpu", "reference")
    ]
    np.testing.assert_allclose(*grads, atol=1e-5)


def test_without_a_kernel_the_reference_runs_and_says_so_once(caplog):
    inputs = random_inputs(20, 20, 2, 2, 24)
    bounds = patterns.causal_segments(jnp.ones(20, jnp.int32))
    with assume_target(Target("tpu", "v5e")), caplog.at_level("WARNING", "absl"):
        outs = [interval_attention(*inputs[:3], *bounds) for _ in range(2)]
    np.testing.assert_array_equal(*outs)
    assert [record.message for record in caplog.records if "size 24" in record.message][1:] == []
    assert any("size 24" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(key=jnp.zeros((20, 2, 32))), "do not fit"),
        (dict(query=jnp.zeros((20, 3, 64))), "do not fit"),
        (dict(key=jnp.zeros((20, 2, 64), jnp.bfloat16)), "cast them alike"),
        (dict(start=jnp.zeros(19, jnp.int32)), "20 queries need as many bounds"),
        (dict(start=None), "give start and stop"),
        (dict(implementation="cuda"), "'reference', 'tpu', 'gpu'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    arrays = dict(query=jnp.zeros((20, 2, 64)), key=jnp.zeros((20, 2, 64)), value=jnp.zeros((20, 2, 64)))
    bounds = dict(start=jnp.zeros(20, jnp.int32), stop=jnp.ones(20, jnp.int32))
    with pytest.raises(ValueError, match=message):
        interval_attention(**{**arrays, **bounds, **change})


def test_a_plan_for_another_length_is_refused():
    bounds = patterns.causal_segments(jnp.ones(20, jnp.int32))
    plan = interval_plan(*bounds, 30, heads=2, kv_heads=2, head_dim=64, dtype=jnp.float32, implementation="tpu")
    with pytest.raises(ValueError, match="for 20 queries and 30 keys, not 20 and 20"):
        interval_attention(*random_inputs(20, 20, 2, 2, 64)[:3], plan=plan, implementation="tpu")
