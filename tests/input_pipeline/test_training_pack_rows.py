"""Rows of a batch: each example is found again in them as it was, and padding is what it should be."""

from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.pack_rows import check_example, pack_row, stack_rows
from input_pipeline.packing import pack_audio, pack_vision
from input_pipeline.training_batch import RowShape, SpeechExample
from omni_jax.errors import CapacityError, DataError, MediaError
from omni_jax.training.batches import abstract_batch
from tests.input_pipeline.memory_source import CONFIG, TALKER, THINKER, VOICE, make_example

ROOM = RowShape(tokens=1024, audio_blocks=24, patches=1280, speech=2048, pairs=3)
PER_BLOCK = THINKER.audio_config.n_window // 2
media = st.lists(st.sampled_from(["audio", "image", "video", "film"]), max_size=2)
shapes = st.tuples(media, st.integers(1, 9), st.integers(1, 6), st.sampled_from([(), (3,), (9,), (2, 5)]))


@st.composite
def rows(draw):
    """Up to three examples of any kind."""
    made = []
    for number, (kinds, prompt, reply, codes) in enumerate(draw(st.lists(shapes, max_size=3))):
        reference = (-1.0 - number, -2.0) if len(codes) == 2 else None
        example = make_example(number, *kinds, prompt=prompt, reply=reply, codes=codes, reference=reference)
        made.append(replace(example, task=number + 1))
    return made


quickly = settings(max_examples=25, deadline=None)


def spans(examples):
    stops = np.cumsum([len(example.token_ids) for example in examples])
    return [slice(stop - len(example.token_ids), stop) for example, stop in zip(examples, stops)]


@quickly
@given(examples=rows())
def test_text_lies_end_to_end_and_each_token_predicts_the_next_of_its_own_example(examples):
    row = pack_row(examples, ROOM, CONFIG)
    end = 0
    for segment, (example, here) in enumerate(zip(examples, spans(examples)), start=1):
        ids, count = example.token_ids, len(example.token_ids)
        np.testing.assert_array_equal(row.token_ids[0, here], ids)
        np.testing.assert_array_equal(row.position_ids[0, :, here], example.position_ids)
        assert (row.segment_ids[0, here] == segment).all() and (row.task_ids[0, here] == example.task).all()
        np.testing.assert_array_equal(row.labels[0, here][: count - 1], ids[1:])
        np.testing.assert_array_equal(row.weights[0, here], [*example.weights[1:], 0])
        end = here.stop
    for name in ("token_ids", "segment_ids", "labels", "weights", "task_ids"):
        assert not getattr(row, name)[0, end:].any()
    assert (row.audio_source[0, end:] == -1).all() and (row.vision_source[0, end:] == -1).all()


@quickly
@given(examples=rows())
def test_each_sound_token_finds_its_own_sound(examples):
    row = pack_row(examples, ROOM, CONFIG)
    blocks = 0
    for example, here in zip(examples, spans(examples)):
        places = row.audio_source[0, here]
        np.testing.assert_array_equal(places >= 0, example.audio_row >= 0)
        if not example.audio:
            continue
        alone = pack_audio(example.audio, THINKER.audio_config)
        own = example.audio_row >= 0
        expected = alone.rows[example.audio_row[own]]
        np.testing.assert_array_equal(places[own], expected + blocks * PER_BLOCK)
        count = int((alone.frames > 0).sum())
        np.testing.assert_array_equal(row.audio.mel[0, blocks : blocks + count], alone.mel[:count])
        np.testing.assert_array_equal(row.audio.frames[0, blocks : blocks + count], alone.frames[:count])
        blocks += count
    assert not row.audio.frames[0, blocks:].any() and not row.audio.mel[0, blocks:].any()


