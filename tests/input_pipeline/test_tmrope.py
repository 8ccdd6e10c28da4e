"""Positions equal the reference implementation's, to the last id."""

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniPreTrainedModelForConditionalGeneration as Reference,
)
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

from input_pipeline.tmrope import Audio, Image, Text, Video, interleave, layout, time_ids, token_count
from omni_jax.presets import preset

CONFIG = preset("qwen2.5-omni-7b").thinker_config
V, A, W = CONFIG.video_token_id, CONFIG.audio_token_id, 7  # W: any text token


class Positions:
    """`get_rope_index` without a model around it."""

    spatial_merge_size = 2
    config = CONFIG
    get_rope_index = Reference.get_rope_index
    get_chunked_index = Reference.get_chunked_index
    get_llm_pos_ids_for_vision = Reference.get_llm_pos_ids_for_vision


def reference(parts, token_ids):
    """Position ids [3, T] and the next id, according to transformers."""
    audio, images, videos, seconds, sound = [], [], [], [], False
    for part in parts:
        match part:
            case Audio(tokens):
                audio.append(4 * tokens)
            case Image(grid):
                images.append(grid)
            case Video(grid, s, audio_tokens):
                videos.append(grid)
                seconds.append(s)
                if audio_tokens is not None:
                    sound = True
                    audio.append(4 * audio_tokens)
    ids = torch.tensor(token_ids[None].astype(np.int64))
    positions, delta = Positions().get_rope_index(
        ids,
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.ones_like(ids),
        sound,
        torch.tensor(audio) if audio else None,
        torch.tensor(seconds, dtype=torch.float32) if seconds else None,
    )
    return positions[:, 0].numpy(), int(delta.reshape(())) + len(token_ids)


def assert_equal_to_reference(parts):
    ours = layout(parts, CONFIG)
    expected, expected_next = reference(parts, ours.token_ids)
    np.testing.assert_array_equal(ours.position_ids, expected)
    assert ours.next_position == expected_next
    return ours


def text(n):
    return Text([W] * n)


def runs(ours):
    """'V8 A50 V4 ...': lengths of consecutive picture and sound tokens."""
    words = []
    for token in ours.token_ids:
        letter = {V: "V", A: "A"}.get(int(token), "")
        if words and words[-1][0] == letter:
            words[-1][1] += 1
        else:
            words.append([letter, 1])
    return " ".join(f"{letter}{n}" for letter, n in words if letter)


even = st.integers(1, 4).map(lambda n: 2 * n)
grids = st.tuples(st.integers(1, 6), even, even)
seconds_per_grid = st.one_of(st.floats(0.125, 4.5, width=32), st.sampled_from([1.0, 2 / 3, 2 / 1.98, 0.08, 2.0, 4.0]))


@st.composite
def prompts(draw):
    sound = draw(st.booleans())  # the reference has one switch for all films
    videos = st.builds(Video, grids, seconds_per_grid, st.integers(1, 260) if sound else st.none())
    part = st.one_of(
        st.builds(text, st.integers(1, 5)),
        st.builds(Audio, st.integers(1, 130)),
        st.builds(lambda h, w: Image((1, h, w)), even, st.integers(1, 40).map(lambda n: 2 * n)),
        videos,
        videos,
    )
    return [text(draw(st.integers(1, 4))), *draw(st.lists(part, min_size=1, max_size=6))]


@settings(max_examples=200, deadline=None)
@given(prompts())
def test_any_prompt_has_the_positions_of_the_reference(parts):
    ours = assert_equal_to_reference(parts)
    assert len(ours.token_ids) == sum(token_count(part) for part in parts)
    audio, vision = ours.audio_row[ours.audio_row >= 0], ours.vision_row[ours.vision_row >= 0]
    np.testing.assert_array_equal(audio, np.arange(len(audio)))
    np.testing.assert_array_equal(vision, np.arange(len(vision)))
    np.testing.assert_array_equal(ours.audio_row >= 0, ours.token_ids == A)


