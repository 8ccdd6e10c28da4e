"""Augmented sound says the same at the same time, is made from a seed alone, and is changed as asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import augment as A
from tests.input_pipeline.media_files import tone

RATE = 16000
NEVER = A.Augmentation(room_probability=0, noise_probability=0, channel_probability=0, gain_probability=0)


def spectrum(waveform):
    """Power by frequency, 1 Hz apart for a second of sound."""
    return np.square(np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))))


def noise(seconds=1.0, seed=0):
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, RATE), st.integers(0, 2**32))
def test_any_sound_keeps_its_length_and_stays_finite(samples, seed):
    out = A.augment(noise()[:samples], RATE, np.random.default_rng(seed))
    assert out.shape == (samples,) and out.dtype == np.float32 and np.isfinite(out).all()


def test_a_seed_gives_the_same_sound_and_another_seed_another():
    first, again, other = (A.augment(noise(), RATE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_nothing_happens_where_no_change_is_wanted():
    np.testing.assert_array_equal(A.augment(noise(), RATE, np.random.default_rng(0), NEVER), noise())


def test_whether_there_is_a_room_does_not_alter_the_noise():
    """Each change has its own chance: the noise of a seed is the same with and without a change of gain."""
    noisy = A.Augmentation(0, (0.1, 0.2), 1, (10, 20), 0, gain_probability=0)
    louder = A.Augmentation(0, (0.1, 0.2), 1, (10, 20), 0, gain_probability=1, gain=(6, 6))
    one, two = (A.augment(noise(), RATE, np.random.default_rng(1), each) for each in (noisy, louder))
    np.testing.assert_allclose(two, one * 10 ** (6 / 20), rtol=1e-5)


@pytest.mark.parametrize("ratio", [0, 10, 30])
def test_noise_lies_as_far_below_as_asked(ratio):
    clean = tone(1, RATE)
    added = A.add_noise(clean, np.random.default_rng(0), ratio) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(ratio, abs=0.01)


def test_a_room_keeps_the_direct_sound_first_and_falls_by_60_dB_in_its_time():
    response = A.room_response(RATE, np.random.default_rng(0), 0.4)
    assert np.argmax(np.abs(response)) == 0
    assert np.sum(response**2) == pytest.approx(1)
    early, late = (np.mean(response[first : first + 400] ** 2) for first in (1, 3201))  # 0.2 s apart
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)


def test_what_sounds_late_does_not_sound_earlier_in_a_room():
    late = tone(1, RATE, starts_at=0.5)
    wet = A.reverberate(late, RATE, np.random.default_rng(0), 0.3)
    assert np.abs(wet[:7900]).max() < 1e-5 < np.abs(wet[8100:]).max()


def test_a_channel_lets_nothing_above_its_band_through_and_delays_nothing():
    out = A.limit_band(noise(), RATE, 3400)
    power = spectrum(out)
    assert power[3800:].sum() < 1e-4 * power.sum()
    assert power[:3000].sum() == pytest.approx(spectrum(noise())[:3000].sum(), rel=0.01)
    click = np.zeros(RATE, np.float32)
    click[8000] = 1
    assert np.argmax(np.abs(A.limit_band(click, RATE, 3400))) == 8000


def test_companding_rounds_to_256_values_finer_where_it_is_quiet():
    out = A.compand(np.linspace(-1, 1, RATE, dtype=np.float32))
    values = np.unique(out)
    assert len(values) <= 256
    assert np.abs(out - np.linspace(-1, 1, RATE)).max() < 0.05  # of the loudest
    assert np.diff(values)[len(values) // 2] < 0.001


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_another_speaker_has_another_pitch_and_says_it_at_the_same_time(factor):
    sound = tone(2, RATE, hertz=400, starts_at=1.0)
    out = A.change_speaker(sound, RATE, factor)
    assert out.shape == sound.shape
    assert np.argmax(spectrum(out[RATE:])) == pytest.approx(400 * factor, abs=2)
    loud = np.sqrt(np.mean(out.reshape(-1, 320) ** 2, axis=1)) > 0.1  # by codes of 20 ms
    assert np.argmax(loud) == pytest.approx(50, abs=3)


def test_speakers_are_as_often_higher_as_lower():
    rng = np.random.default_rng(0)
    sound = tone(0.5, RATE, hertz=400)
    peaks = [2 * np.argmax(spectrum(A.random_speaker(sound, RATE, rng))) for _ in range(24)]
    assert 6 < sum(peak > 400 for peak in peaks) < 18
    assert min(peaks) >= 315 and max(peaks) <= 505
