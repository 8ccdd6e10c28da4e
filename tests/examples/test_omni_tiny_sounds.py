"""Where the embeddings of codes begin: codes that sound alike lie side by side."""

import numpy as np
import pytest

from examples.omni_tiny import files, sounds
from examples.omni_tiny.speech import write_sound
from input_pipeline.clip_files import load_sound
from input_pipeline.jsonl import JsonLines
from input_pipeline.speech_mel import MEL_24K, speech_mel
from omni_jax.errors import DataError
from tests.input_pipeline.media_files import tone


def test_the_mean_of_a_code_is_that_of_its_frames(tmp_path):
    sound = tone(1.0, 24_000)
    write_sound(tmp_path / "a.flac", sound, 24_000)
    codes = [3] * 25 + [1] * 25
    files.write_lines(tmp_path / "coded.jsonl", [{"audio": "a.flac", "codes": codes}])
    means, counts = sounds.mean_sounds(JsonLines(tmp_path / "coded.jsonl"), tmp_path)
    assert counts.tolist() == [0, 25, 0, 25]
    mel = speech_mel(load_sound({"audio": "a.flac"}, tmp_path, 24_000), MEL_24K)
    np.testing.assert_allclose(means[3], mel[:50].reshape(25, 160).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(means[1], mel[50:].reshape(25, 160).mean(axis=0), rtol=1e-5)


def test_a_recording_without_codes_is_refused(tmp_path):
    write_sound(tmp_path / "a.flac", tone(1.0, 24_000), 24_000)
    files.write_lines(tmp_path / "coded.jsonl", [{"audio": "a.flac"}])
    with pytest.raises(DataError, match="no .codes., a list"):
        sounds.mean_sounds(JsonLines(tmp_path / "coded.jsonl"), tmp_path)


def test_directions_are_apart_and_of_one_size():
    rng = np.random.default_rng(0)
    means, counts = rng.normal(size=(200, 6)) * [9, 5, 3, 2, 1, 0.5], rng.integers(1, 400, 200).astype(float)
    counts[7] = 0
    found, share = sounds.directions(means, counts), counts / counts.sum()
    assert np.isnan(found[7]).all() and found.shape == (200, 6)
    seen = counts > 0
    second = (found[seen] * share[seen, None]).T @ found[seen]
    np.testing.assert_allclose(second, np.eye(6), atol=0.02)


def test_codes_that_sound_alike_begin_alike():
    means = np.repeat(np.random.default_rng(0).normal(size=(10, 40)), 2, axis=0)  # codes 2 n and 2 n + 1 sound the same
    features = sounds.directions(means, np.full(20, 1e6))
    np.testing.assert_allclose(features[::2], features[1::2], atol=1e-9)
    table = np.random.default_rng(1).normal(size=(24, 32)).astype(np.float32) * 0.02
    told = sounds.told(table, features)
    width = features.shape[1]
    np.testing.assert_allclose(told[:20:2, :width], told[1:20:2, :width], atol=1e-9)
    assert (told[:, width:] == table[:, width:]).all() and (told[20:] == table[20:]).all()
    assert 0.5 < told[:20, :width].std() / table.std() < 2


def test_of_a_rare_code_little_is_known():
    means = np.random.default_rng(0).normal(size=(50, 8))
    means[1] = means[0]
    counts = np.full(50, 1000.0)
    counts[1] = 1.0
    common, rare = np.linalg.norm(sounds.directions(means, counts)[:2], axis=1)
    assert rare < 0.25 * common


def test_features_are_not_larger_than_three():
    table = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    told = sounds.told(table, np.array([[9.0], [-9.0], [1.0]]))
    np.testing.assert_allclose(told[:3, 0] / table.std(), [3, -3, 1], rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="cannot hold"):
        sounds.told(np.ones((4, 8)), np.ones((5, 2)))
