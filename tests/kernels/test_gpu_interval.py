"""The GPU kernels of interval attention, run by Pallas' interpreter, against plain attention with a mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from omni_jax.kernels.interval_attention.gpu import interval_attention_gpu
from omni_jax.kernels.interval_attention.gpu_backward import touching_blocks

# no shrinking: every new shape is a compilation
PROPERTY = settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}
ranges = jax.jit(touching_blocks, static_argnums=(2, 3, 4))
kernel = jax.jit(functools.partial(interval_attention_gpu, interpret=True))


def masked_attention(query, key, value, start, stop):
    """Float32, all scores at once."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    key, value = (jnp.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
    scores = jnp.einsum("tnh,snh->nts", query, key) * query.shape[-1] ** -0.5
    place = jnp.arange(len(key))
    seen = (place >= start[:, None]) & (place < stop[:, None])
    weights = jnp.where(seen, jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("nts,snh->tnh", weights / jnp.where(total > 0, total, 1.0), value)


@jax.jit
def kernel_gradients(query, key, value, start, stop, d_out):
    out, pull = jax.vjp(lambda *qkv: interval_attention_gpu(*qkv, start, stop, interpret=True), query, key, value)
    return out, *pull(d_out)


@jax.jit
def plain_gradients(query, key, value, start, stop, d_out):
    operands = [x.astype(jnp.float32) for x in (query, key, value)]
    out, pull = jax.vjp(lambda *qkv: masked_attention(*qkv, start, stop), *operands)
    return out, *pull(d_out.astype(jnp.float32))


def random_heads(seed, rows, keys, kv_heads, group, width, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = (rows, kv_heads * group, width), (keys, kv_heads, width), (keys, kv_heads, width)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def random_bounds(seed, rows, keys):
    """Any intervals at all: empty ones, whole ones, in no order, some reaching out of the keys."""
    rng = np.random.default_rng(seed)
    start, stop = np.sort(rng.integers(-5, keys + 6, (2, rows)), axis=0)
    swap = rng.random(rows) < 0.1
    start, stop = np.where(swap, stop, start), np.where(swap, start, stop)
    return jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)


def causal_segments(lengths):
    start = np.concatenate([np.full(each, begin) for each, begin in zip(lengths, np.cumsum([0, *lengths]))])
    return jnp.asarray(start, jnp.int32), jnp.arange(1, len(start) + 1, dtype=jnp.int32)


def blocks(size, length, back=0, ahead=0):
    own = jnp.arange(length) // size
    return (own - back) * size, jnp.minimum((own + ahead + 1) * size, length)


def check(operands, start, stop, tolerance, seed=7):
    rng = np.random.default_rng(seed)
    d_out = jnp.asarray(rng.normal(size=operands[0].shape), operands[0].dtype)
    got = kernel_gradients(*operands, start, stop, d_out)
    want = plain_gradients(*operands, start, stop, d_out)
    for name, one, other in zip(("out", "query", "key", "value"), got, want):
        assert one.dtype == operands[0].dtype
        scale = max(1.0, float(jnp.max(jnp.abs(other))))
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=tolerance * scale, rtol=0, err_msg=name)
    return got


@PROPERTY
@given(
    seed=st.integers(0, 1000),
    # rows and keys; heads and their size: each of these is a compilation
    case=st.sampled_from(
        [
            ((1, 70), (1, 1, 128), jnp.float32),
            ((130, 1), (1, 7, 16), jnp.float32),
            ((37, 200), (2, 3, 64), jnp.bfloat16),
            ((129, 65), (2, 1, 80), jnp.float32),
            ((200, 128), (2, 3, 64), jnp.float32),
        ]
    ),
)
def test_any_intervals_agree_with_a_mask_forward_and_backward(seed, case):
    shape, heads, dtype = case
    operands = random_heads(seed, *shape, *heads, dtype)
    check(operands, *random_bounds(seed, *shape), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "bounds, heads",
    [
        (causal_segments([130, 1, 3, 70]), (1, 7, 128)),
        (blocks(100, 250), (2, 1, 64)),
        (blocks(64, 200), (1, 1, 80)),
        (blocks(24, 150, back=1, ahead=1), (1, 1, 64)),
    ],
    ids=["causal segments", "audio blocks", "vision windows", "blocks and neighbours"],
)
def test_the_patterns_of_the_model(bounds, heads):
    length = len(bounds[0])
    check(random_heads(0, length, length, *heads), *bounds, 1e-5)


