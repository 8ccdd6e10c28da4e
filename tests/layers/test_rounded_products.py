"""Products of factors rounded to bfloat16: what they are, backwards too, and that they come only where they are asked
for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.kernels.target import Target, assume_target
from omni_jax.layers.attention import attend
from omni_jax.layers.rounded_products import product, rounded, rounding_products, unroll
from omni_jax.layers.weight_only import matrix_product


def half(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))


@pytest.fixture
def factors():
    rng = np.random.default_rng(0)
    return [rng.normal(size=size).astype(np.float32) for size in ((24, 6), (6, 10), (24, 10))]


def test_the_product_is_the_exact_one_of_rounded_factors(factors):
    rows, kernel, _ = factors
    out = jax.jit(product)(rows, kernel)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, half(rows) @ half(kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_so_are_both_gradients_in_the_dtypes_of_the_factors(factors, dtype):
    rows, kernel, slope = factors
    _, backward = jax.vjp(product, jnp.asarray(rows), jnp.asarray(kernel, dtype))
    of_rows, of_kernel = jax.jit(backward)(jnp.asarray(slope))
    assert (of_rows.dtype, of_kernel.dtype) == (jnp.float32, dtype)
    expected = half(rows).T @ half(slope)
    np.testing.assert_allclose(of_rows, half(slope) @ half(kernel).T, rtol=1e-5, atol=1e-5)
    if dtype == jnp.float32:
        np.testing.assert_allclose(of_kernel, expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(of_kernel, rows.T @ slope, rtol=1e-5, atol=1e-5)


def test_attention_in_tiles_is_that_of_bfloat16_and_stays_float32_outside():
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(1, 512, 2, 8)), jnp.float32)
    key, value = (jnp.asarray(rng.normal(size=(1, 1, 512, 8)), jnp.float32) for _ in range(2))

    def gradients(*inputs):
        out, backward = jax.vjp(lambda *x: attend(*x, None), *inputs)
        return out, *backward(jnp.cos(out))

    exact = jax.jit(gradients)(query, key, value)
    with rounding_products():
        ours = jax.jit(lambda *x: gradients(*x))(query, key, value)
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == jnp.float32
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 2e-2


def test_linear_maps_are_rounded_within_and_exact_outside(factors):
    rows, kernel, _ = factors
    rows = rows.reshape(4, 6, 6)
    with rounding_products():
        inside = jax.jit(lambda x, w: matrix_product(x, w, jnp.float32))(rows, kernel)
        layers = unroll()
    outside = jax.jit(lambda x, w: matrix_product(x, w, jnp.float32))(rows, kernel)
    np.testing.assert_allclose(inside, half(rows) @ half(kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outside, rows @ kernel, rtol=1e-5, atol=1e-5)
    assert not np.allclose(inside, outside, rtol=1e-5, atol=1e-5)
    assert (layers, unroll()) == (True, 1)


def test_chips_that_round_by_themselves_are_left_alone():
    with rounding_products(), assume_target(Target("tpu", "v5e")):
        assert not rounded()
    with rounding_products(), rounding_products(False):
        assert not rounded()
