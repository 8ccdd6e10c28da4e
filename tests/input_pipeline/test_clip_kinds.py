"""What each stage of sound makes of a recording, and everything that can be wrong with one."""

import dataclasses
import io
import os

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.clip_files import codes_of, load_array, text_of, voice_of
from input_pipeline.clip_kinds import CodedClips, SoundClips, TranscribedClips, VoicedClips
from input_pipeline.media_audio import load_audio
from input_pipeline.mel import log_mel
from input_pipeline.speech_batch import stacked
from input_pipeline.speech_mel import MEL_16K, speech_mel
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError, OmniError
from omni_jax.presets import preset, speech_tokenizer_preset
from tests.input_pipeline.clip_data import write_clips
from tests.input_pipeline.media_files import tone

PROCESSOR, RNG = ProcessorConfig(), np.random.default_rng
MODEL = dataclasses.replace(preset("tiny"), speech_tokenizer_config=speech_tokenizer_preset("tiny", "inversion"))
KINDS = CodedClips, TranscribedClips, VoicedClips, SoundClips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 2)
    soundfile.write(folder / "long.wav", tone(3.0, 24_000), 24_000)
    soundfile.write(folder / "short.wav", tone(0.01, 24_000), 24_000)
    soundfile.write(folder / "click.wav", np.ones(1), 24_000)
    np.save(folder / "mel.npy", np.arange(160.0).reshape(2, 80))
    return folder


@pytest.fixture(scope="module")
def line(folder):
    return write_clips(folder, 2)[0]


def made(kind, **options):
    return kind(MODEL, PROCESSOR, **{"seconds": 2.0, **options})


def array_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_and_without_a_recording_have_one_form(folder, line, kind):
    kind = made(kind)
    kind.check(line)
    row, empty = kind.read(line, folder, RNG(0)), kind.empty()
    for field in dataclasses.fields(row):
        ours, theirs = np.asarray(getattr(row, field.name)), np.asarray(getattr(empty, field.name))
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert row.num_codes == 25 and empty.num_codes == 0 and stacked([row, empty, row]).num_codes == 50


@pytest.mark.parametrize("samples", [8000, 8001, 8159])
def test_every_frame_that_is_heard_has_sound_to_restore(tmp_path, samples):
    """Whisper's mel has a frame for a last piece of a hop, the mel to restore has not."""
    soundfile.write(tmp_path / "a.wav", tone(1, 16_000)[:samples], 16_000)
    row = made(TranscribedClips).read({"audio": "a.wav", "text": "Oh."}, tmp_path, None)
    assert row.frames.tolist() == [50]
    silence = np.float32(np.log(MEL_16K.floor))
    assert (row.target_mel[:50].max(axis=1) > silence + 3).all() and (row.target_mel[50:] == silence).all()


def test_sound_to_hear_is_changed_and_sound_to_restore_is_not(folder, line):
    plain, loud = (made(TranscribedClips, augment=augment).read(line, folder, RNG(1)) for augment in (False, True))
    np.testing.assert_array_equal(loud.target_mel, plain.target_mel)
    assert np.abs(loud.mel - plain.mel).max() > 0.1
    again, other = (made(TranscribedClips, augment=True).read(line, folder, RNG(seed)) for seed in (1, 2))
    assert np.array_equal(again.mel, loud.mel) and not np.array_equal(other.mel, loud.mel)
    for kind in (VoicedClips, SoundClips):
        rows = [made(kind, augment=augment).read(line, folder, RNG(1)) for augment in (False, True)]
        np.testing.assert_array_equal(rows[0].mel, rows[1].mel)


def test_a_coded_row_holds_the_mel_and_the_codes(folder, line):
    row = made(CodedClips).read(line, folder, None)
    sound = soundfile.read(folder / line["audio"], dtype="float32")[0]
    assert row.codes[:25].tolist() == line["codes"] and (row.codes[25:] == -1).all()
    expected = log_mel(load_audio((sound, 24_000), sampling_rate=16_000), PROCESSOR).T
    np.testing.assert_allclose(row.mel[0, :50], expected, atol=1e-5)


def test_of_long_sound_a_piece_is_taken_anywhere_or_from_the_beginning(folder):
    kind, sound = made(SoundClips, seconds=1.0), soundfile.read(folder / "long.wav", dtype="float32")[0]
    rows = [kind.read({"audio": "long.wav"}, folder, rng) for rng in (RNG(0), RNG(1), None, None)]
    assert all(row.lengths == 100 for row in rows)
    np.testing.assert_array_equal(rows[2].waveform, sound[:24_000])
    np.testing.assert_array_equal(rows[3].mel, speech_mel(sound[:24_000]))
    assert not np.array_equal(rows[0].waveform, rows[1].waveform)


def test_a_short_reference_is_repeated(folder, line):
    mel, _ = voice_of({**line, "reference": "mel.npy"}, folder, 192)
    assert mel.shape == (400, 80) and mel.dtype == np.float32
    np.testing.assert_array_equal(mel[::2], mel[:1].repeat(200, axis=0))


# What is wrong


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (CodedClips, {"audio": "long.wav"}),
        (TranscribedClips, {"audio": "long.wav"}),
        (TranscribedClips, {"text": "o" * 51}),
        (VoicedClips, {"audio": "long.wav", "codes": [1] * 150}),
    ],
)
def test_what_there_is_no_room_for_is_too_long_and_not_corrupt(folder, line, kind, change):
    with pytest.raises(DataError) as caught:
        made(kind).read({**line, **change}, folder, None)
    assert caught.value.kind == "too long"


