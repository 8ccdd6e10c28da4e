"""Films: which frames are taken, when they are, and whether the sound stays with them."""

import numpy as np
import pytest

from input_pipeline import media_video
from input_pipeline.media import has_audio_track, load_video, sample_indices
from input_pipeline.patches import video_patches
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError
from tests.input_pipeline.media_files import frame_number, numbered_frame, picture, tone, write_film

CFG = ProcessorConfig()
FRAMES = [numbered_frame(number) for number in range(40)]  # 4 s at 10 fps


def onset(waveform: np.ndarray) -> float:
    return float(np.argmax(np.abs(waveform) > 0.05)) / 16000


def expected_indices(total: int, count: int) -> list[int]:
    return np.round(np.linspace(0, total - 1, count)).astype(int).tolist()


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv", "avi"])
def test_frames_are_spread_evenly_at_two_a_second(tmp_path, suffix):
    path = write_film(tmp_path / f"clip.{suffix}", FRAMES)
    video = load_video(path, CFG, want_audio=False)
    numbers = [frame_number(frame) for frame in video.frames]
    assert numbers == expected_indices(40, 8)
    np.testing.assert_allclose(video.timestamps, np.array(numbers) / 10, atol=2e-3)
    assert video.seconds_per_frame == pytest.approx(3.9 / 7, abs=1e-3)
    assert video.frames.dtype == np.uint8 and video.frames.shape == (8, 48, 64, 3)
    assert video.audio is None and not has_audio_track(path)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv"])
def test_sound_starts_when_the_picture_does(tmp_path, suffix):
    path = write_film(tmp_path / f"clip.{suffix}", FRAMES, sound=tone(4, 48000, starts_at=1.0))
    video = load_video(path, CFG, want_audio=True)
    assert has_audio_track(path)
    assert video.audio.dtype == np.float32
    assert onset(video.audio) == pytest.approx(1.0, abs=0.01)
    assert len(video.audio) / 16000 == pytest.approx(4, abs=0.05)
    assert load_video(path, CFG, want_audio=False).audio is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_late_sound_track_is_filled_up_with_silence(tmp_path, suffix):
    path = write_film(tmp_path / f"late.{suffix}", FRAMES, sound=tone(2, 48000), sound_start=1.5)
    assert onset(load_video(path, CFG, want_audio=True).audio) == pytest.approx(1.5, abs=0.03)


def test_sound_before_the_first_frame_is_cut_off(tmp_path):
    path = write_film(
        tmp_path / "early.mkv",
        FRAMES[:10],
        times=[1 + i / 10 for i in range(10)],
        sound=tone(2, 48000, starts_at=1.25),
    )
    video = load_video(path, CFG, want_audio=True)
    assert video.timestamps[0] == 0
    assert onset(video.audio) == pytest.approx(0.25, abs=0.01)
    assert len(video.audio) / 16000 == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path, suffix):
    times = [0, 0.1, 0.2, 0.3, 2.0, 3.0, 4.0, 5.0]
    video = load_video(write_film(tmp_path / f"vfr.{suffix}", FRAMES[:8], times=times), CFG, want_audio=False)
    numbers = [frame_number(frame) for frame in video.frames]
    np.testing.assert_allclose(video.timestamps, np.array(times)[numbers], atol=2e-3)
    assert video.seconds_per_frame == pytest.approx((video.timestamps[-1]) / (len(numbers) - 1))


def test_bounds_and_rate_of_sampling(tmp_path):
    path = write_film(tmp_path / "clip.mp4", FRAMES)
    assert len(load_video(path, CFG, fps=5, want_audio=False).frames) == 20
    assert len(load_video(path, CFG, fps=0.1, want_audio=False).frames) == CFG.video_min_frames
    assert len(load_video(path, CFG, fps=1000, want_audio=False).frames) == 40
    few = ProcessorConfig(video_max_frames=6)
    assert [frame_number(f) for f in load_video(path, few, want_audio=False).frames] == expected_indices(40, 6)
    with pytest.raises(MediaError, match="fps"):
        load_video(path, CFG, fps=0, want_audio=False)


def test_rounded_times_do_not_cost_frames():
    """24 fps in milliseconds, as mkv keeps it: 3 s read 2.9997 s."""
    times = np.round(np.arange(72) / 24, 3)
    assert len(sample_indices(times, CFG, 2.0)) == 6


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv"])
def test_a_film_of_one_frame_repeats_it(tmp_path, suffix):
    video = load_video(write_film(tmp_path / f"one.{suffix}", FRAMES[5:6]), CFG, want_audio=False)
    assert [frame_number(frame) for frame in video.frames] == [5, 5]
    np.testing.assert_allclose(video.timestamps, [0, 0.5])
    assert video.seconds_per_frame == 0.5


