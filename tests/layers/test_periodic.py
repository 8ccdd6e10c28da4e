"""The anti-aliased periodic activation: published filter, published values, exact row ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as hf

from omni_jax.layers.periodic import REACH, AntiAliasedSnake, anti_aliased, kaiser_sinc_filter, sine_squared, snake_beta

PUBLISHED_FILTER = [0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.4432098]


def snake_params(channels, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(0, 0.7, channels), jnp.float32) for name in ("alpha", "beta")}


def signal(batch, time, channels, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, (batch, time, channels)), jnp.float32)


def test_filter_is_the_published_one():
    taps = kaiser_sinc_filter(cutoff=0.25, half_width=0.3, taps=12)
    np.testing.assert_allclose(taps, PUBLISHED_FILTER + PUBLISHED_FILTER[::-1], atol=5e-8)
    assert taps.dtype == np.float32


@pytest.mark.parametrize("half_width", [0.3, 0.1, 0.02])  # the three ranges of Kaiser's formula
def test_filter_follows_kaisers_formula(half_width):
    theirs = hf.kaiser_sinc_filter1d(0.2, half_width, 12).numpy().reshape(-1)
    np.testing.assert_allclose(kaiser_sinc_filter(0.2, half_width, 12), theirs, atol=1e-6)


def test_snake_parameters_are_logarithms():
    x = jnp.array([[0.5, 0.5]])
    y = snake_beta(x, jnp.log(jnp.array([1.0, 2.0])), jnp.log(jnp.array([1.0, 4.0])))
    np.testing.assert_allclose(y[0], [0.5 + np.sin(0.5) ** 2, 0.5 + np.sin(1.0) ** 2 / 4], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_squared_sine(size):
    x = np.random.default_rng(0).uniform(-size, size, 20_000).astype(np.float32)
    np.testing.assert_allclose(sine_squared(jnp.asarray(x)), np.sin(x.astype(np.float64)) ** 2, atol=5e-7)


def test_gradients_of_snake_are_those_of_its_formula():
    x, params = signal(2, 50, 3), snake_params(3)
    shape = signal(2, 50, 3, seed=2)

    def formula(x, alpha, beta):
        return x + jnp.square(jnp.sin(x * jnp.exp(alpha))) / (jnp.exp(beta) + 1e-9)

    found, want = (
        jax.grad(lambda *given, f=f: jnp.sum(f(*given) * shape), (0, 1, 2))(x, params["alpha"], params["beta"])
        for f in (snake_beta, formula)
    )
    for ours, theirs in zip(found, want):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_filters_are_those_of_the_published_activation():
    x, params, shape = signal(2, 23, 4), snake_params(4), signal(2, 23, 4, seed=2)
    layer = hf.Qwen2_5OmniAntiAliasedActivation1d(hf.Qwen2_5OmniSnakeBeta(4))
    with torch.no_grad():
        for name, value in params.items():
            getattr(layer.act, name).copy_(torch.tensor(np.asarray(value)))
    theirs = torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_()
    (layer(theirs) * torch.tensor(np.asarray(shape)).transpose(1, 2)).sum().backward()
    ours, of_params = jax.grad(
        lambda x, params: jnp.sum(AntiAliasedSnake().apply({"params": params}, x) * shape), (0, 1)
    )(x, params)
    np.testing.assert_allclose(ours, theirs.grad.transpose(1, 2), rtol=1e-4, atol=1e-5)
    for name in params:
        np.testing.assert_allclose(of_params[name], getattr(layer.act, name).grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 5, 23])
def test_matches_the_published_activation(length):
    channels = 4
    x, params = signal(2, length, channels), snake_params(channels)
    layer = hf.Qwen2_5OmniAntiAliasedActivation1d(hf.Qwen2_5OmniSnakeBeta(channels))
    with torch.no_grad():
        for name, value in params.items():
            getattr(layer.act, name).copy_(torch.tensor(np.asarray(value)))
        want = layer(torch.tensor(np.asarray(x)).transpose(1, 2)).transpose(1, 2).numpy()
    np.testing.assert_allclose(AntiAliasedSnake().apply({"params": params}, x), want, atol=1e-5)


def test_a_row_in_a_batch_is_what_it_is_alone():
    lengths = [1, 2, 9, 17]
    x, variables = signal(4, 17, 3), {"params": snake_params(3)}
    together = AntiAliasedSnake().apply(variables, x, jnp.array(lengths))
    for row, length in enumerate(lengths):
        alone = AntiAliasedSnake().apply(variables, x[row : row + 1, :length])
        np.testing.assert_allclose(together[row, :length], alone[0], atol=1e-6)
        assert not together[row, length:].any()


def test_what_lies_beyond_a_row_cannot_be_seen():
    x, variables = signal(1, 20, 3), {"params": snake_params(3)}
    lengths = jnp.array([8])
    clean = AntiAliasedSnake().apply(variables, x, lengths)
    np.testing.assert_array_equal(AntiAliasedSnake().apply(variables, x.at[:, 8:].set(jnp.nan), lengths), clean)


def test_a_constant_passes_both_filters():
    y = anti_aliased(lambda x: x, jnp.full((1, 9, 2), 3.0))
    np.testing.assert_allclose(y, 3.0, atol=0.01)  # each phase of the doubling filter sums to 1 within 0.2 %


def test_the_declared_reach_is_the_true_one():
    x = signal(1, 31, 1).at[0, 15].set(jnp.nan)  # not-a-number spreads exactly as far as the arithmetic does
    touched = np.flatnonzero(np.isnan(anti_aliased(lambda x: x, x)[0, :, 0]))
    assert (touched[0], touched[-1]) == (15 - REACH, 15 + REACH)