def test_rows_of_odd_lengths_take_what_they_have_room_for(tmp_path):
    """2.013 s are 100 codes and 200 frames, and a bit that there is no room for."""
    soundfile.write(tmp_path / "a.wav", tone(2.013, 24_000), 24_000)
    for kind in (CodedClips, VoicedClips):
        line = {"audio": "a.wav", "codes": [1] * 101, "reference": "a.wav", "speaker": [0.0] * 192}
        with pytest.raises(DataError) as caught:
            made(kind, seconds=2.013).read(line, tmp_path, None)
        assert caught.value.kind == "too long"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "audio", ["nowhere.wav", "", "a\x00b", "\ud800.wav", "x" * 5000, "0.npy", "short.wav", "click.wav", None, 3]
)  # fmt: skip
def test_sound_that_cannot_be_used_is_told_as_a_fault_of_the_data(folder, line, kind, audio):
    codes = [1] if audio in ("short.wav", "click.wav") else line["codes"]
    with pytest.raises(OmniError) as caught:
        made(kind, augment=True).read({**line, "audio": audio, "codes": codes}, folder, RNG(0))
    assert getattr(caught.value, "kind", "") != "too long"


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([], 'no "codes"'),
        ("5", 'no "codes"'),
        ([1.5], 'no "codes"'),
        ([True], 'no "codes"'),
        ([[1], [1, 2]], 'no "codes"'),
        ([-1], 'no "codes"'),
        ([10**30], 'no "codes"'),
        (None, 'no "codes"'),
        ([3, 2**31], "code 2147483648 at index 1"),
    ],
)
def test_codes_that_are_none_are_refused(codes, words):
    with pytest.raises(DataError, match=words):
        codes_of({"codes": codes})


@pytest.mark.parametrize(("kind", "count"), [(CodedClips, 128), (VoicedClips, 129)])
def test_codes_of_another_codebook_are_refused_with_its_size(folder, line, kind, count):
    assert count == (MODEL.token2wav_config.dit_config.num_embeds + 1 if kind is VoicedClips else 128)
    made(kind).read({**line, "codes": [0] * 24 + [count - 1]}, folder, None)
    wrong = {**line, "codes": [0] * 24 + [count]}
    for look in (made(kind).check, lambda line: made(kind).read(line, folder, None)):
        with pytest.raises(DataError, match=f"code {count} at index 24, but the model has {count} codes"):
            look(wrong)


@pytest.mark.parametrize("text", [None, " ", 3, "\ud800"])
def test_text_that_is_none_is_refused(text):
    with pytest.raises(DataError, match='"text"'):
        text_of({"text": text})


VECTOR = array_bytes(np.ones(192, np.float32))


@pytest.mark.parametrize("key", ["speaker", "reference"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an array of numbers"),
        (b"hello", "not an array of numbers"),
        (VECTOR[:200], "not an array of numbers"),
        (VECTOR[:30], "not an array of numbers"),
        (VECTOR.replace(b"(192,)", b"(9e9,)"), "not an array of numbers"),
        (VECTOR.replace(b"(192,), }         ", b"(9999999999999,), }"), "not an array of numbers"),
        (VECTOR.replace(b"<f4", b"<z4"), "not an array of numbers"),
        (b"PK\x03\x04" + bytes(40), "not an array of numbers"),
        (array_bytes(np.array(["a"])), "not an array of numbers"),
        (array_bytes(np.array([{}], object)), "not an array of numbers"),
        (array_bytes(np.ones(7)), "7"),
        (array_bytes(np.full((1, 80), np.nan)), "80 numbers|not finite"),
        (None, "no such file"),
    ],
)  # fmt: skip
def test_arrays_of_a_voice_that_cannot_be_used_are_told(folder, line, tmp_path, key, content, words):
    if content is not None:
        (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(DataError, match=words):
        voice_of({**line, key: str(tmp_path / "bad.npy")}, folder, 192)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 900))
def test_any_damage_to_an_array_is_a_fault_of_the_data(tmp_path_factory, changes, length):
    damaged = bytearray(VECTOR)
    for place, byte in changes:
        damaged[place] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged_{os.getpid()}.npy"
    path.write_bytes(damaged[:length])
    try:
        load_array(path).sum()
    except DataError as error:
        assert path.name in str(error)


@pytest.mark.parametrize("speaker", [None, [], [1.0] * 191, ["a"], {"a": 1}, [[1.0], [1.0, 2.0]], [float("nan")] * 192])
def test_a_vector_that_is_none_is_refused(folder, line, speaker):
    with pytest.raises(DataError, match="speaker"):
        voice_of({**line, "speaker": speaker}, folder, 192)
    mel, vector = voice_of({**line, "speaker": [2.0] * 192}, folder, 192)
    assert mel.shape == (400, 80) and (vector == 2).all()


def test_settings_that_do_not_fit_the_model_are_refused():
    with pytest.raises(ConfigError, match="clip_seconds = 400 is above the 300 s"):
        made(CodedClips, seconds=400.0)
    few = dataclasses.replace(MODEL.speech_tokenizer_config, text_vocab_size=100)
    with pytest.raises(ConfigError, match="has 100 labels of text; bytes need 257"):
        TranscribedClips(dataclasses.replace(MODEL, speech_tokenizer_config=few), PROCESSOR, seconds=2.0)
