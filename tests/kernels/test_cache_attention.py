"""Attention of new tokens over a cache: both kernels, run by Pallas' interpreter, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from omni_jax.errors import ConfigError
from omni_jax.kernels import cache_attention as package
from omni_jax.kernels.cache_attention import cache_attention
from omni_jax.kernels.cache_attention.block_sizes import cache_blocks
from omni_jax.kernels.target import Target

# no shrinking: every new shape is a compilation
PROPERTY = settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}
KERNELS = ("tpu", "gpu")

kernel = jax.jit(functools.partial(cache_attention, interpret=True), static_argnames="implementation")
reference = jax.jit(functools.partial(cache_attention, implementation="reference"))


def random_case(seed, rows, length, kv_heads, group, slots, width=128, layers=2, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    query = jnp.asarray(rng.normal(size=(rows, length, kv_heads * group, width)), dtype)
    key, value = (jnp.asarray(rng.normal(size=(layers, rows, kv_heads, slots, width)), dtype) for _ in range(2))
    return query, key, value


def plain(query, key, value, layer, start):
    """One row, one token, one head at a time, over the slots that it sees and no others; float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out, group = np.zeros(query.shape), query.shape[2] // key.shape[2]
    for b, t, n in np.ndindex(query.shape[:3]):
        k, v = (x[layer, b, n // group, : start[b] + t + 1] for x in (key, value))
        scores = k @ query[b, t, n] * query.shape[-1] ** -0.5
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v / weights.sum()
    return out


def test_the_reference_sees_each_slot_up_to_its_own():
    query, key, value = random_case(0, 3, 4, 2, 3, 40, width=16)
    start = np.array([0, 17, 36])
    got = reference(query, key, value, 1, jnp.asarray(start))
    np.testing.assert_allclose(got, plain(query, key, value, 1, start), atol=1e-5)


@pytest.mark.parametrize("implementation", KERNELS)
@PROPERTY
@given(
    seed=st.integers(0, 1000),
    # decoding and chunks, few and many rows, caches of one tile and of several, lengths that do not divide
    shape=st.sampled_from(
        [(1, 1, 4, 7, 1300), (3, 1, 1, 1, 50), (2, 5, 2, 3, 300), (2, 60, 1, 7, 700), (1, 170, 2, 7, 640)]
    ),
    width=st.sampled_from([64, 128]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    data=st.data(),
)
def test_a_kernel_agrees_with_the_reference_for_any_lengths(implementation, seed, shape, width, dtype, data):
    rows, length, _, _, slots = shape
    query, key, value = random_case(seed, *shape, width=width, dtype=dtype)
    start = jnp.asarray(data.draw(st.lists(st.integers(0, slots - length), min_size=rows, max_size=rows)), jnp.int32)
    got = kernel(query, key, value, 1, start, implementation=implementation)
    want = reference(*(x.astype(jnp.float32) for x in (query, key, value)), 1, start)
    assert got.dtype == dtype and got.shape == query.shape
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("implementation", [*KERNELS, "reference"])
@pytest.mark.parametrize("length", [1, 30])
def test_what_lies_past_the_used_part_or_in_another_layer_does_not_matter(implementation, length):
    query, key, value = random_case(0, 2, length, 1, 7, 700)
    start = jnp.array([0, 401])
    used = (jnp.arange(700) < start[:, None] + length)[None, :, None, :, None] & (jnp.arange(2) == 1)[
        :, None, None, None, None
    ]
    spoilt = (jnp.where(used, x, jnp.nan) for x in (key, value))
    call = functools.partial(kernel, layer=1, start=start, implementation=implementation)
    np.testing.assert_array_equal(call(query, *spoilt), call(query, key, value))


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_full_cache_and_an_empty_one(implementation):
    query, key, value = random_case(0, 2, 1, 2, 7, 1536)
    start = jnp.array([1535, 0])
    got = kernel(query, key, value, 0, start, implementation=implementation)
    np.testing.assert_allclose(got, reference(query, key, value, 0, start), atol=1e-5)
    np.testing.assert_allclose(got[1, 0, :7], jnp.broadcast_to(value[0, 1, 0, 0], (7, 128)), atol=1e-6)


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_chunk_equals_its_tokens_one_by_one(implementation):
    query, key, value = random_case(0, 2, 40, 1, 7, 256)
    start = jnp.array([3, 216])
    whole = kernel(query, key, value, 1, start, implementation=implementation)
    for t in (0, 1, 39):
        one = kernel(query[:, t : t + 1], key, value, 1, start + t, implementation=implementation)
        np.testing.assert_allclose(whole[:, t], one[:, 0], atol=1e-5)


@pytest.mark.parametrize("implementation", KERNELS)
def test_it_runs_in_loops_over_layers_and_tokens_under_shard_map(implementation):
    query, key, value = random_case(0, 2, 1, 2, 2, 64)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = jax.P(None, None, "model")
    # check_vma: Pallas' interpreter cannot run with it; the compiled kernels are tested with it
    specs = dict(in_specs=(heads, heads, heads, jax.P()), out_specs=heads, check_vma=False)

    def layers(attend, query, key, value, start):
        return jax.lax.scan(lambda x, layer: (x + attend(x, key, value, layer, start), None), query, jnp.arange(2))[0]

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, **specs)
    def tokens(query, key, value, start):
        attend = functools.partial(cache_attention, implementation=implementation, interpret=True)

        def step(carry):
            return carry[0] + 1, layers(attend, carry[1], key, value, start + carry[0])

        return jax.lax.while_loop(lambda carry: carry[0] < 3, step, (jnp.int32(0), query))[1]

    start, want = jnp.array([5, 60]), query
    for step in range(3):
        want = layers(reference, want, key, value, start + step)
    np.testing.assert_allclose(tokens(query, key, value, start), want, atol=1e-4)


def test_without_a_kernel_the_reference_runs_and_says_so_once(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", said.append)
    package._say_once.cache_clear()
    query, key, value = random_case(0, 1, 1, 1, 2, 32)
    for _ in range(2):
        got = cache_attention(query, key, value, 0, jnp.array([9]))
    np.testing.assert_array_equal(
        got, cache_attention(query, key, value, 0, jnp.array([9]), implementation="reference")
    )
    assert len(said) == 1 and "no kernel for cpu" in said[0]


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(key=jnp.zeros((2, 1, 1, 32, 64))), "differ in shape"),
        (dict(query=jnp.zeros((2, 1, 2, 128))), "does not fit a cache"),
        (dict(start=jnp.zeros((3,), jnp.int32)), "one first slot for each of the 1 rows"),
        (dict(implementation="cuda"), "no implementation 'cuda'"),
    ],
)
def test_what_does_not_fit_is_refused(change, text):
    query, key, value = random_case(0, 1, 1, 1, 2, 32)
    arguments = dict(query=query, key=key, value=value, layer=0, start=jnp.array([3])) | change
    with pytest.raises(ConfigError, match=text):
        cache_attention(**arguments)


@given(
    generation=st.sampled_from(["v4", "v5e", "v5p", "v6e", "tpu7x", "unknown"]),
    batch=st.integers(1, 9),
    length=st.integers(1, 1024),
    heads=st.sampled_from([(28, 4), (12, 4), (7, 1), (16, 16), (14, 2)]),
    slots=st.integers(1, 40000),
    itemsize=st.sampled_from([2, 4]),
)
def test_block_sizes_fit_the_arrays_and_the_vector_memory(generation, batch, length, heads, slots, itemsize):
    heads, kv_heads = heads
    blocks = cache_blocks(
        Target("tpu", generation), batch=batch, length=length, heads=heads, kv_heads=kv_heads, slots=slots, width=128,
        itemsize=itemsize,
    )  # fmt: skip
    rows = blocks.tokens * heads // kv_heads
    assert kv_heads % blocks.heads == 0
    assert blocks.tokens == length or rows % 16 == 0
    assert blocks.slots == slots or blocks.slots % 128 == 0
    cache = 4 * blocks.heads * blocks.slots * 128 * itemsize  # keys and values, this step's and the next's
    scores = 2 * 4 * rows * blocks.slots
    assert cache + scores <= 12 << 20