def test_a_film_of_three_frames_gives_two(tmp_path):
    video = load_video(write_film(tmp_path / "three.mp4", FRAMES[:3]), CFG, want_audio=False)
    assert [frame_number(frame) for frame in video.frames] == [0, 2]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_odd_sides_are_kept(tmp_path, suffix):
    frames = [numbered_frame(number, 47, 63) for number in range(8)]
    video = load_video(write_film(tmp_path / f"odd.{suffix}", frames), CFG, want_audio=False)
    assert video.frames.shape[1:3] == (47, 63)


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_a_container_without_duration_is_counted(tmp_path, suffix):
    path = write_film(tmp_path / f"live.{suffix}", FRAMES, live=True)
    video = load_video(path, CFG, want_audio=False)
    assert [frame_number(frame) for frame in video.frames] == expected_indices(40, 8)


def test_a_phone_film_is_turned_upright(tmp_path):
    lying = picture(48, 64)
    for degrees, turns in ((90, 1), (180, 2), (270, 3)):
        path = write_film(tmp_path / f"phone{degrees}.mp4", [lying] * 4, turn=degrees)
        video = load_video(path, CFG, want_audio=False)
        expected = np.rot90(lying, turns)
        assert video.frames.shape[1:] == expected.shape
        assert np.abs(video.frames[0].astype(int) - expected).mean() < 12


def test_a_wrong_forecast_of_the_frames_is_corrected(tmp_path, monkeypatch):
    path = write_film(tmp_path / "clip.mp4", FRAMES)
    for forecast in (np.arange(55) / 10, np.arange(7) / 10, np.array([])):
        monkeypatch.setattr(media_video, "_packet_times", lambda file, forecast=forecast: forecast)
        video = load_video(path, CFG, want_audio=False)
        assert [frame_number(frame) for frame in video.frames] == expected_indices(40, 8)


def test_large_films_are_reduced_while_decoding_without_changing_the_patches(tmp_path, monkeypatch):
    cfg = ProcessorConfig(video_min_pixels=4 * 784, video_max_pixels=9 * 784)
    path = write_film(tmp_path / "large.mp4", [picture(120, 200, seed=seed) for seed in range(4)])
    whole = load_video(path, cfg, want_audio=False)
    monkeypatch.setattr(media_video, "_MAX_FRAME_BYTES", 1000)
    reduced = load_video(path, cfg, want_audio=False)
    assert whole.frames.shape[1:3] == (120, 200) and reduced.frames.nbytes < whole.frames.nbytes / 2
    np.testing.assert_array_equal(video_patches(reduced.frames, cfg).pixels, video_patches(whole.frames, cfg).pixels)


def test_a_film_that_breaks_off_gives_what_decodes(tmp_path):
    content = write_film(tmp_path / "clip.mkv", FRAMES).read_bytes()
    video = load_video(content[: len(content) * 7 // 10], CFG, want_audio=False)
    numbers = [frame_number(frame) for frame in video.frames]
    assert numbers[0] == 0 and 0 < numbers[-1] < 39
    np.testing.assert_allclose(video.timestamps, np.array(numbers) / 10, atol=2e-3)


def test_frames_from_an_array():
    frames = np.stack(FRAMES)
    video = load_video((frames, 10), CFG, want_audio=False)
    assert [frame_number(frame) for frame in video.frames] == expected_indices(40, 8)
    already_sampled = load_video((frames[:6], 2.0), CFG, want_audio=False)
    np.testing.assert_array_equal(already_sampled.frames, frames[:6])
    assert already_sampled.seconds_per_frame == 0.5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.uint8), "frame rate is missing"),
        ((np.zeros((4, 8, 8, 3)), 2.0), "uint8"),
        ((np.zeros((0, 8, 8, 3), np.uint8), 2.0), "not a film"),
        ((np.zeros((4, 8, 8, 3), np.uint8), 0), "positive"),
        ((np.zeros((4, 8, 8, 3), np.uint8), np.nan), "positive"),
        ((np.zeros((4, 2, 800, 3), np.uint8), 2.0), "200 to 1"),
    ],
)
def test_unusable_film_arrays_are_refused(source, message):
    with pytest.raises(MediaError, match=f"video array.*{message}"):
        load_video(source, CFG, want_audio=False)


def test_sound_over_the_limit_is_refused(tmp_path):
    path = write_film(tmp_path / "long.mp4", FRAMES, sound=tone(4, 48000))
    with pytest.raises(MediaError, match=r"long\.mp4: .*limit of 3 s"):
        load_video(path, ProcessorConfig(max_audio_seconds=3), want_audio=True)
