"""log_mel against transformers' feature extractor, which pads every clip to 300 s first."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from input_pipeline.mel import log_mel, log_mel_maximum, num_mel_frames
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError

CFG = ProcessorConfig()
SHORT = ProcessorConfig(max_audio_seconds=2)  # the reference is much faster for it


def reference(waveform: np.ndarray, cfg: ProcessorConfig) -> np.ndarray:
    extractor = WhisperFeatureExtractor(
        feature_size=128, sampling_rate=16000, hop_length=160, chunk_length=cfg.max_audio_seconds, n_fft=400
    )
    out = extractor(
        waveform, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="np"
    )
    return out["input_features"][0][:, : int(out["attention_mask"].sum())]


def noise(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, samples).astype(np.float32)


def tone(samples: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 1000 * np.arange(samples) / 16000)).astype(np.float32)


@pytest.mark.parametrize("samples", [321, 480, 16000, 16001, 4_799_840, 4_799_999, 4_800_000])
def test_equals_the_reference_padded_to_300_s(samples):
    expected = reference(noise(samples), CFG)
    features = log_mel(noise(samples), CFG)
    assert features.dtype == np.float32 and features.shape == expected.shape == (128, num_mel_frames(samples, CFG))
    np.testing.assert_allclose(features, expected, atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(321, 32000), seed=st.integers(0, 2**16), level=st.sampled_from([1e-6, 1e-3, 0.1, 1.0]))
def test_equals_the_reference_for_any_length_and_level(samples, seed, level):
    waveform = noise(samples, seed, level)
    np.testing.assert_allclose(log_mel(waveform, SHORT), reference(waveform, SHORT), atol=1e-4, rtol=0)


def test_the_clip_maximum_includes_the_frame_after_the_last_valid_one():
    waveform = np.full(16000, 1e-4, np.float32)
    waveform[-1] = 1.0  # at the far edge of the last valid frame's window, at the middle of the next frame's
    np.testing.assert_allclose(log_mel(waveform, SHORT), reference(waveform, SHORT), atol=1e-4, rtol=0)
    assert log_mel(waveform, SHORT).min() * 4 - 4 == pytest.approx(log_mel_maximum(waveform, SHORT) - 8, abs=1e-4)


def test_silence_is_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros(5000, np.float32), CFG), np.full((128, 32), -1.5), atol=1e-6)


def test_a_tone_peaks_in_its_bin():
    middle = log_mel(tone(16000), CFG)[:, 50]
    assert middle.argmax() == 42
    assert middle.max() == pytest.approx(1.4744, abs=1e-3) and middle.min() == pytest.approx(-0.5256, abs=1e-3)


def test_an_outside_maximum_sets_the_clamp():
    waveform = tone(8000)
    own = log_mel_maximum(waveform, CFG)
    np.testing.assert_array_equal(log_mel(waveform, CFG, maximum=own), log_mel(waveform, CFG))
    assert log_mel(waveform, CFG, maximum=own + 2).min() == pytest.approx((own + 2 - 8 + 4) / 4, abs=1e-5)


def test_thirty_seconds_take_well_under_a_tenth_of_a_second():
    waveform = noise(480_000)
    log_mel(waveform, CFG)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        log_mel(waveform, CFG)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros(320, np.float32), "too short for one audio token"),
        (np.zeros(4_800_001, np.float32), "limit of 300 s.*Cut it"),
        (np.array([0.0] * 999 + [np.nan], np.float32), "NaN"),
        (np.array([0.0] * 999 + [np.inf], np.float32), "NaN or infinite"),
        (np.zeros((2, 16000), np.float32), "not a waveform"),
        (np.zeros(16000, np.int16), "not a waveform"),
    ],
)
def test_unusable_sound_is_refused_with_its_name(waveform, message):
    with pytest.raises(MediaError, match=f"speech.wav: .*{message}"):
        log_mel(waveform, CFG, name="speech.wav")
