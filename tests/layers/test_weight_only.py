"""Weight-only int8: what it costs in accuracy, and that it halves what is stored."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.layers.linear import Embed, Linear
from omni_jax.layers.weight_only import contracted_axes, is_quantised, quantise, quantise_params
from omni_jax.models.logical_axes import logical_axes
from omni_jax.models.thinker import Thinker
from omni_jax.presets import preset


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_every_weight_is_within_half_a_step_of_its_channel(layers, inputs, heads, width, seed):
    kernel = np.random.default_rng(seed).normal(size=(layers, inputs, heads, width)).astype(np.float32)
    stored = quantise(jnp.asarray(kernel), (1,))
    assert stored.qvalue.dtype == jnp.int8
    assert stored.scale.shape == (layers, 1, heads, width)
    np.testing.assert_allclose(stored.scale, np.abs(kernel).max(axis=1, keepdims=True) / 127, rtol=2e-2)
    assert np.all(np.abs(np.asarray(stored.qvalue) * np.asarray(stored.scale) - kernel) <= stored.scale * 0.51)


def test_a_linear_map_of_stored_weights_is_that_of_the_weights_they_stand_for():
    rng = np.random.default_rng(0)
    layer = Linear((4, 16), (24,), ("heads", "head_dim", "embed"), use_bias=True)
    x = jnp.asarray(rng.normal(size=(3, 4, 16)), jnp.float32)
    params = nn.unbox(layer.init(jax.random.key(0), x))["params"]
    stored = quantise(params["kernel"], (0, 1))
    expected = layer.apply({"params": params | {"kernel": stored.qvalue * stored.scale}}, x)
    np.testing.assert_allclose(layer.apply({"params": params | {"kernel": stored}}, x), expected, atol=1e-6)


def test_an_embedding_of_stored_rows_is_that_of_the_rows_they_stand_for():
    table = Embed(50, 16)
    params = nn.unbox(table.init(jax.random.key(0), jnp.zeros(1, jnp.int32)))["params"]
    stored, ids = quantise(params["embedding"], (1,)), jnp.asarray([[3, 49], [0, 3]])
    expected = (stored.qvalue * stored.scale)[ids]
    np.testing.assert_array_equal(table.apply({"params": {"embedding": stored}}, ids), expected)


@pytest.mark.parametrize(
    ("name", "axes", "shape", "expected"),
    [
        ("kernel", ("layers", "embed", "heads", "head_dim"), (2, 256, 4, 64), (1,)),
        ("kernel", ("layers", "heads", "head_dim", "embed"), (2, 4, 64, 256), (1, 2)),
        ("kernel", ("embed", "vocab"), (256, 999), (0,)),
        ("embedding", ("vocab", "embed"), (999, 256), (1,)),
        ("bias", ("layers", "mlp"), (28, 18944), None),
        ("scale", ("layers", "embed"), (28, 3584), None),
        ("kernel", ("conv_kernel", "conv_in", "conv_out"), (3, 128, 1280), None),
        ("kernel", ("embed", "mlp"), (8, 8), None),
    ],
)
def test_scales_lie_along_output_axes(name, axes, shape, expected):
    assert contracted_axes(name, axes, shape) == expected


def test_logits_of_a_quantised_thinker_stay_near_and_its_matrices_take_a_quarter():
    config = preset("tiny")
    text = config.thinker_config.text_config
    axes, shapes = logical_axes(config, ["thinker"])
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = jax.tree.map(lambda leaf: 0.05 * jax.random.normal(next(keys), leaf.shape), shapes)
    stored = quantise_params(params, axes)
    kept = [leaf for leaf in jax.tree.leaves(stored, is_leaf=is_quantised) if not is_quantised(leaf)]
    assert sum(leaf.size for leaf in kept) < 0.02 * sum(leaf.size for leaf in jax.tree.leaves(params))
    small, large = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (stored, params))
    assert small < 0.3 * large

    ids = jax.random.randint(jax.random.key(1), (2, 30), 0, text.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(30), (3, 2, 30))
    thinker = Thinker(text)
    ours, exact = (thinker.apply({"params": tree["thinker"]}, ids, positions) for tree in (stored, params))
    error = jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 0.03
