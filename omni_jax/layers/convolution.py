"""One-dimensional convolutions over [B, T, C] arrays, with PyTorch's paddings and exact lengths.

Kernels are [k, in, out]. A transposed kernel is stored as the correlation that computes it: taps reversed with
respect to PyTorch, so that XLA runs it as an ordinary convolution of the zero-stuffed input. (Measured on a CPU at
the vocoder's widths, this equals or beats a polyphase form, which has to rearrange the kernel at every call.)
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from omni_jax.kernels.target import current_target

Padding = Literal["zeros", "reflect"]

_LAYOUT = ("NWC", "WIO", "NWC")


def conv1d(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "k I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = "zeros",
) -> Float[Array, "B T2 O"]:
    """Correlation that keeps the length at stride 1 ("same"): T2 = ceil(T / stride) for odd kernels.

    `padding="reflect"` mirrors the signal about its first and last frame, and needs T > dilation * (k - 1) / 2.
    """
    total = dilation * (kernel.shape[0] - 1)
    left, right = total // 2, total - total // 2
    if padding == "reflect" and total:
        x = jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode="reflect")
        left = right = 0
    y = lax.conv_general_dilated(
        x, kernel, (stride,), [(left, right)], rhs_dilation=(dilation,), dimension_numbers=_LAYOUT
    )
    return y if bias is None else y + bias


def conv_transpose1d(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "k I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    stride: int,
) -> Float[Array, "B T2 O"]:
    """Upsampling by `stride`, cropped by (k - stride) // 2 at both ends: T2 = T * stride where k - stride is even."""
    y = _upsample(x, kernel, stride)
    return y if bias is None else y + bias


def _stuffed(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Correlation with the kernel of x with stride - 1 zeros after each frame."""
    pad = _before(kernel, stride)
    return lax.conv_general_dilated(x, kernel, (1,), [(pad, pad)], lhs_dilation=(stride,), dimension_numbers=_LAYOUT)


def _before(kernel: jax.Array, stride: int) -> int:
    """Zeros before the first frame."""
    taps = kernel.shape[0]
    return taps - 1 - (taps - stride) // 2


_upsample = jax.custom_vjp(_stuffed, nondiff_argnums=(2,))


def _upsample_gradients(stride: int, kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kernel's gradient is a product for each tap: frame t meets sample stride · t + pad - tap. What XLA derives is
    a correlation with the stuffed input, zeros and all; on a CPU it took a quarter of the speech tokenizer's step."""
    x, kernel = kept
    if current_target().platform != "cpu":  # one convolution there, and slices with strides are dear
        return jax.vjp(lambda *each: _stuffed(*each, stride), x, kernel)[1](gradient)
    (of_x,) = jax.vjp(lambda x: _stuffed(x, kernel, stride), x)[1](gradient)
    taps, time, pad = kernel.shape[0], x.shape[1], _before(kernel, stride)
    last = taps - 1 - pad  # the last tap begins this many samples before the first
    beyond = max(0, (time - 1) * stride + pad + 1 - gradient.shape[1])
    padded = jnp.pad(gradient, ((0, 0), (last, beyond), (0, 0)))
    heard = [padded[:, last + pad - tap :: stride][:, :time] for tap in range(taps)]
    of_kernel = [jnp.einsum("bti,bto->io", x, samples) for samples in heard]
    return of_x, jnp.stack(of_kernel).astype(kernel.dtype)


_upsample.defvjp(lambda x, kernel, stride: (_stuffed(x, kernel, stride), (x, kernel)), _upsample_gradients)


def keep_frames(x: Float[Array, "B T C"], lengths: jax.Array | None) -> Float[Array, "B T C"]:
    """Zero every frame at or after its row's length, as a convolution's padding would be. None keeps all."""
    if lengths is None:
        return x
    return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)


def _kernel_init():
    return nn.with_logical_partitioning(
        nn.initializers.lecun_normal(in_axis=-2, out_axis=-1), ("conv_kernel", "conv_in", "conv_out")
    )


class Conv1d(nn.Module):
    """`conv1d` with its parameters."""

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    padding: Padding = "zeros"
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T2 O"]:
        kernel = self.param("kernel", _kernel_init(), (self.kernel_size, x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
            bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        return conv1d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            bias,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
        )


class ConvTranspose1d(nn.Module):
    """`conv_transpose1d` with its parameters."""

    features: int
    kernel_size: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T2 O"]:
        kernel = self.param("kernel", _kernel_init(), (self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)), (self.features,))
        return conv_transpose1d(
            x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype), stride=self.stride
        )
