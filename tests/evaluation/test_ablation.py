"""A sense taken from a request, and nothing else."""

import numpy as np
import pytest

from input_pipeline.mel import log_mel
from input_pipeline.request import prepare
from omni_jax.evaluation.ablation import without
from tests.input_pipeline.media_files import numbered_frame, tone
from tests.input_pipeline.training_data import CONFIG, PROCESSOR, tokenizer


@pytest.fixture(scope="module")
def request_():
    frames = np.stack([numbered_frame(number) for number in range(8)])
    film = {"type": "video", "video": (frames, 2.0), "use_audio": False}
    sound = {"type": "audio", "audio": (tone(3.0, 16000), 16000)}
    messages = [{"role": "user", "content": [film, sound, {"type": "text", "text": "What came first?"}]}]
    return prepare(messages, tokenizer(), CONFIG, PROCESSOR)


def layout(request):
    return [request.token_ids, request.audio_row, request.vision_row, request.next_position]


@pytest.mark.parametrize("ablation", ["no_audio", "no_vision", "shuffled_time"])
def test_the_layout_stays(request_, ablation):
    for before, after in zip(layout(request_), layout(without(request_, ablation))):
        np.testing.assert_array_equal(before, after)


def test_silence_is_what_silence_sounds_like(request_):
    (mel,) = without(request_, "no_audio").audio
    silent = log_mel(np.zeros(3 * 16000, np.float32), PROCESSOR)
    np.testing.assert_allclose(mel, silent, rtol=1e-6)
    np.testing.assert_array_equal(without(request_, "no_audio").vision[0].pixels, request_.vision[0].pixels)


def test_nothing_is_seen(request_):
    changed = without(request_, "no_vision")
    assert not changed.vision[0].pixels.any() and request_.vision[0].pixels.any()
    np.testing.assert_array_equal(changed.audio[0], request_.audio[0])
    np.testing.assert_array_equal(changed.position_ids, request_.position_ids)


def test_moments_are_permuted_and_keep_together(request_):
    before, after = request_.position_ids, without(request_, "shuffled_time", seed=3).position_ids
    seen, heard = request_.vision_row >= 0, request_.audio_row >= 0
    text = ~(seen | heard)
    np.testing.assert_array_equal(before[:, text], after[:, text])
    np.testing.assert_array_equal(before[1:, seen], after[1:, seen])  # places in the picture
    for where in (seen, heard):
        assert sorted(before[0, where]) == sorted(after[0, where])
        assert (before[0, where] != after[0, where]).any()
        moved = {(a, b) for a, b in zip(before[0, where], after[0, where])}
        assert len(moved) == len(set(before[0, where]))  # each moment goes to one other
    assert (after[:, heard] == after[0, heard]).all()
    again = without(request_, "shuffled_time", seed=3).position_ids
    np.testing.assert_array_equal(after, again)
