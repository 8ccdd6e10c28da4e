"""Loss by chunks, schedule, and the dtype of compute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.errors import ConfigError
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset
from omni_jax.training.objectives import next_token_loss
from omni_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from omni_jax.training.step import compute_copy


@settings(max_examples=6, deadline=None)  # each compiles
@given(
    # every shape is compiled; chunks of one token, that divide and that do not, of the whole and of more
    st.sampled_from([(1, 1, 1), (2, 12, 4), (3, 13, 5), (2, 7, 7), (1, 13, 16)]),
    st.integers(0, 2**31 - 1),
)
def test_the_loss_by_chunks_is_the_loss_of_all_logits(shape, seed):
    batch, length, chunk = shape
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(batch, length, 8)), rng.normal(size=(8, 19))
    labels, weights = rng.integers(0, 19, (batch, length)), rng.integers(0, 3, (batch, length)) / 2

    def plain(hidden, head):
        losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ head, labels)
        return jnp.sum(losses * weights)

    def chunked(hidden, head):
        total = next_token_loss(hidden, head, jnp.asarray(labels), jnp.asarray(weights, jnp.float32), chunk=chunk)
        return total.loss

    arguments = jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32)
    value, gradients = jax.value_and_grad(chunked, argnums=(0, 1))(*arguments)
    expected, expected_gradients = jax.value_and_grad(plain, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_label_that_does_not_count_changes_nothing():
    rng = np.random.default_rng(0)
    hidden, head = jnp.asarray(rng.normal(size=(1, 6, 8))), jnp.asarray(rng.normal(size=(8, 19)))
    weights = jnp.asarray([[1, 1, 0, 1, 0, 1.0]])
    one = next_token_loss(hidden, head, jnp.asarray([[1, 2, 3, 4, 5, 6]]), weights, chunk=2)
    other = next_token_loss(hidden, head, jnp.asarray([[1, 2, -100, 4, 10**6, 6]]), weights, chunk=2)
    counted = next_token_loss(hidden, head, jnp.asarray([[1, 9, 3, 4, 5, 6]]), weights, chunk=2)
    assert one.loss == other.loss
    assert one.loss != counted.loss
    assert one.weight == 4


def test_the_learning_rate_warms_up_and_falls_to_its_fraction():
    rate = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup_steps=10, total_steps=100, final_fraction=0.1))
    assert rate(0) == 0
    assert rate(10) == pytest.approx(1e-3)
    assert rate(100) == pytest.approx(1e-4)


def test_an_impossible_schedule_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps = 20"):
        OptimizerConfig(warmup_steps=20, total_steps=20)


AXES = {
    "thinker/layers/attention/query/kernel": ("layers", "embed", "heads", "head_dim"),
    "thinker/layers/attention/out/kernel": ("layers", "heads", "head_dim", "embed"),
    "audio_encoder/conv1/kernel": ("conv_kernel", "conv_in", "conv_out"),
    "thinker/lm_head/kernel": ("embed", "vocab"),
    "thinker/embed/embedding": ("vocab", "embed"),
    "thinker/layers/mlp/up/bias": ("layers", "mlp"),
}
SIZES = (3, 16, 4, 8), (3, 4, 8, 16), (3, 8, 16), (16, 40), (40, 16), (3, 24)
AS_MATRICES = dict(zip(AXES, ((3, 16, 32), (3, 32, 16), (1, 24, 16)), strict=False))  # what Muon moves


def first_step(gradients, params, *, factors=None, **options):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip=1e9, **options)
    optimizer = make_optimizer(config, AXES, factors)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def arrays(seed):
    """Unlike in size along the axis of 16, so that gradients are far from orthogonal."""
    rng, out = np.random.default_rng(seed), {}
    for path, size in zip(AXES, SIZES, strict=True):
        drawn = rng.normal(size=size)
        if 16 in size:
            drawn = np.moveaxis(np.moveaxis(drawn, size.index(16), -1) * np.geomspace(0.3, 10, 16), -1, size.index(16))
        out[path] = jnp.asarray(drawn, jnp.float32)
    return out


def test_muon_moves_each_layers_kernel_by_an_orthogonal_step_and_the_rest_as_adamw():
    gradients, params = arrays(0), arrays(1)
    muon = first_step(gradients, params, rule="muon", weight_decay=0.5)
    adamw = first_step(gradients, params, rule="adamw", weight_decay=0.5)
    for path in AXES:
        if path not in AS_MATRICES:
            np.testing.assert_array_equal(muon[path], adamw[path])
            continue
        decayed = np.asarray(muon[path]) + 0.1 * 0.5 * np.asarray(params[path])
        np.testing.assert_allclose(np.sqrt(np.mean(decayed**2)), 0.2 * 0.1, rtol=0.3)  # as AdamW's usually are
        steps, own = (np.asarray(x).reshape(AS_MATRICES[path]) for x in (decayed, gradients[path]))
        for step, gradient in zip(steps, own, strict=True):
            sizes, before = (np.linalg.svd(x, compute_uv=False) for x in (step, gradient))
            assert sizes.max() / sizes.min() < 2 < 8 < before.max() / before.min()
            assert np.sum(step * gradient) < 0, "it goes downhill"


def test_factors_of_the_rate_hold_for_muon_too():
    gradients, params, head = arrays(0), arrays(1), "thinker/lm_head/kernel"
    whole = first_step(gradients, params, rule="muon")
    factors = {path: 0.5 for path in (*AS_MATRICES, head)}
    half = first_step(gradients, params, rule="muon", factors=factors)
    for path in AXES:
        np.testing.assert_allclose(half[path], whole[path] * factors.get(path, 1.0), rtol=1e-6)


def test_muon_without_kernels_is_refused():
    axes = {"lora/thinker/layers/mlp/up/kernel/lora_in": ("layers", "embed", None), "a/embed/embedding": ("vocab",)}
    with pytest.raises(ConfigError, match="moves kernels, of which none is trained"):
        make_optimizer(OptimizerConfig(rule="muon"), axes)


@pytest.mark.parametrize(
    "given", [{"rule": "Muon"}, {"momentum": 1.0}, {"beta2": float("nan")}, {"epsilon": 0.0}, {"weight_decay": -0.1}]
)
def test_settings_that_cannot_be_are_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        OptimizerConfig(**given)


def test_norms_and_biases_are_computed_with_as_they_are_kept():
    """Stacked over layers they are arrays of two axes, and still no matrices."""
    _, shapes = logical_axes(preset("tiny"), ["thinker"])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    layers = compute_copy(params, jnp.bfloat16)["thinker"]["layers"]
    assert layers["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert layers["attention_norm"]["scale"].dtype == layers["attention"]["key"]["bias"].dtype == jnp.float32
