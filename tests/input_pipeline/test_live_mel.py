"""Features of sound in pieces against those of the whole clip."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from input_pipeline.live_mel import StreamingMel
from input_pipeline.media_audio import load_audio
from input_pipeline.mel import log_mel, log_mel_maximum, log_power, num_windows
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError, PromptError

CFG = ProcessorConfig()
SHORT = ProcessorConfig(max_audio_seconds=6)  # so that clips can reach the limit
CLOSE = 1e-6  # bit for bit where the matrix product of a row does not depend on the number of rows


def noise(samples, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, samples).astype(np.float32)


def rising(seconds, seed=0):
    """Noise whose level rises tenfold a second, in steps, from very quiet."""
    level = 10.0 ** (np.arange(round(seconds * 16000)) // 16000 - 5)
    return (noise(len(level), seed) * level).astype(np.float32)


def cut(waveform, seed):
    """Pieces of random length, some of them empty."""
    rng = np.random.default_rng(seed)
    mean = rng.choice([50, 1600, 20000, 200000])
    places = np.sort(rng.integers(0, len(waveform) + 1, 1 + len(waveform) // mean))
    return np.split(waveform, places)


def live(waveform, cfg=CFG, seed=0, **options):
    """The stream after its end, and all of its blocks."""
    stream = StreamingMel(cfg, **options)
    blocks = [block for piece in cut(waveform, seed) for block in stream.push(piece)]
    assert all(block.shape == (128, 200) for block in blocks)
    return stream, [*blocks, *stream.finish()]


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(321, 96000), seed=st.integers(0, 2**16), quiet=st.booleans())
@example(samples=32000, seed=0, quiet=True)
@example(samples=32039, seed=0, quiet=True)  # one sample short of a block
@example(samples=32040, seed=0, quiet=True)
@example(samples=95840, seed=0, quiet=True)  # the mirrored end of the longest clips
@example(samples=95841, seed=0, quiet=True)
@example(samples=96000, seed=0, quiet=True)
def test_with_the_true_maximum_live_features_are_the_offline_ones(samples, seed, quiet):
    waveform = (rising(6, seed) if quiet else noise(96000, seed))[:samples]
    stream, blocks = live(waveform, SHORT, seed, maximum=log_mel_maximum(waveform, SHORT))
    features = np.concatenate(blocks, axis=1)
    expected = log_mel(waveform, SHORT)
    assert features.dtype == np.float32 and features.shape == expected.shape
    np.testing.assert_allclose(features, expected, atol=CLOSE, rtol=0)
    assert stream.deviation == 0
    assert stream.maximum == pytest.approx(log_mel_maximum(waveform, SHORT), abs=CLOSE)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(40000, 130000), seed=st.integers(0, 2**16), backwards=st.booleans())
def test_the_running_maximum_moves_floored_features_only_and_by_a_quarter_of_its_rise(samples, seed, backwards):
    waveform = np.ascontiguousarray(rising(9, seed)[:samples][:: -1 if backwards else 1])
    stream, blocks = live(waveform, seed=seed)
    expected, loudness = log_mel(waveform, CFG), log_power(waveform, 0, num_windows(samples, CFG), CFG).max(axis=1)
    final = loudness.max()
    floor = (final - 8 + 4) / 4
    done = 0
    for block in blocks:
        offline = expected[:, done : done + block.shape[1]]
        done += block.shape[1]
        running = loudness[:done].max() if done < len(expected.T) else final
        difference = offline - block
        above = offline > floor + CLOSE
        assert np.abs(difference[above]).max(initial=0) <= CLOSE
        assert difference.min() >= -CLOSE
        assert difference.max() <= (final - running) / 4 + CLOSE
        assert np.abs(difference).max() <= stream.deviation + CLOSE
        if running == final:
            assert np.abs(difference).max() <= CLOSE
    assert done == expected.shape[1]


def test_the_bound_is_reached_and_not_idle():
    waveform = np.concatenate([np.zeros(48000, np.float32), noise(48000)])
    stream, blocks = live(waveform)
    worst = np.abs(np.concatenate(blocks, axis=1) - log_mel(waveform, CFG)).max()
    assert worst == pytest.approx(stream.deviation, abs=CLOSE) and worst > 0.4


def test_sound_that_is_loudest_at_its_start_and_clips_under_two_seconds_are_exact():
    for waveform in (rising(6)[::-1], rising(1.9)):
        stream, blocks = live(np.ascontiguousarray(waveform))
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), log_mel(waveform, CFG), atol=CLOSE, rtol=0)
        assert stream.deviation <= CLOSE


def test_features_do_not_depend_on_the_pieces():
    waveform = rising(5)
    _, whole = live(waveform, seed=3)
    stream = StreamingMel(CFG)
    np.testing.assert_array_equal(np.concatenate([*stream.push(waveform), *stream.finish()], axis=1), np.hstack(whole))


def test_a_block_comes_with_the_last_sample_that_it_needs():
    stream = StreamingMel(CFG)
    assert stream.push(noise(32039)) == ()
    assert len(stream.push(noise(1))) == 1
    assert stream.push(noise(31999)) == ()
    assert len(stream.push(noise(64001))) == 3
    assert stream.seconds == pytest.approx((5 * 32000 + 40 - 32000) / 16000)


def test_a_clip_that_ends_within_a_window_of_a_block_gives_the_block_and_one_frame():
    _, blocks = live(noise(32001))
    assert [block.shape for block in blocks] == [(128, 200), (128, 1)]


def test_memory_does_not_grow():
    stream, most = StreamingMel(CFG), 0
    buffer = np.empty(1600, np.float32)  # used again for every piece, as a sound card does
    waveform = noise(30 * 16000)
    blocks = []
    for start in range(0, len(waveform), len(buffer)):
        buffer[:] = waveform[start : start + len(buffer)]
        blocks += stream.push(buffer)
        most = max(most, sum((held if held.base is None else held.base).nbytes for held in stream._held))
    assert most <= (32000 + 400 + 1600) * 4
    _, expected = live(waveform)
    np.testing.assert_array_equal(np.hstack([*blocks, *stream.finish()]), np.hstack(expected))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled_as_whole_clips_are(rate):
    sound = noise(round(4.3 * rate))
    waveform = load_audio((sound, rate))
    _, blocks = live(sound, rate=rate, maximum=log_mel_maximum(waveform, CFG))
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), log_mel(waveform, CFG), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("piece", "rate", "message"),
    [
        (np.array([0.0, np.nan], np.float32), None, "NaN or infinite"),
        (np.array([np.inf, 0.0], np.float32), None, "NaN or infinite"),
        (np.array([1e300]), None, "NaN or infinite"),
        (np.zeros(100, np.int16), None, "int16 is not a waveform"),
        (np.zeros((100, 2), np.float32), None, r"\(100, 2\)"),
        (np.zeros(100, np.float32), 48000, "48000 Hz came, but this clip began at 16000 Hz"),
        (np.zeros(6 * 16000, np.float32), None, "limit of 6 s"),
    ],
)
def test_a_bad_piece_is_refused_and_nothing_of_it_is_heard(piece, rate, message):
    waveform = noise(50000)
    stream = StreamingMel(SHORT)
    blocks = list(stream.push(waveform[:20000]))
    with pytest.raises(MediaError, match=f"live sound: .*{message}"), np.errstate(over="ignore"):
        stream.push(piece, rate)
    blocks += stream.push(waveform[20000:], 16000)
    _, expected = live(waveform)
    np.testing.assert_array_equal(np.hstack([*blocks, *stream.finish()]), np.hstack(expected))


def test_too_little_sound_is_refused_at_the_end_and_may_go_on():
    stream = StreamingMel(CFG, rate=48000)
    with pytest.raises(MediaError, match="no samples"):
        stream.finish()
    stream.push(noise(960))
    with pytest.raises(MediaError, match="too short for one audio token"):
        stream.finish()
    stream.push(noise(960))
    assert [block.shape for block in stream.finish()] == [(128, 4)]


def test_nothing_is_heard_after_the_end():
    stream = StreamingMel(CFG)
    stream.push(noise(1000))
    stream.finish()
    for call in (lambda: stream.push(noise(1)), stream.finish):
        with pytest.raises(PromptError, match="ended"):
            call()


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": float("nan")}, {"maximum": float("nan")}])
def test_a_stream_needs_real_numbers(options):
    with pytest.raises(MediaError, match="live sound.* must be a"):
        StreamingMel(CFG, **options)
