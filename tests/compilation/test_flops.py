"""Operations of matrix products, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from omni_jax.compilation.flops import count_flops
from omni_jax.kernels.interval_attention import interval_attention
from omni_jax.kernels.target import Target, assume_target
from omni_jax.layers.interval_attention import attend_intervals

SIZES = st.integers(1, 9)


def flops(function, *shapes, while_trips=1):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.make_jaxpr(function)(*arguments), while_trips=while_trips)


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_a_product_is_two_operations_for_each_pair_that_meets(b, m, k, n):
    assert flops(jnp.matmul, (m, k), (k, n)).total == 2 * m * k * n
    assert flops(lambda x, y: jnp.einsum("bmk,bnk->bmn", x, y), (b, m, k), (b, n, k)).total == 2 * b * m * k * n


def test_sums_and_activations_are_not_counted():
    assert flops(lambda x: jax.nn.softmax(jnp.tanh(x) + x).sum(), (8, 8)).total == 0


def test_a_scan_counts_its_body_as_often_as_it_runs():
    scan = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]  # noqa: E731
    assert flops(scan, (3, 4), (7, 4, 4)).total == 7 * 2 * 3 * 4 * 4


def test_a_while_loop_counts_as_often_as_the_caller_says():
    loop = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)  # noqa: E731
    found = flops(loop, (4, 4), while_trips=5)
    assert (found.total, found.guessed) == (5 * 2 * 4**3, 1)


def test_of_a_conditional_the_dearer_branch_counts():
    branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
    assert flops(branches, (4, 4)).total == 2 * 2 * 4**3


def test_a_scope_says_how_often_the_dearer_branch_is_taken():
    def layer(x, whole):
        return jax.lax.cond(whole, lambda x: x @ x @ x, lambda x: x @ x, x), None

    def layers(x):
        with jax.named_scope("2_of_8"):
            return jax.lax.scan(jax.checkpoint(layer), x, jnp.arange(8) % 4 == 3)[0]

    assert flops(layers, (4, 4)).total == (2 * 2 + 6) * 2 * 4**3
    backward = flops(jax.grad(lambda x: layers(x).sum()), (4, 4)).total
    assert backward == (2 * 2 + 6) * 2 * 4**3 + (2 * (4 + 1) + 6 * 2) * 2 * 4**3


def test_a_scope_does_not_reach_into_a_kernel():
    bounds = (jnp.arange(512) // 64 * 64)[None], (jnp.arange(512) // 64 * 64 + 64)[None]

    def total(scope):
        def attend(q, k, v):
            with jax.named_scope(scope):
                return attend_intervals(q, k, v, *bounds, reach=64).sum()

        with assume_target(Target("tpu", "v5e")):
            return flops(jax.grad(attend, argnums=(0, 1, 2)), *[(1, 512, 16, 80)] * 3).total

    assert total("4_of_32") == total("whatever") > 0


def test_rows_that_lie_end_to_end_do_not_see_each_other():
    """Of the kernel for long intervals, forward and backward."""

    def total(rows):
        shape = (rows, 1024, 2, 128)
        bounds = (jnp.broadcast_to(each, (rows, 1024)) for each in (0, jnp.arange(1024) + 1))
        with assume_target(Target("tpu", "v5e")):
            attend = lambda q, k, v: attend_intervals(q, k, v, *bounds).sum()  # noqa: E731
            return flops(jax.grad(attend, argnums=(0, 1, 2)), shape, shape, shape).total

    sums_of_rows = 2 * 1024 * 2 * 128
    assert total(1) == (2 + 3 + 4) * 2 * 1024 * 1024 // 2 * 2 * 128 + sums_of_rows
    assert total(3) == 3 * total(1)


def test_wrappers_are_seen_through():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (product(x), x), lambda x, g: (g @ x.T + x.T @ g,))
    assert flops(jax.jit(lambda x: product(x)), (4, 4)).total == 2 * 4**3
    assert flops(jax.grad(lambda x: product(x).sum()), (4, 4)).total == 3 * 2 * 4**3


def test_rematerialised_work_counts_again():
    layer = lambda w, x: jnp.tanh(x @ w)  # noqa: E731
    twice = lambda w, x: layer(w, layer(w, x)).sum()  # noqa: E731
    kept = flops(jax.grad(twice), (4, 4), (4, 4)).total
    remade = flops(jax.grad(jax.checkpoint(twice)), (4, 4), (4, 4)).total
    # the inner layer's output must be made again; the outer product is not needed for its gradient
    assert remade - kept in (2 * 4**3, 4 * 4**3)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1)])
def test_a_convolution_counts_each_weight_that_an_output_sees(groups, stride):
    def convolve(x, w):
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x, w, (stride,), "VALID", dimension_numbers=numbers, feature_group_count=groups
        )

    out = (16 - 3) // stride + 1
    assert flops(convolve, (2, 16, 8), (3, 8 // groups, 12)).total == 2 * (2 * out * 12) * (3 * 8 // groups)


def test_a_transposed_convolution_does_not_work_on_the_zeros_between():
    def upsample(x, w):
        return jax.lax.conv_transpose(x, w, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))

    out = jax.eval_shape(upsample, jnp.zeros((1, 8, 4)), jnp.zeros((4, 4, 6))).shape[1]
    assert flops(upsample, (1, 8, 4), (4, 4, 6)).total == 2 * out * 6 * 4 * 4 // 2


@pytest.mark.parametrize(
    "mesh", [Mesh(np.array(jax.devices()[:1]), ("x",)), jax.sharding.AbstractMesh((4,), ("x",))], ids=["one", "four"]
)
def test_work_on_each_device_of_a_mesh_is_added_up(mesh):
    rows, whole = PartitionSpec("x"), PartitionSpec()
    split = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert flops(split, (8, 4), (4, 4)).total == 2 * 8 * 4 * 4


def kernel(cost):
    def body(x_ref, o_ref):
        o_ref[...] = jnp.dot(x_ref[...], x_ref[...])

    block = pl.BlockSpec((8, 8), lambda i: (i, 0))
    out = jax.ShapeDtypeStruct((32, 8), jnp.float32)
    return pl.pallas_call(
        body, grid=(4,), in_specs=[block], out_specs=block, out_shape=out, cost_estimate=cost, interpret=True
    )


def test_a_kernel_counts_its_body_for_each_step_of_the_grid_or_what_its_estimate_says():
    assert flops(kernel(None), (32, 8)).total == 4 * 2 * 8**3
    assert flops(kernel(pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)), (32, 8)).total == 77


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_attention_of_a_long_sequence_counts_its_causal_half(platform):
    """Forward two products over half of all pairs; backward seven, in two kernels that both make the scores again."""
    length, heads, kv_heads, width = 1024, 4, 2, 128
    query, key = (jax.ShapeDtypeStruct((length, n, width), jnp.bfloat16) for n in (heads, kv_heads))
    place = jnp.arange(length)

    def total(query, key, value):
        return interval_attention(query, key, value, place * 0, place + 1).astype(jnp.float32).sum()

    products = length * length * heads * width  # one product over half of the pairs
    with assume_target(Target(platform, {"tpu": "v5e", "gpu": "h100"}[platform])):
        forward = count_flops(jax.make_jaxpr(total)(query, key, key))
        both = count_flops(jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(query, key, key))
    assert not forward.uncounted
    assert forward.total == 2 * products
    assert both.total == pytest.approx(9 * products, rel=0.01)
