"""Pictures and films as rows of normalised patches, in checkpoint order (architecture.md 4.1, 4.2)."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError

_MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class Patches:
    """Patches of one picture or film.

    pixels: float32 [P, 1176], each row ordered channel(3), frame(2), y(14), x(14). Four rows in sequence make a token.
    grid: (frame pairs, patch rows, patch columns), whose product is P.
    """

    pixels: np.ndarray
    grid: tuple[int, int, int]


def check_aspect_ratio(height: int, width: int, name: str) -> None:
    """Raises `MediaError` for a strip whose sides are more than 200 to 1."""
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"{name}: {width}x{height} pixels is too long a strip; the model takes sides of at most "
            f"{_MAX_ASPECT_RATIO} to 1. Crop it, or cut it into pieces."
        )


def smart_resize(
    height: int, width: int, factor: int, min_pixels: float, max_pixels: float, *, name: str = "image"
) -> tuple[int, int]:
    """Height and width as multiples of `factor` whose product is between the bounds, about as the sides were.

    480, 640, 28, 3136, 12845056  ->  476, 644

    Sides are rounded half to even, then scaled together when the area is out of bounds (Qwen2-VL).

    Raises:
        MediaError: a side of 0, or sides more than 200 to 1.
    """
    if min(height, width) < 1:
        raise MediaError(f"{name}: {width}x{height} pixels is an empty picture. Give one of at least 1x1.")
    check_aspect_ratio(height, width, name)
    new_height, new_width = (round(side / factor) * factor for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height, new_width = (max(1, math.floor(side / shrink / factor)) * factor for side in (height, width))
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def frame_size(height: int, width: int, frames: int, cfg: ProcessorConfig, *, name: str = "video") -> tuple[int, int]:
    """Height and width of each frame of a film of `frames` sampled frames, which share `cfg.video_total_pixels`."""
    share = cfg.video_total_pixels * cfg.temporal_patch_size / frames
    budget = max(min(cfg.video_max_pixels, share), int(1.05 * cfg.video_min_pixels))
    return smart_resize(height, width, cfg.patch_size * cfg.merge_size, cfg.video_min_pixels, budget, name=name)


def image_patches(image: np.ndarray, cfg: ProcessorConfig, *, name: str = "image") -> Patches:
    """Patches of a picture, uint8 [H, W, 3]; it counts as a film of two equal frames, so grid[0] is 1."""
    _check_pixels(image, 3, "[H, W, 3]", name)
    factor = cfg.patch_size * cfg.merge_size
    size = smart_resize(*image.shape[:2], factor, cfg.image_min_pixels, cfg.image_max_pixels, name=name)
    return _patches([image], size, cfg)


def video_patches(frames: np.ndarray, cfg: ProcessorConfig, *, name: str = "video") -> Patches:
    """Patches of a film, uint8 [T, H, W, 3]; when T is odd the last frame is repeated."""
    _check_pixels(frames, 4, "[T, H, W, 3]", name)
    pair = cfg.temporal_patch_size
    groups = -(-len(frames) // pair)
    size = frame_size(*frames.shape[1:3], groups * pair, cfg, name=name)
    return _patches([frames[g * pair : (g + 1) * pair] for g in range(groups)], size, cfg)


def _check_pixels(array: np.ndarray, ndim: int, shape: str, name: str) -> None:
    if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3 or array.size == 0:
        raise MediaError(f"{name}: shape {array.shape} of {array.dtype}, but the patches need uint8 {shape}.")


def _patches(groups: list[np.ndarray], size: tuple[int, int], cfg: ProcessorConfig) -> Patches:
    """`groups`: the frames of each temporal patch; one that holds fewer frames than it should repeats its last.

    Values are looked up in a table of 256 per channel, which is exact and touches each float once.
    """
    side, merge, pair = cfg.patch_size, cfg.merge_size, cfg.temporal_patch_size
    rows, columns = size[0] // side, size[1] // side
    table = _normalised_levels(cfg)
    shape = (len(groups), rows // merge, columns // merge, merge, merge, 3, pair, side, side)
    pixels = np.empty(shape, np.float32)
    for index, group in enumerate(groups):
        frames = group if group.ndim == 4 else group[None]
        for position in range(pair):
            if position >= len(frames):
                pixels[index, ..., position, :, :] = pixels[index, ..., position - 1, :, :]
                continue
            frame = _resize(frames[position], size)
            cells = frame.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
            ordered = cells.transpose(6, 0, 3, 1, 4, 2, 5)  # channel, cell row, cell column, 2, 2, y, x
            for channel in range(3):
                pixels[index, :, :, :, :, channel, position] = table[channel][ordered[channel]]
    return Patches(pixels.reshape(-1, 3 * pair * side * side), (len(groups), rows, columns))


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


def _normalised_levels(cfg: ProcessorConfig) -> np.ndarray:
    """What each 8-bit level becomes: float32 [channel, 256]."""
    mean, std = np.array(cfg.image_mean)[:, None], np.array(cfg.image_std)[:, None]
    return ((np.arange(256)[None] / 255 - mean) / std).astype(np.float32)
