"""Operations that a model needs for one step, and what the devices could do in that time."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax

from input_pipeline.training_batch import RowShape

# Peak bfloat16 operations a second of one JAX device, by how `device.device_kind` begins.
# TPU: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each generation. H100 (SXM): its
# data sheet.
_PEAKS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 1153.5e12),
    ("NVIDIA H100", 989e12),
)
# Whose outputs feed whom: a frozen part passes gradients on if something before it is trained.
_BEFORE = {"thinker": ("audio_encoder", "vision_encoder"), "talker": ("audio_encoder", "vision_encoder", "thinker")}


def peak_flops(device: jax.Device) -> float | None:
    """None for a kind that is not listed, such as a CPU."""
    kind = device.device_kind
    return next((peak for name, peak in _PEAKS if kind.startswith(name)), None)


def flops_per_position(shapes: Mapping[str, Any], trained: Collection[str]) -> dict[str, float]:
    """Operations that each component needs for one of its positions, forward and backward.

    Two for each weight of a matrix forward; two more where a gradient passes through it, and two more where it is
    trained (arXiv:2001.08361, section 2.1). Embedding tables, which are looked up, and the products of attention
    itself are left out, and work that is done again in the backward pass is not counted: the figure is a lower bound.

    Args:
        shapes: path -> anything with a shape. trained: the paths of those that are trained.

    Returns:
        Component -> operations a position.
    """
    # an adapter lies at lora/PATH: its component passes gradients on
    moving, out = {path.removeprefix("lora/").split("/", 1)[0] for path in trained}, {}
    for path, leaf in shapes.items():
        component, name = path.split("/", 1)[0], path.rsplit("/", 1)[-1]
        passes = path in trained or any(before in moving for before in (component, *_BEFORE.get(component, ())))
        if name == "kernel":
            each = 2 + 2 * passes + 2 * (path in trained)
            out[component] = out.get(component, 0.0) + each * math.prod(leaf.shape)
    return out


def positions(shape: RowShape) -> dict[str, int]:
    """How many positions of each component a row has, padding included: it is worked on too."""
    return {
        "audio_encoder": 100 * shape.audio_blocks,  # 2 s in frames of 20 ms
        "vision_encoder": shape.patches,
        "thinker": shape.tokens,
        "talker": shape.speech,
    }