@quickly
@given(examples=rows())
def test_each_vision_token_finds_its_own_patches(examples):
    row = pack_row(examples, ROOM, CONFIG)
    merged = row.vision.patches.reshape(ROOM.patches // 4, 4, -1)
    for example, here in zip(examples, spans(examples)):
        places, own = row.vision_source[0, here], example.vision_row >= 0
        np.testing.assert_array_equal(places >= 0, own)
        if example.vision:
            given_order = np.concatenate([item.pixels for item in example.vision]).reshape(own.sum(), 4, -1)
            np.testing.assert_array_equal(merged[places[own]], given_order[example.vision_row[own]])


@quickly
@given(examples=rows())
def test_patches_see_the_same_groups_as_in_inference(examples):
    vision = pack_row(examples, ROOM, CONFIG).vision
    items = [item for example in examples for item in example.vision]
    real = sum(len(item.pixels) for item in items)
    place = np.arange(ROOM.patches)
    for bounds in (vision.window[0], vision.frame[0]):
        np.testing.assert_array_equal(bounds[real:], np.stack([place, place + 1], 1)[real:])
    if not items:
        return
    tables = pack_vision(items, THINKER.vision_config)
    total = len(tables.patches)
    np.testing.assert_array_equal(vision.patches[0, :real], tables.patches[:real])
    np.testing.assert_array_equal(vision.coordinates[0, :real], tables.coordinates[:real])
    for bounds, slots in ((vision.window[0], [tables.window_slots]), (vision.frame[0], tables.frame_slots)):
        seen = {}
        for table in slots:
            for group in table:
                members = group[group < total].tolist()
                seen |= {patch: members for patch in members}
        assert [list(range(*bounds[patch])) for patch in range(real)] == [seen[patch] for patch in range(real)]


@quickly
@given(examples=rows())
def test_speech_is_the_two_tracks_of_the_talker(examples):
    """Position by position, as the drawing of omni_jax/models/talker.py says."""
    row = pack_row(examples, ROOM, CONFIG)
    track, at, segment = row.speech, 0, 0
    for example, here in zip(examples, spans(examples)):
        if not example.speech:
            continue
        prompt, stop = example.reply
        words, last = stop - prompt, example.position_ids[:, :prompt].max()
        for answer in example.speech:
            segment += 1
            codes = answer.codes.tolist()
            end = at + prompt + 2 + len(codes)
            for u in range(at, end):
                source, token, code = (int(x[0, u]) for x in (track.text_source, track.text_token, track.codes))
                label, weight, ids = int(track.labels[0, u]), track.weights[0, u], track.position_ids[0, :, u].tolist()
                n = u - at - prompt - 1
                assert (track.segment_ids[0, u], track.task_ids[0, u]) == (segment, example.task)
                if u < at + prompt:
                    assert (source, token, code, weight) == (here.start + u - at, -1, -1, 0)
                    assert ids == example.position_ids[:, u - at].tolist()
                    continue
                assert ids == [last + 2 + n] * 3
                if n == -1:
                    assert (source, token, code, weight) == (-1, VOICE, TALKER.tts_codec_pad_token_id, 0)
                    continue
                assert code == (TALKER.tts_codec_start_token_id, *codes)[n]
                assert (label, weight) == ((*codes, TALKER.tts_codec_end_token_id)[n], 1)
                if n < words:
                    assert (source, token) == (here.start + prompt + n, -1)
                else:
                    filler = TALKER.tts_text_end_token_id if n == words else TALKER.tts_text_pad_token_id
                    assert (source, token) == (-1, filler)
            at = end
    assert not track.segment_ids[0, at:].any() and not track.weights[0, at:].any() and not track.labels[0, at:].any()
    for name in ("text_source", "text_token", "codes"):
        assert (getattr(track, name)[0, at:] == -1).all()


@quickly
@given(examples=rows())
def test_pairs_name_the_segments_of_their_answers(examples):
    row = pack_row(examples, ROOM, CONFIG)
    segment, pair = 0, 0
    for example in examples:
        if len(example.speech) == 2:
            own = row.preferences
            assert (own.chosen[0, pair], own.rejected[0, pair]) == (segment + 1, segment + 2)
            assert (own.reference_chosen[0, pair], own.reference_rejected[0, pair]) == example.reference
            pair += 1
        segment += len(example.speech)
    for each in fields(row.preferences):
        assert not getattr(row.preferences, each.name)[0, pair:].any()


def test_a_recording_may_end_before_its_text():
    example = make_example(0, prompt=3, reply=8, codes=(2,))
    track = pack_row([example], ROOM, CONFIG).speech
    np.testing.assert_array_equal(track.text_source[0, :8], [0, 1, 2, -1, 3, 4, 5, -1])
    assert not np.isin(track.text_token, [TALKER.tts_text_end_token_id, TALKER.tts_text_pad_token_id]).any()


@quickly
@given(examples=rows(), shape=st.sampled_from([ROOM, replace(ROOM, tokens=2048, pairs=4)]))
def test_every_row_has_the_shapes_and_types_that_were_compiled_for(examples, shape):
    def described(tree):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)

    batch = stack_rows([pack_row(examples, shape, CONFIG), pack_row([], shape, CONFIG)])
    expected = abstract_batch(shape, 2, config=CONFIG)
    assert jax.tree.leaves(described(batch)) == jax.tree.leaves(described(expected))
    assert jax.tree.structure(batch) == jax.tree.structure(expected)


