"""One-dimensional convolutions are PyTorch's, paddings and lengths included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn as torch_nn

from omni_jax.interop.weight_table import conv1d as conv_layout
from omni_jax.interop.weight_table import conv_transpose1d as transposed_layout
from omni_jax.layers.convolution import Conv1d, ConvTranspose1d, conv_transpose1d, keep_frames


def run(module, layer, x, layout):
    """Our module with the PyTorch layer's weights; [B, T, C] in and out."""
    params = {"kernel": jnp.asarray(layout.to_jax(layer.weight.detach().numpy()))}
    if layer.bias is not None:
        params["bias"] = jnp.asarray(layer.bias.detach().numpy())
    return module.apply({"params": params}, jnp.asarray(x.numpy()))


def published(layer, x):
    with torch.no_grad():
        return layer(x.transpose(1, 2)).transpose(1, 2).numpy()


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (3, 4), (4, 1), (5, 2), (11, 5)])
def test_same_padding_matches_pytorch(size, dilation, padding):
    x = torch.randn(2, 41, 3)
    layer = torch_nn.Conv1d(3, 5, size, dilation=dilation, padding="same", padding_mode=padding)
    ours = run(Conv1d(5, size, dilation=dilation, padding=padding), layer, x, conv_layout)
    np.testing.assert_allclose(ours, published(layer, x), atol=1e-5)


@pytest.mark.parametrize("length", [7, 8])
def test_stride_two_matches_pytorch(length):
    x = torch.randn(2, length, 3)
    layer = torch_nn.Conv1d(3, 5, 3, stride=2, padding=1, bias=False)
    ours = run(Conv1d(5, 3, stride=2, use_bias=False), layer, x, conv_layout)
    np.testing.assert_allclose(ours, published(layer, x), atol=1e-5)


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize(("size", "stride"), [(11, 5), (7, 3), (4, 2)])
def test_upsampling_matches_pytorch_and_multiplies_the_length(size, stride, length):
    x = torch.randn(2, length, 6)
    layer = torch_nn.ConvTranspose1d(6, 3, size, stride, padding=(size - stride) // 2)
    ours = run(ConvTranspose1d(3, size, stride), layer, x, transposed_layout)
    assert ours.shape == (2, length * stride, 3)
    np.testing.assert_allclose(ours, published(layer, x), atol=1e-5)


def test_parameters_name_their_axes():
    params = Conv1d(4, 3).init(jax.random.key(0), jnp.zeros((1, 5, 2)))["params"]
    assert params["kernel"].names == ("conv_kernel", "conv_in", "conv_out")
    assert params["kernel"].value.shape == (3, 2, 4)
    assert params["bias"].names == ("conv_out",)


def test_frames_beyond_a_rows_length_become_zero_even_if_not_a_number():
    x = jnp.ones((2, 4, 3)).at[0, 2:].set(jnp.nan)
    kept = keep_frames(x, jnp.array([2, 4]))
    np.testing.assert_array_equal(kept[..., 0], [[1, 1, 0, 0], [1, 1, 1, 1]])
    assert keep_frames(x, None) is x


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize(("size", "stride"), [(4, 2), (11, 5), (12, 6), (16, 8), (7, 3), (2, 2)])
def test_gradients_of_upsampling_match_pytorch(size, stride, length):
    x = torch.randn(2, length, 6, requires_grad=True)
    layer = torch_nn.ConvTranspose1d(6, 3, size, stride, padding=(size - stride) // 2, bias=False)
    out = layer(x.transpose(1, 2)).transpose(1, 2)
    shape = torch.randn(*out.shape)
    (out * shape).sum().backward()
    kernel = jnp.asarray(transposed_layout.to_jax(layer.weight.detach().numpy()))

    def score(x, kernel):
        return jnp.sum(conv_transpose1d(x, kernel, stride=stride) * shape.numpy())

    of_x, of_kernel = jax.grad(score, (0, 1))(jnp.asarray(x.detach().numpy()), kernel)
    np.testing.assert_allclose(of_x, x.grad, atol=1e-5)
    np.testing.assert_allclose(of_kernel, transposed_layout.to_jax(layer.weight.grad.numpy()), atol=1e-4)
