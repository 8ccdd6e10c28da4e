"""Corners of interval attention: more queries than keys, and nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.kernels.interval_attention import interval_attention
from omni_jax.kernels.target import Target, assume_target


@pytest.fixture(autouse=True)
def tpu():
    with assume_target(Target("tpu", "v5e")):
        yield


@pytest.mark.parametrize(("length", "keys", "reach"), [(640, 400, 128), (150, 300, 64), (300, 130, 128)])
def test_a_short_reach_over_fewer_or_more_keys_than_queries(length, keys, reach):
    rng = np.random.default_rng(0)
    query, other = (jnp.asarray(rng.normal(size=(length, 1, 128)), jnp.float32) for _ in range(2))
    key, value = (jnp.asarray(rng.normal(size=(keys, 1, 128)), jnp.float32) for _ in range(2))
    place = jnp.arange(length)
    start, stop = jnp.clip(place - reach + 1, 0, keys), jnp.clip(place + 1, 0, keys)

    def gradients(implementation, **options):
        def total(*qkv):
            out = interval_attention(*qkv, start, stop, reach=reach, implementation=implementation, **options)
            return jnp.sum(out * other)

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)

    for ours, expected in zip(gradients("tpu", interpret=True), gradients("reference")):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("implementation", ["reference", "tpu", "gpu"])
@pytest.mark.parametrize(("length", "keys"), [(0, 5), (5, 0)])
def test_no_queries_or_no_keys_give_zeros(implementation, length, keys):
    query, key = jnp.ones((length, 2, 64)), jnp.ones((keys, 2, 64))
    bounds = jnp.zeros(length, jnp.int32)
    out = interval_attention(query, key, key, bounds, bounds, implementation=implementation)
    assert out.shape == query.shape
    assert not out.any()