def test_a_row_that_sees_nothing_gives_zeros_and_takes_no_gradient():
    operands = random_heads(0, 140, 140, 1, 2, 64)
    start, stop = causal_segments([140])
    start, stop = start.at[3:9].set(20), stop.at[3:9].set(20)
    out, d_query, _, _ = check(operands, start, stop, 1e-5)
    assert not np.any(out[3:9]) and not np.any(d_query[3:9])
    assert np.all(np.any(out[9:], axis=(1, 2)))


def test_what_no_row_sees_does_not_matter_even_within_a_tile():
    query, key, value = random_heads(0, 100, 100, 1, 1, 64)
    start, stop = jnp.full(100, 10), jnp.full(100, 70)
    changed = key.at[:10].set(9e3).at[70:].set(-9e3), value.at[:10].set(9e3).at[70:].set(-9e3)
    np.testing.assert_array_equal(kernel(query, key, value, start, stop), kernel(query, *changed, start, stop))


def test_large_scores_stay_finite():
    query, key, value = random_heads(0, 70, 70, 1, 1, 64)
    got = kernel(query * 300, key * 300, value, *causal_segments([70]))
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got[0], value[0], atol=1e-5)


def test_no_queries_or_no_keys_is_an_empty_answer():
    query, key, value = random_heads(0, 3, 5, 1, 2, 64)
    none = jnp.zeros(3, jnp.int32)
    assert kernel(query[:0], key, value, none[:0], none[:0]).shape == (0, 2, 64)
    assert not np.any(kernel(query, key[:0], value[:0], none, none))


def test_it_runs_inside_scan_remat_and_shard_map():
    query, key, value = random_heads(0, 64, 64, 2, 1, 64)
    start, stop = causal_segments([40, 24])
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    heads, whole = jax.P(None, "model"), jax.P()

    # check_vma: Pallas' interpreter cannot run with it; the compiled kernels are tested with it in test_gpu_compile.py
    specs = dict(in_specs=(heads, heads, heads, whole, whole), out_specs=heads, check_vma=False)

    @functools.partial(jax.shard_map, mesh=mesh, **specs)
    def sharded(*operands):
        return interval_attention_gpu(*operands, interpret=True)

    @jax.checkpoint
    def layer(x, _):
        return x + sharded(x, key, value, start, stop), None

    def loss(query):
        return jnp.sum(jax.lax.scan(layer, query, length=2)[0] ** 2)

    def plain_loss(query):
        for _ in range(2):
            query = query + masked_attention(query, key, value, start, stop)
        return jnp.sum(query**2)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(query), jax.grad(plain_loss)(query), atol=1e-3)


@PROPERTY
@given(seed=st.integers(0, 1000), query_block=st.sampled_from([16, 32]), key_block=st.sampled_from([16, 64]))
def test_every_pair_of_blocks_with_something_to_see_is_visited(seed, query_block, key_block):
    start, stop = (np.asarray(each) for each in random_bounds(seed, 96, 150))
    first, last = (np.asarray(each) for each in ranges(start, stop, query_block, key_block, -(-150 // key_block)))
    place = np.arange(150)
    rows, columns = np.nonzero((place >= start[:, None]) & (place < stop[:, None]))
    blocks_of = columns // key_block
    assert np.all((first[blocks_of] <= rows // query_block) & (rows // query_block < last[blocks_of]))
