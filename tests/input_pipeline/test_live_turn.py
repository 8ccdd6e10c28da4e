"""A turn in pieces is the turn as a whole: tokens, positions, and the features at each token."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from input_pipeline.chat import placeholder_ids, render
from input_pipeline.live_turn import LiveOptions, LiveTurn
from input_pipeline.mel import log_mel, log_mel_maximum
from input_pipeline.packing import pack_batch
from input_pipeline.patches import video_patches
from input_pipeline.request import Request, VideoFeatures, assemble, audio_tokens, prepare
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import ProcessorConfig
from omni_jax.errors import CapacityError, ConfigError, MediaError, PromptError
from omni_jax.presets import preset
from tests.input_pipeline import tiny_tokenizer
from tests.input_pipeline.media_files import picture

CONFIG = preset("tiny")
IDS = CONFIG.thinker_config
AREA = 28 * 28
PROCESSOR = ProcessorConfig(
    image_min_pixels=AREA, image_max_pixels=64 * AREA, video_min_pixels=4 * AREA, video_max_pixels=16 * AREA
)
PICTURE = picture(60, 90)  # 2 x 3 cells
BOTH = LiveOptions(sound=True, pictures=True)
CAMERA = LiveOptions(sound=False, pictures=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def frames_at(count, height=56, width=84):
    return np.stack([picture(height, width, seed=number) for number in range(count)])


def text(words):
    return {"type": "text", "text": words}


def placed(request):
    """Tokens, positions, and a fingerprint of the features at each media token, read through the packed batch."""
    inputs = pack_batch([request], CONFIG, chunk=8)
    length = inputs.lengths[0]
    heard, seen = np.zeros(length), np.zeros(length)
    if inputs.audio is not None:
        blocks = inputs.audio.mel.astype(np.float64).reshape(-1, 4, inputs.audio.mel.shape[-1])
        weights = np.arange(1, blocks[0].size + 1).reshape(blocks[0].shape)
        prints, source = (blocks * weights).sum((1, 2)), inputs.audio_source[0, :length]
        heard[source >= 0] = prints[source[source >= 0]]
    if inputs.vision is not None:
        cells = inputs.vision.patches.astype(np.float64).reshape(len(inputs.vision.patches) // 4, -1)
        prints, source = cells @ np.arange(1, cells.shape[1] + 1), inputs.vision_source[0, :length]
        seen[source >= 0] = prints[source[source >= 0]]
    return inputs.token_ids[0, :length], inputs.position_ids[:, 0, :length], heard, seen


def assert_equal_to_offline(pieces, offline):
    assert all(isinstance(piece, Request) and len(piece.token_ids) for piece in pieces)
    assert all(getattr(piece, name).dtype == np.int32 for piece in pieces for name in ("token_ids", "position_ids"))
    parts = [placed(piece) for piece in pieces]
    joined = [np.concatenate(each, axis=-1) for each in zip(*parts, strict=True)]
    expected = placed(offline)
    for ours, theirs in zip(joined[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(joined[2:], expected[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0.1)  # of some 10^4
    assert pieces[-1].next_position == offline.next_position
    assert sum(len(piece.seconds_per_grid) for piece in pieces) == sum(len(piece.vision) for piece in pieces)


def offline_film(content, tokenizer, frames, fps, waveform=None):
    """The whole turn, from its message and features of the whole film."""
    mel = None if waveform is None else log_mel(waveform, PROCESSOR)
    film = VideoFeatures(video_patches(frames, PROCESSOR), 2 / fps, mel)
    ids = placeholder_ids(render([{"role": "user", "content": content}], tokenizer), tokenizer)
    return assemble(ids, CONFIG, videos=[film])


def speak(turn, waveform, seed):
    """Pushes a waveform in random pieces; yields what comes out."""
    rng = np.random.default_rng(seed)
    places = np.sort(rng.integers(0, len(waveform) + 1, len(waveform) // rng.choice([400, 3000, 50000]) + 1))
    for samples in np.split(waveform, places):
        yield from turn.push_audio(samples)


def talk_and_show(turn, waveform, frames, fps, seed):
    """Pushes sound and frames in an order that is only roughly that of time; yields what comes out."""
    rng = np.random.default_rng(seed)
    events = [(index / fps, "frame", index) for index in range(len(frames))]
    events += [(start / 16000, "sound", start) for start in range(0, len(waveform), 1600)]
    late = {kind: rng.uniform(0, 1.5) for kind in ("frame", "sound")}
    for _, kind, place in sorted(events, key=lambda event: event[0] + late[event[1]]):
        if kind == "frame":
            yield from turn.push_frame(frames[place], place / fps)
        else:
            yield from turn.push_audio(waveform[place : place + 1600])


# Turns of every kind


@pytest.mark.parametrize("words", [[], ["What is this?"], ["\n\n  What", " is", " this? <|im_end|>"]])
@pytest.mark.parametrize("begun", [True, False])
def test_text_alone(tokenizer, words, begun):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR)
    pieces = list(turn.begin()) if begun else []
    for each in words:
        turn.text(each)
    pieces += turn.finish()
    offline = prepare([{"role": "user", "content": [text(each) for each in words]}], tokenizer, CONFIG, PROCESSOR)
    assert_equal_to_offline(pieces, offline)
    assert turn.finished and turn.next_position == offline.next_position and turn.tokens == len(offline.token_ids)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(321, 150000),
    seed=st.integers(0, 2**16),
    before=st.sampled_from([[], ["Listen:\n"], ["Listen", "ing ", PICTURE, "\n"], [PICTURE, PICTURE]]),
    after=st.sampled_from([[], ["Well", "?\n"]]),
)
@example(samples=32000, seed=0, before=[], after=[])
@example(samples=64000 + 320, seed=0, before=[], after=["Well?"])  # a remainder of two frames: no token
@example(samples=64000 + 321, seed=0, before=[], after=[])
def test_sound_with_text_and_pictures_around_it(tokenizer, samples, seed, before, after):
    waveform = noise(samples, seed)
    options = LiveOptions(maximum=log_mel_maximum(waveform, PROCESSOR))
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, options)
    pieces = list(turn.begin()) if seed % 2 else []
    content = []
    for item in before:
        if isinstance(item, str):
            turn.text(item)
            content.append(text(item))
        else:
            pieces += turn.image(item)
            content.append({"type": "image", "image": item})
    pieces += speak(turn, waveform, seed)
    for item in after:
        turn.text(item)
    pieces += turn.finish()
    content += [{"type": "audio", "audio": waveform}, *map(text, after)]
    assert_equal_to_offline(pieces, prepare([{"role": "user", "content": content}], tokenizer, CONFIG, PROCESSOR))


@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 14), fps=st.sampled_from([0.5, 1.0, 2.0, 3.0]), words=st.sampled_from([[], ["And?"]]))
def test_a_silent_film(tokenizer, count, fps, words):
    frames = frames_at(count)
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, dataclasses.replace(CAMERA, fps=fps))
    pieces = [piece for index, frame in enumerate(frames) for piece in turn.push_frame(frame, index / fps)]
    for each in words:
        turn.text(each)
    pieces += turn.finish()
    content = [{"type": "video", "video": "live"}, *map(text, words)]
    assert_equal_to_offline(pieces, offline_film(content, tokenizer, frames, fps))


def test_a_silent_film_is_that_of_the_offline_door(tokenizer):
    frames = frames_at(8)
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, CAMERA)
    pieces = [piece for index, frame in enumerate(frames) for piece in turn.push_frame(frame, index / 2)]
    pieces += turn.finish()
    messages = [{"role": "user", "content": [{"type": "video", "video": (frames, 2.0)}]}]
    assert_equal_to_offline(pieces, prepare(messages, tokenizer, CONFIG, PROCESSOR))


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(321, 130000),
    count=st.integers(1, 16),
    fps=st.sampled_from([1.0, 2.0, 2.5, 3.0]),
    seed=st.integers(0, 2**16),
)
@example(samples=321, count=16, fps=2.0, seed=0)  # pictures go on long after the sound
@example(samples=130000, count=1, fps=2.0, seed=0)  # and the other way round
@example(samples=64320, count=9, fps=2.0, seed=0)  # two frames of sound over
def test_a_film_with_sound(tokenizer, samples, count, fps, seed):
    frames, waveform = frames_at(count), noise(samples, seed)
    options = dataclasses.replace(BOTH, fps=fps, maximum=log_mel_maximum(waveform, PROCESSOR))
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, options)
    turn.text("See")
    pieces = [*turn.begin(), *talk_and_show(turn, waveform, frames, fps, seed)]
    turn.text("there.")
    pieces += turn.finish()
    content = [text("See"), {"type": "video", "video": "live"}, text("there.")]
    assert_equal_to_offline(pieces, offline_film(content, tokenizer, frames, fps, waveform))


def test_a_wide_and_short_film_keeps_the_gap_of_the_reference(tokenizer):
    frames, waveform = frames_at(2, 28, 28 * 14), noise(3200)
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, BOTH)
    pieces = [*talk_and_show(turn, waveform, frames, 2, 0), *turn.finish()]
    offline = offline_film([{"type": "video", "video": "live"}], tokenizer, frames, 2, waveform)
    assert offline.next_position > offline.position_ids[0, -1] + 1
    assert_equal_to_offline(pieces, offline)


def test_of_sound_and_pictures_only_one_may_come(tokenizer):
    frames, waveform = frames_at(6), noise(50000)
    options = dataclasses.replace(BOTH, maximum=log_mel_maximum(waveform, PROCESSOR))
    mute, blind = (LiveTurn(tokenizer, CONFIG, PROCESSOR, options) for _ in range(2))
    pieces = [piece for index, frame in enumerate(frames) for piece in mute.push_frame(frame, index / 2)]
    assert not pieces
    content = [{"type": "video", "video": "live"}]
    assert_equal_to_offline(mute.finish(), offline_film(content, tokenizer, frames, 2))
    assert not list(speak(blind, waveform, 0))
    messages = [{"role": "user", "content": [{"type": "audio", "audio": waveform}]}]
    assert_equal_to_offline(blind.finish(), prepare(messages, tokenizer, CONFIG, PROCESSOR))


def test_turns_of_a_conversation_follow_each_other(tokenizer):
    first, second, reply = noise(70000), noise(30000, 1), "A voice."
    maxima = [log_mel_maximum(waveform, PROCESSOR) for waveform in (first, second)]
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, LiveOptions(system="You hear.", maximum=maxima[0]))
    pieces = [*speak(turn, first, 0), *turn.finish()]
    answer = tokenizer.encode(reply)
    kept, position = answer[:-1], turn.next_position + len(answer) - 1  # the last token is not in the cache
    options = LiveOptions(system="You hear.", maximum=maxima[1])
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, options, answer_rest=answer[-1:], position=position)
    later = list(turn.begin())
    turn.text("And now? ")
    later += [*turn.image(PICTURE), *speak(turn, second, 1), *turn.finish()]
    messages = [
        {"role": "system", "content": "You hear."},
        {"role": "user", "content": [{"type": "audio", "audio": first}]},
        {"role": "assistant", "content": reply},
        {
            "role": "user",
            "content": [text("And now? "), {"type": "image", "image": PICTURE}, {"type": "audio", "audio": second}],
        },
    ]
    offline = prepare(messages, tokenizer, CONFIG, PROCESSOR)
    spoken = np.arange(position - len(kept), position)
    middle = Request(
        token_ids=np.array(kept, np.int32),
        position_ids=np.stack([spoken] * 3).astype(np.int32),
        next_position=position,
        audio=(),
        vision=(),
        seconds_per_grid=(),
        audio_row=np.full(len(kept), -1, np.int32),
        vision_row=np.full(len(kept), -1, np.int32),
    )
    assert_equal_to_offline([*pieces, middle, *later], offline)


# When pieces come


def test_the_system_prompt_and_each_block_come_at_once(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR)
    (opening,) = turn.begin()
    assert tokenizer.decode(opening.token_ids).startswith("system\nYou are a helpful assistant.")
    assert turn.begin() == ()
    assert turn.push_audio(noise(32000)) == ()
    (head,) = turn.push_audio(noise(40))
    assert (head.token_ids == IDS.audio_token_id).sum() == 50 and head.audio[0].shape == (128, 200)
    assert head.token_ids[-51] == IDS.audio_start_token_id
    pieces = turn.push_audio(noise(96000))
    assert [piece.token_ids.tolist() for piece in pieces] == [[IDS.audio_token_id] * 50] * 3
    (tail,) = turn.finish()
    assert tail.token_ids[0] == IDS.audio_end_token_id and tail.audio == ()  # 40 samples over: no token
    assert tail.next_position == turn.next_position == tail.position_ids.max() + 1


def test_pictures_of_a_chunk_come_before_its_sound_is_there(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, BOTH)
    frames = frames_at(8)
    for index in range(4):
        assert turn.push_frame(frames[index], index / 2) == ()
    pictures, sound = turn.push_audio(noise(32040))
    assert [patches.grid[0] for patches in pictures.vision] == [1, 1] and pictures.seconds_per_grid == (1.0, 1.0)
    assert pictures.token_ids[-len(pictures.vision_row[pictures.vision_row >= 0]) - 1] == IDS.audio_start_token_id
    assert (sound.token_ids == IDS.audio_token_id).all() and len(sound.token_ids) == 50
    for index in range(4, 7):
        assert turn.push_frame(frames[index], index / 2) == ()
    (pictures,) = turn.push_frame(frames[7], 3.5)
    assert (pictures.token_ids == IDS.video_token_id).all()


def test_text_during_sound_follows_it(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR)
    turn.push_audio(noise(1000))
    turn.text("Well?")
    (piece,) = turn.finish()
    ids = piece.token_ids.tolist()
    assert "Well?" in tokenizer.decode(ids[ids.index(IDS.audio_end_token_id) :])


def test_the_deviation_of_the_features_is_told(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR)
    turn.push_audio(noise(40000) * np.float32(1e-3))
    assert turn.mel_deviation == 0 and turn.mel_maximum < -6
    turn.push_audio(noise(40000))
    assert turn.mel_deviation == pytest.approx((turn.mel_maximum - 8 + 10) / 4)  # the floor left digital silence
    assert turn.mel_deviation > 0.3


# What is refused


def test_bad_sound_leaves_the_turn_as_it_was(tokenizer):
    waveform = noise(40000)
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, LiveOptions(maximum=log_mel_maximum(waveform, PROCESSOR)))
    pieces = list(turn.push_audio(waveform[:33000]))
    for piece, rate in ((np.array([np.nan], np.float32), None), (waveform[:5], 44100), (np.zeros(9, np.int32), None)):
        with pytest.raises(MediaError):
            turn.push_audio(piece, rate)
    pieces += [*turn.push_audio(waveform[33000:]), *turn.finish()]
    messages = [{"role": "user", "content": [{"type": "audio", "audio": waveform}]}]
    offline = prepare(messages, tokenizer, CONFIG, PROCESSOR)
    assert_equal_to_offline(pieces, offline)
    assert sum(audio_tokens(mel.shape[1]) for piece in pieces for mel in piece.audio) == 62


def test_a_click_is_no_turn_but_may_become_one(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR)
    turn.push_audio(noise(300))
    with pytest.raises(MediaError, match="too short for one audio token"):
        turn.finish()
    turn.push_audio(noise(300))
    assert (turn.finish()[-1].token_ids == IDS.audio_token_id).sum() == 1


def test_text_and_pictures_are_checked(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR)
    for bad in (3, "\ud800"):
        with pytest.raises(PromptError, match="string|surrogate"):
            turn.text(bad)
    with pytest.raises(MediaError):
        turn.image("nowhere.png")
    turn.push_audio(noise(1000))
    with pytest.raises(PromptError, match="after live sound"):
        turn.image(PICTURE)
    (piece,) = turn.finish()
    assert not piece.vision


def test_a_turn_takes_only_what_it_was_made_for(tokenizer):
    with pytest.raises(PromptError, match="pictures=True"):
        LiveTurn(tokenizer, CONFIG, PROCESSOR).push_frame(frames_at(1)[0], 0)
    with pytest.raises(PromptError, match="sound=True"):
        LiveTurn(tokenizer, CONFIG, PROCESSOR, CAMERA).push_audio(noise(10))


def test_a_bad_frame_leaves_the_turn_as_it_was(tokenizer):
    frames = frames_at(4)
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, CAMERA)
    pieces = []
    for index in range(4):
        pieces += turn.push_frame(frames[index], index / 2)
        with pytest.raises(MediaError, match="Send frames in order|count from 0"):
            turn.push_frame(frames[0], index / 2 - 0.1)
    pieces += turn.finish()
    assert_equal_to_offline(pieces, offline_film([{"type": "video", "video": "live"}], tokenizer, frames, 2))


def test_a_turn_ends_once(tokenizer):
    turn = LiveTurn(tokenizer, CONFIG, PROCESSOR, BOTH)
    turn.finish()
    frame = frames_at(1)[0]
    calls = (
        turn.begin,
        turn.finish,
        lambda: turn.text("more"),
        lambda: turn.image(PICTURE),
        lambda: turn.push_audio(noise(10)),
        lambda: turn.push_frame(frame, 0),
    )
    for call in calls:
        with pytest.raises(PromptError, match="has ended"):
            call()


def test_a_conversation_over_the_model_s_positions_ends(tokenizer):
    model = dataclasses.replace(IDS, text_config=dataclasses.replace(IDS.text_config, max_position_embeddings=1000))
    config = dataclasses.replace(CONFIG, thinker_config=model)
    turn = LiveTurn(tokenizer, config, PROCESSOR, position=940)
    turn.begin()
    with pytest.raises(CapacityError, match="more than the model's 1000"):
        turn.push_audio(noise(33000))
    with pytest.raises(PromptError, match="has ended"):
        turn.push_audio(noise(33000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dataclasses.replace(BOTH, fps=0.9), "at least 1 a second"),
        (dataclasses.replace(CAMERA, fps=0), "fps must be a positive number"),
        (dataclasses.replace(CAMERA, max_pixels=100), "100 pixels a frame"),
        (LiveOptions(rate=-1), "rate must be a positive number"),
    ],
)
def test_impossible_options_are_refused(tokenizer, options, message):
    with pytest.raises(MediaError, match=message):
        LiveTurn(tokenizer, CONFIG, PROCESSOR, options)


def test_a_tokenizer_or_encoder_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="in the tokenizer but"):
        LiveTurn(tokenizer, preset("qwen2.5-omni-7b"), PROCESSOR)
    audio = dataclasses.replace(IDS.audio_config, n_window=50)
    config = dataclasses.replace(CONFIG, thinker_config=dataclasses.replace(IDS, audio_config=audio))
    with pytest.raises(ConfigError, match="block of 100 mel frames makes 25 tokens"):
        LiveTurn(tokenizer, config, PROCESSOR, BOTH)
