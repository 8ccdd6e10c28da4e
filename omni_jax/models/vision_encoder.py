"""Vision encoder: a windowed vision transformer with 2x2 merging, over packed images of unlike sizes.

Patches arrive in window order (`input_pipeline/packing.py`), so windows are contiguous and no permutation is left to
do on the device; the merged tokens come out in window order too, and the prompt's source rows point into it.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omni_jax.config import VisionEncoderConfig
from omni_jax.layers.feed_forward import GatedFeedForward
from omni_jax.layers.interval_attention import attend_intervals, attend_packed_blocks
from omni_jax.layers.linear import Linear
from omni_jax.layers.norms import RMSNorm
from omni_jax.layers.remat import rematerialised
from omni_jax.layers.rotary import Tables, axial_tables, rotate
from omni_jax.layers.rounded_products import unroll


@struct.dataclass
class VisionLayout:
    """Which patches attend to each other: by window in most layers, by whole frame in the others.

    `*_slots` hold the packed index at each place of each block (P marks an empty place), `*_home` the flat place of
    each packed patch. See `attend_packed_blocks`.
    """

    coordinates: Int[Array, "P 2"]
    window_slots: Int[Array, "W M"]
    window_home: Int[Array, "P"]
    frame_slots: tuple[Int[Array, "_ _"], ...]  # a table for each size class of frames
    frame_home: Int[Array, "P"]


@struct.dataclass
class VisionBounds:
    """As `VisionLayout`, for packed rows of a batch (training): each patch sees patches bounds[0] <= p < bounds[1]."""

    coordinates: Int[Array, "B P 2"]
    window: Int[Array, "B P 2"]
    frame: Int[Array, "B P 2"]


class VisionLayer(nn.Module):
    config: VisionEncoderConfig
    dtype: DTypeLike
    param_dtype: DTypeLike
    trace: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B P D"], whole_frame: Array, tables: Tables, layout: VisionLayout | VisionBounds
    ):
        config = self.config
        width, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype, stddev=config.initializer_range)
        norm = dict(epsilon=config.rms_norm_eps, param_dtype=self.param_dtype)

        window_patches = (config.window_cells * config.spatial_merge_size) ** 2
        out = _Attention(width, heads, head_dim, window_patches, name="attention", **common)(
            RMSNorm(name="attention_norm", **norm)(x), whole_frame, tables, layout
        )
        x = x + out
        feed_forward = GatedFeedForward(width, config.intermediate_size, use_bias=True, name="mlp", **common)
        x = x + feed_forward(RMSNorm(name="mlp_norm", **norm)(x))
        return x, (x if self.trace else None)


class _Attention(nn.Module):
    width: int
    heads: int
    head_dim: int
    window_patches: int
    dtype: DTypeLike
    param_dtype: DTypeLike
    stddev: float

    @nn.compact
    def __call__(self, x, whole_frame, tables, layout):
        common = dict(use_bias=True, dtype=self.dtype, param_dtype=self.param_dtype, stddev=self.stddev)
        shape = (self.heads, self.head_dim)
        query, key, value = (
            Linear((self.width,), shape, ("embed", "heads", "head_dim"), name=name, **common)(x)
            for name in ("query", "key", "value")
        )
        # the published encoder rotates in float32 whatever its dtype
        query, key = (rotate(part, tables, dtype=jnp.float32) for part in (query, key))
        whole, windowed = _attentions(layout, self.window_patches)
        out = jax.lax.cond(whole_frame, whole, windowed, query, key, value)
        return Linear(shape, (self.width,), ("heads", "head_dim", "embed"), name="out", **common)(out)


def _attentions(layout: VisionLayout | VisionBounds, window_patches: int) -> tuple[Callable, Callable]:
    """Attention within whole frames, and within windows."""
    if isinstance(layout, VisionBounds):
        frame, window = ((bounds[..., 0], bounds[..., 1]) for bounds in (layout.frame, layout.window))
        return (
            lambda q, k, v: attend_intervals(q, k, v, *frame),
            lambda q, k, v: attend_intervals(q, k, v, *window, reach=window_patches),
        )
    return (
        lambda q, k, v: attend_packed_blocks(q, k, v, slots=layout.frame_slots, home=layout.frame_home),
        lambda q, k, v: attend_packed_blocks(q, k, v, slots=(layout.window_slots,), home=layout.window_home),
    )


class PatchMerger(nn.Module):
    """Norm, then four neighbouring patches through a two-layer GELU network to one token."""

    config: VisionEncoderConfig
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*B P D"]) -> Float[Array, "*B Q H"]:
        config = self.config
        common = dict(use_bias=True, dtype=self.dtype, param_dtype=self.param_dtype, stddev=config.initializer_range)
        x = RMSNorm(epsilon=config.rms_norm_eps, param_dtype=self.param_dtype, name="norm")(x)
        merged = config.hidden_size * config.spatial_merge_size**2
        x = x.reshape(*x.shape[:-2], -1, merged)
        x = jax.nn.gelu(Linear((merged,), (merged,), ("embed", "mlp"), name="up", **common)(x), approximate=False)
        return Linear((merged,), (config.out_hidden_size,), ("mlp", "embed"), name="down", **common)(x)


class VisionEncoder(nn.Module):
    """Packed patches to merged tokens."""

    config: VisionEncoderConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str = "none"
    trace: bool = False

    @nn.compact
    def __call__(
        self, patches: Float[Array, "*B P C"], layout: VisionLayout | VisionBounds
    ) -> tuple[Float[Array, "*B Q H"], Float[Array, "L *B P D"] | None]:
        """Encodes packed patches (window order; rows without a block are padding and give garbage tokens).

        A batch of packed rows comes with `VisionBounds`.

        Returns:
            Q = P / 4 tokens in window order, and each layer's output when `trace` is set.
        """
        config = self.config
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = Linear(
            (config.patch_dim,), (config.hidden_size,), ("patch", "embed"), stddev=config.initializer_range,
            name="patch_embed", **common,
        )(patches)  # fmt: skip
        tables = axial_tables(layout.coordinates, head_dim=config.head_dim, theta=config.rope_theta)
        whole_frame = np.zeros(config.depth, bool)
        whole_frame[list(config.fullatt_block_indexes)] = True
        layers = nn.scan(
            rematerialised(VisionLayer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.depth,
            unroll=unroll(),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, trace=self.trace, name="layers", **common)
        with jax.named_scope(f"{whole_frame.sum()}_of_{config.depth}"):  # read by compilation/flops.py
            x, outputs = layers(x, jnp.asarray(whole_frame), tables, layout)
        return PatchMerger(config, name="merger", **common)(x), outputs
