"""Which frames of a camera are taken, at which size, and which are refused."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.live_frames import FrameSampler
from input_pipeline.patches import video_patches
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError
from tests.input_pipeline.media_files import frame_number, numbered_frame, picture

CFG = ProcessorConfig(video_min_pixels=4 * 28 * 28, video_max_pixels=64 * 28 * 28)


def film(frames, times, **options):
    """Patches of all groups of a film that arrives frame by frame."""
    sampler = FrameSampler(CFG, **options)
    groups = [patches for frame, time in zip(frames, times, strict=True) for patches in sampler.push(frame, time)]
    return [*groups, *sampler.finish()]


def numbers_taken(times, **options):
    """Numbers of the frames that are taken when frame i comes at times[i]."""
    taken = []
    for patches in film([numbered_frame(i, 140, 140) for i in range(len(times))], times, **options):
        groups, rows, columns = patches.grid
        assert groups == 1
        cells = patches.pixels.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)
        pair = cells.transpose(5, 0, 2, 6, 1, 3, 7, 4).reshape(2, rows * 14, columns * 14, 3)
        taken += [frame_number(np.where(frame > 0.3, 255, 0)) for frame in pair]
    return taken


@pytest.mark.parametrize(
    ("times", "numbers"),
    [
        (np.arange(40) / 10, [0, 5, 10, 15, 20, 25, 30, 35]),
        ([0.0, 0.49, 1.02, 1.49, 2.1], [0, 1, 2, 3, 4, 4]),  # nearest; the odd last one is repeated
        ([0.0, 0.25, 0.75, 1.0], [0, 1, 3, 3]),  # 0.25 and 0.75 are equally near 0.5
        ([0.9, 1.0], [0, 0, 1, 1]),  # a late start
        ([0.0, 1.9, 2.0], [0, 0, 1, 1, 2, 2]),  # a gap
        ([0.0, 0.495], [0, 1]),  # 5 ms early is in time
        ([0.0, 0.48], [0, 0]),  # 20 ms early is not
        ([0.0, 0.3, 0.3, 0.4], [0, 0]),
    ],
)
def test_each_tick_takes_the_nearest_frame(times, numbers):
    assert numbers_taken(times) == numbers


def test_other_rates_take_other_frames():
    assert numbers_taken(np.arange(20) / 10, fps=5.0) == list(range(0, 20, 2))


def test_the_patches_are_those_of_the_whole_film():
    frames = np.stack([picture(100, 180, seed=number) for number in range(5)])
    groups, whole = film(frames, np.arange(5) / 2), video_patches(frames, CFG)
    assert (len(groups), *groups[0].grid[1:]) == whole.grid
    np.testing.assert_array_equal(np.concatenate([patches.pixels for patches in groups]), whole.pixels)


def test_a_full_group_is_ready_with_its_last_frame():
    sampler = FrameSampler(CFG)
    assert sampler.seconds_per_grid == 1.0 and not sampler.started
    assert [len(sampler.push(numbered_frame(i), i / 4)) for i in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]
    assert sampler.finish() == () and sampler.frames == 4


def test_frames_may_be_bounded():
    (patches,) = film([picture(560, 560)], [0], max_pixels=9 * 28 * 28)
    assert patches.grid == (1, 6, 6)


def test_the_budget_of_a_whole_film_is_not_shared():
    cfg = dataclasses.replace(CFG, video_total_pixels=64 * 28 * 28)
    frames = np.stack([picture(224, 224)] * 8)
    sampler = FrameSampler(cfg)
    (patches, *_) = [patches for i, frame in enumerate(frames) for patches in sampler.push(frame, i / 2)]
    assert patches.grid == (1, 16, 16)
    assert video_patches(frames, cfg).grid == (4, 8, 8)


def test_a_frame_may_be_overwritten_by_the_next():
    frames, buffer = [picture(56, 84, seed=number) for number in range(4)], np.empty((56, 84, 3), np.uint8)
    sampler, groups = FrameSampler(CFG), []
    for index, frame in enumerate(frames):
        buffer[:] = frame
        groups += sampler.push(buffer, index / 2)
    for ours, expected in zip(groups, film(frames, np.arange(4) / 2), strict=True):
        np.testing.assert_array_equal(ours.pixels, expected.pixels)


@pytest.mark.parametrize(
    ("frame", "time", "message"),
    [
        (numbered_frame(0, 56, 84), 0.4, "0.400 s came after one at 0.500 s"),
        (numbered_frame(0, 84, 56), 1.0, "changed from 84x56 to 56x84"),
        (numbered_frame(0, 56, 84).astype(np.float32), 1.0, "uint8"),
        (numbered_frame(0, 56, 84)[..., 0], 1.0, r"\(56, 84\)"),
        ("frame.png", 1.0, "not str"),
        (numbered_frame(0, 56, 84), -0.1, "count from 0"),
        (numbered_frame(0, 56, 84), float("nan"), "count from 0"),
        (numbered_frame(0, 56, 84), "now", "number of seconds"),
        (numbered_frame(0, 56, 84), 1e6, "over the limit of 768"),
    ],
)
def test_a_bad_frame_is_refused_and_nothing_of_it_is_taken(frame, time, message):
    frames = [picture(56, 84, seed=number) for number in range(4)]
    sampler = FrameSampler(CFG)
    groups = [patches for i in range(2) for patches in sampler.push(frames[i], i / 2)]
    with pytest.raises(MediaError, match=f"live film: .*{message}"):
        sampler.push(frame, time)
    groups += [patches for i in range(2, 4) for patches in sampler.push(frames[i], i / 2)]
    for ours, expected in zip(groups, film(frames, np.arange(4) / 2), strict=True):
        np.testing.assert_array_equal(ours.pixels, expected.pixels)


@pytest.mark.parametrize(("shape", "message"), [((2, 500, 3), "too long a strip"), ((0, 50, 3), "empty picture")])
def test_a_first_frame_of_no_use_is_refused(shape, message):
    with pytest.raises(MediaError, match=f"live film: .*{message}"):
        FrameSampler(CFG).push(np.zeros(shape, np.uint8), 0)
