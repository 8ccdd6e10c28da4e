"""Figures about codes and sound mean what they say."""

import numpy as np
import pytest

from input_pipeline.speech_mel import speech_mel
from omni_jax.training.speech_quality import CodeCounts, cepstral_distance, mel_distance, same_codes
from tests.training.spoken_sounds import voice


def test_perplexity_is_how_many_equally_frequent_codes_there_are():
    counts = CodeCounts(8)
    for codes in ([0, 1, 2], [3], []):
        counts.add(codes)
    found = counts.report()
    assert (found["codes"], found["distinct"], found["num_codes"], found["usage"]) == (4, 4, 8, 0.5)
    assert found["perplexity"] == pytest.approx(4)
    counts.add([0] * 1000)
    assert 1 < counts.report()["perplexity"] < 1.1
    assert CodeCounts(8).report()["perplexity"] == 0


def test_loudness_is_a_distance_of_mels_but_not_of_cepstra():
    mel = speech_mel(voice(0.5, 24000))
    assert mel_distance(mel + 0.3, mel) == pytest.approx(0.3, rel=1e-5)
    assert cepstral_distance(mel + 0.3, mel) == pytest.approx(0, abs=1e-4)
    assert mel_distance(mel, mel) == cepstral_distance(mel, mel) == 0


@pytest.mark.parametrize("order", [1, 5, 13])
def test_a_wave_over_the_spectrum_is_as_far_as_its_effective_value_in_decibels(order):
    """A wave of 6 dB over the bins has the effective value 6 / sqrt(2)."""
    mel, bins = speech_mel(voice(0.5, 24000)), 80
    wave = 6 * np.cos(np.pi * order * (np.arange(bins) + 0.5) / bins) * np.log(10) / 20
    assert cepstral_distance(mel + wave, mel) == pytest.approx(6 / np.sqrt(2), rel=1e-4)


def test_harmonics_are_beyond_the_cepstra_that_count():
    mel, bins = speech_mel(voice(0.5, 24000)), 80
    assert cepstral_distance(mel + np.cos(np.pi * 14 * (np.arange(bins) + 0.5) / bins), mel) < 1e-4


def test_lengths_may_differ_by_what_resampling_leaves():
    assert same_codes(np.array([1, 2, 3, 4]), np.array([1, 9, 3])) == (2, 3)
    mel = speech_mel(voice(0.5, 24000))
    assert mel_distance(mel[:-1], mel) == 0