@settings(max_examples=100, deadline=None)
@given(grids, st.sampled_from([1.0, 0.5, 2.0, 0.25, 4.0]), st.integers(1, 260))
def test_films_with_sound_have_the_tokens_of_the_reference_processor(grid, seconds, audio_tokens):
    names = {"audio_token": "<a>", "image_token": "<i>", "video_token": "<v>"}
    markers = {"vision_bos_token": "[", "vision_eos_token": "]", "audio_bos_token": "(", "audio_eos_token": ")"}
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2),
        video_processor=SimpleNamespace(merge_size=2),
        get_chunked_index=lambda *a: Qwen2_5OmniProcessor.get_chunked_index(None, *a),
        **names,
        **markers,
    )
    (expanded,) = Qwen2_5OmniProcessor.replace_multimodal_special_tokens(
        processor, ["[<v>]"], iter([audio_tokens]), iter([]), iter([np.array(grid)]), iter([seconds]), True, 25, 2.0
    )
    spelling = {
        V: "<v>",
        A: "<a>",
        CONFIG.vision_start_token_id: "[",
        CONFIG.vision_end_token_id: "]",
        CONFIG.audio_start_token_id: "(",
        CONFIG.audio_end_token_id: ")",
    }
    ours = layout([Video(grid, seconds, audio_tokens)], CONFIG)
    assert "".join(spelling[int(i)] for i in ours.token_ids) == expanded


def test_audio_counts_on_like_text():  # example a of the reference notes
    ours = assert_equal_to_reference([text(2), Audio(4), text(2)])
    np.testing.assert_array_equal(ours.position_ids, np.broadcast_to(np.arange(10), (3, 10)))
    assert ours.next_position == 10


def test_image_spreads_over_height_and_width():  # b
    ours = assert_equal_to_reference([text(2), Image((1, 4, 6)), text(2)])
    assert ours.position_ids.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
    ]
    assert ours.next_position == 9


def test_silent_film_advances_25_ids_a_second():  # c
    ours = assert_equal_to_reference([text(1), Video((3, 4, 4), 1.0), text(1)])
    assert ours.position_ids[0].tolist() == [0, 1, *[2] * 4, *[27] * 4, *[52] * 4, 53, 54]
    assert ours.position_ids[1, 2:14].tolist() == [2, 2, 3, 3] * 3
    assert ours.position_ids[2, 2:14].tolist() == [2, 3, 2, 3] * 3
    assert ours.next_position == 55


def test_time_ids_are_truncated():  # c at 3 frames per second
    ours = assert_equal_to_reference([text(1), Video((3, 4, 4), 2 / 3), text(1)])
    assert ours.position_ids[0, [2, 6, 10, 14, 15]].tolist() == [2, 18, 35, 36, 37]
    assert time_ids(3, 2 / 3).tolist() == [0, 16, 33]


def test_film_with_sound_is_interleaved_in_two_second_chunks():  # d
    ours = assert_equal_to_reference([text(1), Video((3, 4, 4), 1.0, 60), text(1)])
    assert runs(ours) == "V8 A50 V4 A10"
    assert ours.position_ids[0, [0, 1, 2, 3, 11, 61, 65, -3, -2, -1]].tolist() == [0, 1, 1, 2, 2, 52, 52, 62, 62, 63]
    assert (len(ours.token_ids), ours.next_position) == (78, 64)


def test_film_longer_than_its_sound():  # e
    ours = assert_equal_to_reference([text(1), Video((5, 4, 4), 1.0, 30), text(1)])
    assert runs(ours) == "V8 A30 V12"
    assert ours.position_ids[0, -3:].tolist() == [103, 103, 104]


def test_wide_short_film_leaves_the_gap_of_the_reference():  # f
    ours = assert_equal_to_reference([text(1), Video((1, 20, 60), 1.0, 25), text(1)])
    assert ours.position_ids[2].max() == 31
    assert ours.position_ids[0, -3:].tolist() == [27, 27, 28]
    assert ours.next_position == 32


def test_sparse_frames_are_torn_as_in_the_reference():  # g
    ours = assert_equal_to_reference([Video((3, 4, 4), 4.0, 250)])
    assert runs(ours) == "V4 A50 V1 A50 V3 A50 V1 A50 V3 A50"


def test_films_with_and_without_sound_may_be_mixed():  # beyond the reference
    ours = layout([Video((1, 4, 4), 1.0, 5), Video((1, 4, 4), 1.0), Audio(3)], CONFIG)
    assert runs(ours) == "V4 A5 V4 A3"


def test_one_order_serves_both_tracks():
    order = interleave(np.array([0, 0, 30, 30, 60]), np.arange(51), 50)
    assert order == [("video", 0, 4), ("audio", 0, 50), ("video", 4, 5), ("audio", 50, 51)]


def test_an_empty_prompt_has_no_tokens():
    ours = layout([Text([])], CONFIG)
    assert ours.token_ids.shape == (0,) and ours.position_ids.shape == (3, 0) and ours.next_position == 0
