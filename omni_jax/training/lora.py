"""Low-rank adaptation (arXiv:2106.09685) of any part of the model.

An adapted matrix W is used as W + (alpha / rank) A B, added up before the layer runs: layers know nothing of it, the
sum is what is exported, and every kind of kernel can have one. The price is a copy of the adapted matrices and of their
gradients in the compute dtype; what low rank saves is the float32 master copy and the optimiser's two moments. (qwix
adapts Linen modules at each product instead; it does not see the einsum kernels of several axes, stacked over layers,
that this model is made of.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omni_jax.errors import ConfigError
from omni_jax.training.optimizer import cuts, is_matrix, matching

LORA = "lora"  # the pseudo-component that holds the adapters: lora/PATH/lora_in, lora/PATH/lora_out


@dataclass(frozen=True)
class LoraConfig:
    """patterns: regular expressions; every kernel or embedding in whose path one is found gets an adapter."""

    patterns: tuple[str, ...] = ("^thinker/layers/(attention|mlp)/",)
    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"lora.rank = {self.rank} must be at least 1.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def lora_parts(
    config: LoraConfig, axes: Mapping[str, tuple], shapes: Mapping[str, Any]
) -> tuple[dict[str, tuple], dict[str, jax.ShapeDtypeStruct]]:
    """Logical axes and shapes of all adapters.

    Args:
        axes, shapes: of the model, by path.

    Returns:
        Both by path: "PATH/lora_in" and "PATH/lora_out" for each adapted PATH.

    Raises:
        ConfigError: a pattern that finds no matrix.
    """
    matrices = [path for path in shapes if is_matrix(path)]
    chosen = dict.fromkeys(path for pattern in config.patterns for path in matching(pattern, matrices, "lora.patterns"))
    out_axes, out_shapes = {}, {}
    for path in chosen:
        shape, (stack, split) = shapes[path].shape, cuts(axes[path])
        sides = {
            "lora_in": ((*axes[path][:split], None), (*shape[:split], config.rank)),
            "lora_out": (
                (*axes[path][:stack], None, *axes[path][split:]),
                (*shape[:stack], config.rank, *shape[split:]),
            ),
        }
        for name, (names, size) in sides.items():
            out_axes[f"{path}/{name}"] = names
            out_shapes[f"{path}/{name}"] = jax.ShapeDtypeStruct(size, jnp.float32)
    return out_axes, out_shapes


def start_lora(key: jax.Array, shapes: Mapping[str, Any], axes: Mapping[str, tuple]) -> dict[str, Array]:
    """Adapters that change nothing yet: A is normal with variance 1 / inputs, B is zero.

    Args:
        shapes: of the adapters, by path. axes: of the model's parameters.
    """
    out = {}
    for index, (path, leaf) in enumerate(sorted(shapes.items())):
        if path.endswith("lora_out"):
            out[path] = jnp.zeros(leaf.shape, jnp.float32)
            continue
        stack, split = cuts(axes[path.rsplit("/", 1)[0]])
        inputs = math.prod(leaf.shape[stack:split])
        out[path] = jax.random.normal(jax.random.fold_in(key, index), leaf.shape) / math.sqrt(inputs)
    return out


def merge_lora(
    params: Mapping[str, Array],
    adapters: Mapping[str, Array],
    axes: Mapping[str, tuple],
    scale: float,
    dtype: Any = None,
) -> dict[str, Array]:
    """Parameters by path with their adapters added.

    Args:
        axes: logical axes of `params`, which tell inputs from outputs.
        dtype: of the sums; by default that of each parameter.
    """
    out = dict(params)
    for path in {name.rsplit("/", 1)[0] for name in adapters}:
        sides = adapters[f"{path}/lora_in"], adapters[f"{path}/lora_out"]
        out[path] = adapted(params[path], *sides, axes[path], scale).astype(dtype or params[path].dtype)
    return out


def adapted(
    weight: Array, inner: Array, outer: Array, axes: tuple, scale: float, precision: str | None = None
) -> Float[Array, "..."]:
    """The sum of one parameter and its adapter, float32.

    Args:
        axes: logical axes of the parameter.
        precision: of the product; "highest" where it matters more than its time, since TPUs round to bfloat16 without.
    """
    stack, _ = cuts(axes)
    left = inner.reshape(*inner.shape[:stack], -1, inner.shape[-1])
    right = outer.reshape(*outer.shape[: stack + 1], -1)
    change = scale * jnp.matmul(left, right, precision=precision).reshape(weight.shape)
    return weight.astype(jnp.float32) + change
