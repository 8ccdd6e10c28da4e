"""Packing moves every real value to exactly one place, and padding and neighbours change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_window_index

from input_pipeline.packing import BUCKETS, bucket, pack_audio, pack_batch, pack_vision
from input_pipeline.patches import Patches
from input_pipeline.request import VideoFeatures, assemble
from omni_jax.config import AudioEncoderConfig, VisionEncoderConfig
from omni_jax.errors import CapacityError, ConfigError, MediaError
from omni_jax.presets import preset

CONFIG = preset("tiny")
THINKER = CONFIG.thinker_config
AUDIO = AudioEncoderConfig(
    d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8, output_dim=8, num_mel_bins=3, n_window=8
)
VISION = VisionEncoderConfig(
    depth=1, hidden_size=8, intermediate_size=8, num_heads=1, out_hidden_size=8, fullatt_block_indexes=(0,),
    patch_size=2, window_size=16, in_channels=1,
)  # fmt: skip


def mel(frames, bins=3, first=1):
    """Every value is different, so that a misplaced one is seen."""
    return (first + np.arange(bins * frames, dtype=np.float32)).reshape(bins, frames)


def patches(grid, first=1, dim=VISION.patch_dim):
    """The first value of each patch is its number."""
    pixels = np.zeros((int(np.prod(grid)), dim), np.float32)
    pixels[:, 0] = first + np.arange(len(pixels))
    return Patches(pixels, grid)


even = st.integers(1, 6).map(lambda n: 2 * n)
grids = st.tuples(st.integers(1, 3), even, even)


# Buckets


def test_a_bucket_is_the_smallest_size_that_fits():
    assert bucket(1, BUCKETS.patches, "patches") == 128
    assert bucket(128, BUCKETS.patches, "patches") == 128
    assert bucket(129, BUCKETS.patches, "patches") == 192
    assert bucket(0, BUCKETS.windows, "windows") == 1


def test_too_much_is_refused_by_name():
    with pytest.raises(CapacityError, match="33 requests .* 32"):
        bucket(33, BUCKETS.batch, "requests")


def test_large_patch_buckets_waste_at_most_a_fifth_and_hold_a_minute_of_film():
    sizes = np.array([size for size in BUCKETS.patches if size >= 512])
    assert (1 - sizes[:-1] / sizes[1:] <= 0.2 + 1e-9).all()
    assert all(size % 64 == 0 for size in BUCKETS.patches)
    assert BUCKETS.patches[-1] >= 172032
    assert BUCKETS.audio_blocks[:7] == (1, 2, 3, 4, 6, 8, 12)
    assert BUCKETS.cache[-1] == 32768


# Audio


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(3, 100), min_size=1, max_size=5))
def test_audio_blocks_hold_each_frame_once_and_each_token_in_order(lengths):
    clips = [mel(n, first=1000 * i + 1) for i, n in enumerate(lengths)]
    batch = pack_audio(clips, AUDIO)
    blocks = [block[:n] for block, n in zip(batch.mel, batch.frames, strict=True) if n]
    np.testing.assert_array_equal(np.concatenate(blocks).T, np.concatenate(clips, axis=1))
    assert all((block[n:] == 0).all() for block, n in zip(batch.mel, batch.frames, strict=True))
    assert batch.mel.shape[0] in BUCKETS.audio_blocks and batch.mel.shape[1:] == (16, 3)
    assert len(batch.rows) == sum((n + 1) // 4 for n in lengths)
    assert (np.diff(batch.rows) > 0).all()
    block, slot = np.divmod(batch.rows, 4)
    assert (
        4 * slot + 2 < batch.frames[block]
    ).all()  # token k averages positions 2k, 2k+1: frames 4k ... 4k+2 at least


def test_a_clip_is_cut_every_two_seconds():
    batch = pack_audio([mel(450, 128)], preset("qwen2.5-omni-7b").thinker_config.audio_config)
    assert batch.frames.tolist() == [200, 200, 50]
    assert batch.rows.tolist() == list(range(112))  # (450 + 1) // 4


def test_a_short_tail_has_no_token_of_its_own():
    batch = pack_audio([mel(17), mel(5)], AUDIO)
    assert batch.frames.tolist() == [16, 1, 5]
    assert batch.rows.tolist() == [0, 1, 2, 3, 8]


def test_odd_windows_and_foreign_features_are_refused():
    with pytest.raises(ConfigError, match="n_window = 7"):
        pack_audio([mel(9)], AudioEncoderConfig(8, 1, 1, 8, 8, 3, n_window=7))
    with pytest.raises(MediaError, match="(3, 9)"):
        pack_audio([mel(9)], THINKER.audio_config)


# Vision


def tensor_grids(items):
    return torch.tensor([item.grid for item in items])


@settings(max_examples=60, deadline=None)
@given(st.lists(grids, min_size=1, max_size=3))
def test_windows_and_frames_are_those_of_the_reference(shapes):
    items = [patches(grid, first=1 + 1000 * i) for i, grid in enumerate(shapes)]
    batch = pack_vision(items, VISION)
    order, boundaries = get_vision_window_index(tensor_grids(items), spatial_merge_size=2, window_size=16, patch_size=2)
    np.testing.assert_array_equal(np.argsort(batch.rows), np.asarray(order))
    sizes = (batch.window_slots < len(batch.patches)).sum(axis=1)
    np.testing.assert_array_equal(np.cumsum(sizes[sizes > 0]), np.unique(np.asarray(boundaries))[1:])
    assert_consistent(batch, items)


def assert_consistent(batch, items):
    total, real = len(batch.patches), sum(len(item.pixels) for item in items)
    everything = np.concatenate([item.pixels for item in items])
    assert total in BUCKETS.patches and batch.valid.sum() == real and batch.valid[:real].all()
    # In checkpoint order again: cells of four patches.
    cells = batch.patches.reshape(total // 4, -1)[batch.rows]
    np.testing.assert_array_equal(cells.reshape(real, -1), everything)
    assert (batch.patches[real:] == 0).all()
    frame_slots = np.concatenate([table.ravel() for table in batch.frame_slots])
    for slots, home in ((batch.window_slots, batch.window_home), (frame_slots, batch.frame_home)):
        held = slots[slots < total]
        np.testing.assert_array_equal(np.sort(held), np.arange(real))  # every real patch exactly once
        assert slots.max() <= total and 0 <= home.min() <= home.max() < slots.size
        np.testing.assert_array_equal(slots.ravel()[home[:real]], np.arange(real))
        assert (home[real:] == 0).all()
    # A window is a subset of one frame, and a frame's patches are all of one frame's.
    numbers = np.append(batch.patches[:, 0], 0)
    frame_of = {}
    for i, item in enumerate(items):
        for j, number in enumerate(item.pixels[:, 0]):
            frame_of[number] = i, j // (item.grid[1] * item.grid[2])
    for slots in (batch.window_slots, *batch.frame_slots):
        for row in slots:
            assert len({frame_of[n] for n in numbers[row[row < total]]}) <= 1
    assert sum(item.grid[0] for item in items) == len(batch.frames())


def test_a_small_frame_beside_a_large_picture_is_not_padded_to_its_size():
    batch = pack_vision([patches((1, 40, 40)), patches((6, 8, 8), first=2000)], VISION)
    pairs = sum(table.shape[0] * table.shape[1] ** 2 for table in batch.frame_slots)
    assert pairs <= 2 * (1600**2 + 6 * 128**2)


def boundaries(slots, total):
    return [0, *np.unique(np.cumsum((slots < total).sum(axis=1))).tolist()]


def test_window_order_of_a_picture_of_6_by_10_cells():
    batch = pack_vision([patches((1, 12, 20))], VISION)
    assert np.argsort(batch.rows)[:9].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20]
    assert boundaries(batch.window_slots, 256) == [0, 64, 128, 160, 192, 224, 240]
    assert [len(frame) for frame in batch.frames()] == [240]


def test_windows_of_a_picture_and_a_film():
    batch = pack_vision([patches((1, 4, 6)), patches((2, 10, 10), first=100)], VISION)
    assert boundaries(batch.window_slots, 256) == [0, 24, 88, 104, 120, 124, 188, 204, 220, 224]
    assert [len(frame) for frame in batch.frames()] == [24, 100, 100]


def test_coordinates_follow_their_patches():
    grid = (2, 6, 12)
    item = patches(grid)
    cells = np.arange(72).reshape(3, 2, 6, 2).transpose(0, 2, 1, 3).ravel()  # patch number, row by row, in cell order
    batch = pack_vision([item], VISION)
    for number, place in zip(batch.patches[batch.valid, 0], batch.coordinates[batch.valid], strict=True):
        assert place.tolist() == list(divmod(int(cells[(int(number) - 1) % 72]), 12))


def test_a_picture_of_whole_windows_needs_no_larger_window_bucket():
    full, ragged = patches((1, 32, 32)), patches((1, 30, 32))
    assert (
        pack_vision([full], VISION).window_slots.shape == pack_vision([ragged], VISION).window_slots.shape == (16, 64)
    )


def test_pixels_that_do_not_fit_are_refused():
    with pytest.raises(MediaError, match=r"\(1, 4, 6\)"):
        pack_vision([Patches(np.zeros((20, VISION.patch_dim), np.float32), (1, 4, 6))], VISION)
    with pytest.raises(MediaError, match="multiples of 2"):
        pack_vision([patches((1, 3, 4))], VISION)


# Batches

BOS, EOS = THINKER.vision_start_token_id, THINKER.vision_end_token_id
PIECES = {
    "text": [5],
    "audio": [THINKER.audio_start_token_id, THINKER.audio_token_id, THINKER.audio_end_token_id],
    "image": [BOS, THINKER.image_token_id, EOS],
    "video": [BOS, THINKER.video_token_id, EOS],
    "film": [BOS, THINKER.video_token_id, EOS],
}
small = st.integers(1, 3).map(lambda n: 2 * n)


@st.composite
def requests(draw):
    kinds = draw(st.lists(st.sampled_from(list(PIECES)), min_size=1, max_size=4))
    first = draw(st.integers(1, 10**6))
    size = draw(st.integers(3, 450)), (1, draw(small), draw(small))
    audio, images, videos = [], [], []
    for i, kind in enumerate(kinds):
        sound = mel(size[0] + i, 128, first + 1000 * i)
        picture = patches(size[1], first + 100 * i, 1176)
        film = patches((2, *size[1][1:]), first + 100 * i, 1176)
        audio += [sound] * (kind == "audio")
        images += [picture] * (kind == "image")
        videos += [VideoFeatures(film, 1.0, sound if kind == "film" else None)] * (kind in ("video", "film"))
    ids = [token for kind in kinds for token in [6, *PIECES[kind]]]
    return assemble(ids, CONFIG, audio=audio, images=images, videos=videos)


def gathered(inputs, row):
    """What one row's media tokens see: frames of a token's block and its slot, pixels of a cell and its window."""
    n = inputs.lengths[row]
    seen = []
    for place in range(n):
        source = inputs.audio_source[row, place]
        if source >= 0:
            block, slot = divmod(int(source), 50)
            seen.append((slot, int(inputs.audio.frames[block]), inputs.audio.mel[block].tobytes()))
        source = inputs.vision_source[row, place]
        if source >= 0:
            vision = inputs.vision
            padded = np.append(vision.patches[:, 0], np.float32(0))
            cell = slice(4 * source, 4 * source + 4)
            window = vision.window_home[cell] // vision.window_slots.shape[1]
            (frame,) = [frame for frame in vision.frames() if cell.start in frame]
            in_frame = padded[frame]
            seen.append(
                (
                    vision.patches[cell, 0].tolist(),
                    vision.coordinates[cell].tolist(),
                    padded[vision.window_slots[window]].tolist(),
                    in_frame[in_frame > 0].tolist(),
                )
            )
    return seen


@settings(max_examples=25, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), st.sampled_from([8, 128]))
def test_a_request_sees_the_same_alone_and_in_company(several, chunk):
    together = pack_batch(several, CONFIG, chunk=chunk)
    assert together.token_ids.shape[0] in BUCKETS.batch and together.token_ids.shape[1] % chunk == 0
    for row, request in enumerate(several):
        alone = pack_batch([request], CONFIG, chunk=chunk)
        n = len(request.token_ids)
        assert together.lengths[row] == alone.lengths[0] == n
        assert together.next_position[row] == alone.next_position[0] == request.next_position
        np.testing.assert_array_equal(together.token_ids[row, :n], request.token_ids)
        np.testing.assert_array_equal(together.position_ids[:, row, :n], request.position_ids)
        np.testing.assert_array_equal(together.audio_source[row, :n] >= 0, request.token_ids == THINKER.audio_token_id)
        assert gathered(together, row) == gathered(alone, 0)
        assert (together.audio_source[row, n:] == -1).all() and (together.vision_source[row, n:] == -1).all()
    assert (together.lengths[len(several) :] == 0).all()


def test_text_alone_has_no_media_batches():
    inputs = pack_batch([assemble([1, 2, 3], CONFIG)], CONFIG, chunk=4, pad_token_id=7)
    assert inputs.audio is None and inputs.vision is None
    assert inputs.token_ids.tolist() == [[1, 2, 3, 7]]
    assert inputs.audio_source.tolist() == inputs.vision_source.tolist() == [[-1] * 4]


def test_too_many_requests_are_refused():
    with pytest.raises(CapacityError, match="33 requests"):
        pack_batch([assemble([1], CONFIG)] * 33, CONFIG, chunk=4)
