"""Patches against transformers' PIL image processor, and films against a plain loop around it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_smart_resize

from input_pipeline.media import load_image
from input_pipeline.patches import frame_size, image_patches, smart_resize, video_patches
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError
from tests.input_pipeline.media_files import picture, write_image

CFG = ProcessorConfig()
ONE_STEP = 1 / 255 / min(CFG.image_std) + 1e-6  # one 8-bit level, in units of the normalised pixels


def reference(image: np.ndarray, min_pixels: int = CFG.image_min_pixels, max_pixels: int = CFG.image_max_pixels):
    processor = Qwen2VLImageProcessorPil(min_pixels=min_pixels, max_pixels=max_pixels)
    out = processor(images=[image], return_tensors="np", input_data_format="channels_last")
    return out["pixel_values"], tuple(out["image_grid_thw"][0].tolist())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (476, 644)),
        ((1080, 1920), (1092, 1932)),
        ((100, 100), (112, 112)),
        ((20, 20), (56, 56)),
        ((4000, 4000), (3584, 3584)),
        ((42, 70), (56, 56)),  # 1.5 -> 2 and 2.5 -> 2: half to even
    ],
)
def test_known_image_sizes(size, expected):
    assert smart_resize(*size, 28, CFG.image_min_pixels, CFG.image_max_pixels) == expected


@pytest.mark.parametrize(("size", "expected"), [((1080, 1920), (560, 1008)), ((112, 112), (336, 336))])
def test_known_frame_sizes(size, expected):
    assert frame_size(*size, 8, CFG) == expected


def test_a_long_film_shares_its_pixel_budget():
    few, many = (np.prod(frame_size(1080, 1920, frames, CFG)) for frames in (8, 768))
    assert many <= CFG.video_total_pixels * 2 / 768 < few
    tight = ProcessorConfig(video_total_pixels=1)
    assert np.prod(frame_size(1080, 1920, 768, tight)) <= 1.05 * CFG.video_min_pixels


@settings(max_examples=300, deadline=None)
@given(height=st.integers(1, 6000), width=st.integers(1, 6000), low=st.integers(1, 200), span=st.integers(1, 20000))
def test_sizes_equal_the_reference_within_the_bounds(height, width, low, span):
    bounds = low * 784, (low + span) * 784
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(MediaError, match=r"photo\.png: .*200 to 1"):
            smart_resize(height, width, 28, *bounds, name="photo.png")
    else:
        assert smart_resize(height, width, 28, *bounds) == reference_smart_resize(height, width, 28, *bounds)


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (33, 500), (97, 131), (480, 640)])
def test_image_patches_equal_the_reference(size):
    image = picture(*size)
    pixels, grid = reference(image)
    patches = image_patches(image, CFG)
    assert patches.grid == grid and patches.pixels.dtype == np.float32
    np.testing.assert_allclose(patches.pixels, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_patches_of_decoded_files_are_within_one_step_of_the_reference(tmp_path, suffix):
    path = write_image(tmp_path / f"photo.{suffix}", picture(150, 201))
    with Image.open(path) as image:
        pixels, grid = reference(np.asarray(image.convert("RGB")))
    patches = image_patches(load_image(path), CFG)
    assert patches.grid == grid
    assert np.abs(patches.pixels - pixels).max() <= ONE_STEP


def test_a_large_image_shrinks_as_the_reference_does():
    cfg = ProcessorConfig(image_max_pixels=64 * 28 * 28)
    image = picture(500, 333)
    pixels, grid = reference(image, cfg.image_min_pixels, cfg.image_max_pixels)
    patches = image_patches(image, cfg)
    assert patches.grid == grid and np.prod(grid) <= 64 * 4
    np.testing.assert_allclose(patches.pixels, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_video_rows_are_pairs_of_the_reference_frames(count):
    cfg = ProcessorConfig(video_min_pixels=4 * 784, video_max_pixels=16 * 784)
    frames = np.stack([picture(60, 90, seed=seed) for seed in range(count)])
    patches = video_patches(frames, cfg)

    padded = [*frames, frames[-1]] if count % 2 else list(frames)
    per_frame, grids = zip(*(reference(frame, cfg.video_min_pixels, cfg.video_max_pixels) for frame in padded))
    rows = []
    for first, second in zip(per_frame[::2], per_frame[1::2]):
        for one, other in zip(first, second):
            row = np.empty((3, 2, 14, 14), np.float32)
            row[:, 0] = one.reshape(3, 2, 14, 14)[:, 0]
            row[:, 1] = other.reshape(3, 2, 14, 14)[:, 0]
            rows.append(row.reshape(-1))
    assert patches.grid == (len(padded) // 2, *grids[0][1:])
    np.testing.assert_allclose(patches.pixels, np.stack(rows), atol=1e-5, rtol=0)


def test_rows_follow_the_two_by_two_cells():
    image = np.zeros((56, 84, 3), np.uint8)
    for y in range(4):
        for x in range(6):
            image[y * 14 : y * 14 + 14, x * 14 : x * 14 + 14] = 10 * (6 * y + x)
    patches = image_patches(image, CFG)
    red = patches.pixels[:, 0] * CFG.image_std[0] + CFG.image_mean[0]
    order = np.round(red * 255 / 10).astype(int).tolist()
    assert order == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23]


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), "u1")]
)
def test_arrays_that_are_no_rgb_image_are_refused(array):
    with pytest.raises(MediaError, match="uint8"):
        image_patches(array, CFG)
    with pytest.raises(MediaError, match="uint8"):
        video_patches(array, CFG)


def test_a_strip_is_refused():
    with pytest.raises(MediaError, match=r"strip\.png: 20000x10 .*200 to 1"):
        image_patches(np.zeros((10, 20000, 3), np.uint8), CFG, name="strip.png")