def test_runs_without_a_kind_have_no_arrays_of_it():
    batch = stack_rows([pack_row([make_example(i)], RowShape(tokens=32), CONFIG) for i in range(3)])
    assert batch.audio is batch.vision is batch.speech is batch.preferences is None
    assert batch.token_ids.shape == (3, 32)
    for i in range(3):
        np.testing.assert_array_equal(batch.token_ids[i, :10], make_example(i).token_ids)


@pytest.mark.parametrize(
    ("example", "shape", "words"),
    [
        (
            make_example(0, "audio"),
            RowShape(640, 0, 64),
            r"audio blocks, but rows have no room .*RowShape.audio_blocks",
        ),
        (make_example(0, "image"), RowShape(640, 4), "vision patches, but rows have no room"),
        (make_example(0, codes=(3,)), RowShape(640), "positions of speech, but rows have no room"),
        (make_example(0, codes=(3, 3)), RowShape(640, speech=64), "1 pairs of answers, but rows have no room"),
        (make_example(0, prompt=50), RowShape(32), "55 tokens, but a row holds 32"),
    ],
)
def test_what_a_row_cannot_hold_is_named(example, shape, words):
    with pytest.raises(CapacityError, match=f"memory:0: .*{words}"):
        pack_row([example], shape, CONFIG)


def test_too_many_examples_for_a_row_are_named():
    with pytest.raises(CapacityError, match="memory:0, memory:1 .* 20 tokens into 16"):
        pack_row([make_example(0), make_example(1)], RowShape(16), CONFIG)


def test_a_pair_needs_its_reference_unless_it_is_to_be_computed():
    example = make_example(0, codes=(3, 4))
    with pytest.raises(DataError, match="memory:0: .*reference"):
        pack_row([example], ROOM, CONFIG)
    row = pack_row([example], ROOM, CONFIG, allow_missing_reference=True)
    assert (row.preferences.chosen[0, 0], row.preferences.rejected[0, 0]) == (1, 2)
    assert not row.preferences.reference_chosen.any()


SPOKEN = make_example(0, "audio", "image", codes=(3,))


@pytest.mark.parametrize(
    ("example", "error", "words"),
    [
        (replace(SPOKEN, weights=SPOKEN.weights[1:]), DataError, "entries for"),
        (replace(SPOKEN, audio=()), DataError, "audio tokens for features that make 0"),
        (replace(SPOKEN, vision=SPOKEN.vision * 2), DataError, "vision tokens for features"),
        (replace(SPOKEN, audio=(SPOKEN.audio[0][:80],)), MediaError, "Mel features"),
        (replace(SPOKEN, reply=None), DataError, "needs words"),
        (replace(SPOKEN, reply=(5, 5)), DataError, "needs words"),
        (replace(SPOKEN, speech=SPOKEN.speech * 3), DataError, "one spoken answer, or two"),
        (replace(SPOKEN, speech=(SpeechExample(VOICE, np.zeros(0, np.int32)),)), DataError, "at least one code"),
    ],
)
def test_examples_whose_parts_disagree_are_found_before_packing(example, error, words):
    with pytest.raises(error, match=words):
        check_example(example, ROOM, CONFIG)
    check_example(SPOKEN, ROOM, CONFIG)


def test_speech_without_a_talker_is_refused():
    with pytest.raises(DataError, match="no Talker"):
        check_example(SPOKEN, ROOM, replace(CONFIG, talker_config=None))
