"""A live session is the conversation as a whole, read while it goes on."""

import dataclasses
import functools

import numpy as np
import pytest

from input_pipeline.live_turn import LiveOptions
from input_pipeline.media import load_audio
from input_pipeline.mel import log_mel_maximum
from omni_jax.errors import CapacityError, MediaError, PromptError
from omni_jax.sampling import live as live_module
from omni_jax.sampling.generate import Event
from omni_jax.sampling.live import LiveSession
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import CODE_SAMPLING, AudioChunk, End, SpeechOptions
from tests.input_pipeline.media_files import picture

RATE = 16000
FAST = dataclasses.replace(SpeechOptions().flow, solver="euler", num_steps=2)
SPOKEN = SpeechOptions(codes=dataclasses.replace(CODE_SAMPLING, max_new_tokens=40), flow=FAST)
TEXT = SamplingOptions(max_new_tokens=14, temperature=1.0, top_k=50, seed=5, repetition_penalty=1.1)
session_of = functools.partial(LiveSession, slots=1024)


@pytest.fixture(scope="module")
def speech(tiny_checkpoint, sampler):
    return Speech.from_checkpoint(tiny_checkpoint[1], sampler)


def recording(seconds, loudest_at=None, seed=0):
    """Noise that swells; float32 [W]."""
    time = np.arange(round(seconds * RATE)) / RATE
    level = 0.02 + 0.3 * np.exp(-(((time - (loudest_at or seconds / 2)) / 0.7) ** 2))
    return (level * np.random.default_rng(seed).normal(0, 1, len(time))).astype(np.float32)


def pieces(samples, seconds=0.1):
    step = round(seconds * RATE)
    return [samples[start : start + step] for start in range(0, len(samples), step)]


def heard(events):
    """Text, sound and end of an answer."""
    events = list(events)
    text = "".join(event.text for event in events if isinstance(event, Event))
    sound = [event.waveform for event in events if isinstance(event, AudioChunk)]
    assert isinstance(events[-1], End)
    return text, np.concatenate([np.zeros(0, np.float32), *sound]), events[-1]


def asked(words, **medium):
    content = [{"type": kind, kind: value} for kind, value in medium.items()]
    return [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]


def offline(speech, messages, options=TEXT, spoken=SPOKEN):
    request = speech.sampler.prepare(messages)
    return speech.generate([request], options, spoken)[0]


def assert_same_answer(events, answer):
    text, sound, end = heard(events)
    assert (text, list(end.token_ids)) == (answer.text, answer.token_ids)
    assert list(end.codes) == answer.codes and end.speech_reason == answer.speech_reason
    np.testing.assert_array_equal(sound, answer.waveform)


def test_a_recording_in_pieces_of_100_ms_is_the_recording_at_once(speech):
    samples = recording(10.0)
    answer = offline(speech, asked("What was said?", audio=(samples, RATE)))
    maximum = log_mel_maximum(samples, speech.sampler.processor)
    with session_of(speech, LiveOptions(maximum=maximum), TEXT, SPOKEN) as session:
        for piece in pieces(samples):
            session.audio(piece)
        session.text("What was said?")
        assert_same_answer(session.respond(), answer)


def test_without_the_maximum_the_same_answer_follows_when_the_loudest_comes_first(speech):
    samples = recording(5.0, loudest_at=0.5)
    answer = offline(speech, asked("Well?", audio=(samples, RATE)))
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        for piece in pieces(samples, 0.33):
            session.audio(piece)
        assert session.mel_deviation == 0
        session.text("Well?")
        assert_same_answer(session.respond(), answer)


def test_how_far_the_features_may_be_from_offline_ones_is_told(speech):
    """A voice that starts in near silence: the floor of the features rises later, by what is told."""
    samples = recording(7.0, loudest_at=5.0) * np.linspace(1e-5, 1, 7 * RATE, dtype=np.float32) ** 4
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        for piece in pieces(samples):
            session.audio(piece)
        assert 0.1 < session.mel_deviation < 2.5  # (rise of the maximum in log10) / 4


def test_blocks_are_read_while_the_person_talks(speech):
    """Each 2 s of sound are 50 tokens in the caches as soon as they are complete; little is left for the end."""
    samples = recording(7.0)
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        grown, before = [], session.tokens
        for piece in pieces(samples, 0.5):
            session.audio(piece)
            grown.append(session.tokens - before)
        opening = grown[4] - 50  # user's marker and the start of sound
        assert 0 < opening < 10
        assert grown[:4] == [0] * 4 and grown[4:8] == [opening + 50] * 4
        assert grown[8:12] == [opening + 100] * 4 and grown[12:] == [opening + 150] * 2
        in_caches = session.tokens
        events = session.respond()
        assert 25 <= session.tokens - in_caches < 40
        list(events)


def test_a_film_with_sound_in_pieces_is_the_film_at_once(speech, media):
    """Frames of the file as a camera would give them. `prepare` decodes the same frames at the same times."""
    from input_pipeline.media import load_video

    film = load_video(media["talking"], speech.sampler.processor, want_audio=True)
    messages = asked("And?", video=media["talking"])
    messages[0]["content"][0]["use_audio"] = True
    answer = offline(speech, messages)
    options = LiveOptions(
        pictures=True,
        maximum=log_mel_maximum(film.audio, speech.sampler.processor),
        fps=1 / film.seconds_per_frame,
    )
    with session_of(speech, options, TEXT, SPOKEN) as session:
        sound = pieces(film.audio)
        for number, piece in enumerate(sound):
            for index, frame in enumerate(film.frames):
                if number * 0.1 <= index * film.seconds_per_frame < number * 0.1 + 0.1:
                    session.frame(frame, index * film.seconds_per_frame)
            session.audio(piece)
        session.text("And?")
        assert_same_answer(session.respond(), answer)


@pytest.fixture
def whole_prompts(monkeypatch):
    """All that sessions have put into the caches, as one request."""
    read = []
    real = live_module.pack_batch

    def recording_pack(requests, *args, **kwargs):
        read.extend(requests)
        return real(requests, *args, **kwargs)

    monkeypatch.setattr(live_module, "pack_batch", recording_pack)

    def joined():
        rows = {"audio_row": 0, "vision_row": 0}
        parts = {name: [] for name in ("token_ids", "position_ids", "audio_row", "vision_row")}
        for piece in read:
            for name, before in rows.items():
                own = getattr(piece, name)
                parts[name].append(np.where(own >= 0, own + before, -1).astype(np.int32))
                rows[name] += int((own >= 0).sum())
            parts["token_ids"].append(piece.token_ids)
            parts["position_ids"].append(piece.position_ids)
        return dataclasses.replace(
            read[-1],
            **{name: np.concatenate(part, axis=-1) for name, part in parts.items()},
            audio=tuple(mel for piece in read for mel in piece.audio),
            vision=tuple(one for piece in read for one in piece.vision),
            seconds_per_grid=tuple(one for piece in read for one in piece.seconds_per_grid),
        )

    return joined


def test_three_turns_are_one_conversation(speech, whole_prompts):
    """Each answer is that of a prompt that holds all turns and answers before it: the caches lost and mixed nothing.

    The last answer's ids are read as text of the prompt, so the Talker hears them as it does offline.
    """
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        session.image(picture(60, 90))
        session.text("Hello.")
        first = heard(session.respond())[2]
        for piece in pieces(recording(2.5, seed=1)):
            session.audio(piece)
        second = heard(session.respond())
        session.text("And now?")
        events = session.respond()
        request = whole_prompts()
        third = heard(events)
    ids = request.token_ids.tolist()
    for answer in (first, second[2]):
        words = [token for token in answer.token_ids if token not in speech.sampler.stop_ids]
        assert any(ids[start : start + len(words)] == words for start in range(len(ids)))
    assert ids.count(speech.sampler.tokenizer.token_id("<|im_start|>")) == 7
    expected = speech.generate([request], TEXT, SPOKEN)[0]
    assert third[0] == expected.text and list(third[2].codes) == expected.codes
    np.testing.assert_array_equal(third[1], expected.waveform)


def test_an_interrupted_answer_is_kept_as_far_as_it_was_said(speech, whole_prompts):
    options, spoken = dataclasses.replace(TEXT, max_new_tokens=60), dataclasses.replace(SPOKEN, loop_guard=None)
    spoken = dataclasses.replace(spoken, codes=dataclasses.replace(spoken.codes, max_new_tokens=400))
    with session_of(speech, sampling=options, speech=spoken) as session:
        session.text("Tell me a long story.")
        said, sound = [], 0
        for event in session.respond():
            if isinstance(event, Event):
                said += event.token_ids
            if isinstance(event, AudioChunk):
                sound += len(event.waveform)
                if sound > 24000:  # a second
                    break
        end = session.interrupt(played=0.78)
        assert end.speech_reason == "interrupted" and len(end.codes) == 39
        assert list(end.token_ids) == said[:3]  # 39 codes at 13 a token
        session.text("Stop! What is that?")
        events = session.respond()
        request = whole_prompts()
        text, waveform, last = heard(events)
    ids = request.token_ids.tolist()
    opening = speech.sampler.tokenizer.encode("assistant\n")
    start = next(i for i in range(len(ids)) if ids[i : i + len(opening)] == opening) + len(opening)
    assert ids[start : start + 4] == [*said[:3], speech.sampler.tokenizer.token_id("<|im_end|>")]
    expected = speech.generate([request], options, spoken)[0]
    assert text == expected.text and list(last.codes) == expected.codes
    np.testing.assert_array_equal(waveform, expected.waveform)


def test_an_answer_that_was_heard_whole_is_kept_whole(speech):
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        session.text("Hello.")
        events = session.respond()
        for event in events:
            if isinstance(event, AudioChunk) and event.start + len(event.waveform) == 480 * 40:
                break
        end = session.interrupt()
        assert len(end.codes) == 40 and len(end.token_ids) >= TEXT.max_new_tokens - 1


def test_a_sampler_answers_in_text_only(sampler):
    samples = recording(3.0)
    request = sampler.prepare(asked("What?", audio=(samples, RATE)))
    expected = sampler.generate([request], TEXT)[0]
    options = LiveOptions(maximum=log_mel_maximum(samples, sampler.processor))
    with session_of(sampler, options, TEXT) as session:
        for piece in pieces(samples):
            session.audio(piece)
        session.text("What?")
        text, sound, end = heard(session.respond())
        assert text == expected.text and list(end.token_ids) == expected.token_ids
        assert len(sound) == 0 and end.speech_reason == "none"
        session.text("More?")
        assert heard(session.respond())[0]


def test_other_rates_are_resampled(speech, tmp_path):
    samples = recording(2.2)
    fine = np.repeat(samples, 3)  # 48 kHz
    whole = load_audio((fine, 48000))
    answer = offline(speech, asked("Hm?", audio=(whole, RATE)))
    options = LiveOptions(rate=48000, maximum=log_mel_maximum(whole, speech.sampler.processor))
    with session_of(speech, options, TEXT, SPOKEN) as session:
        for piece in pieces(fine, 0.4):
            session.audio(piece, 48000)
        session.text("Hm?")
        assert_same_answer(session.respond(), answer)


def test_bad_pieces_are_refused_and_the_session_goes_on(speech):
    samples = recording(1.0)
    answer = offline(speech, asked("What?", audio=(samples, RATE)))
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        session.audio(samples[:8000])
        broken = samples[8000:].copy()
        broken[5] = np.nan
        with pytest.raises(MediaError, match="NaN|finite"):
            session.audio(broken)
        with pytest.raises(MediaError, match="44100"):
            session.audio(samples[8000:], rate=44100)
        with pytest.raises(PromptError, match="pictures=True"):
            session.frame(picture(56, 56), 0.0)
        session.audio(samples[8000:])
        session.text("What?")
        assert_same_answer(session.respond(), answer)


def test_a_session_that_has_ended_says_so(speech):
    session = session_of(speech, sampling=TEXT, speech=SPOKEN)
    session.close()
    for use in (
        lambda: session.audio(recording(0.1)),
        lambda: session.text("a"),
        lambda: session.respond(),
        lambda: session.interrupt(),
        lambda: session.image(picture(56, 56)),
        lambda: session.frame(picture(56, 56), 0.0),
        lambda: session.tokens,
        lambda: session.mel_deviation,
    ):
        with pytest.raises(PromptError, match="has ended"):
            use()


def test_a_session_closed_in_the_middle_of_an_answer_is_quiet(speech):
    session = session_of(speech, sampling=TEXT, speech=SPOKEN)
    session.text("a")
    events = session.respond()
    next(events)
    session.close()
    assert list(events) == []


@pytest.mark.parametrize("played", [-1.0, float("nan"), float("inf")])
def test_what_was_played_must_be_a_time(speech, played):
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        session.text("a")
        events = session.respond()
        next(events)
        with pytest.raises(PromptError, match="out of range"):
            session.interrupt(played)
        session.interrupt(0.0)
        session.text("b")


@pytest.mark.parametrize("words", [1, 20, 40, 41, 42, 43, 44, 45, 46, 47, 48])
def test_an_answer_at_the_end_of_the_caches_ends_in_order(speech, words):
    """However long the prompt is: an end comes, and the next turn can begin (and may find no room)."""
    options = SamplingOptions(max_new_tokens=1000)
    with session_of(speech, sampling=options, speech=SPOKEN) as session:
        session.text("a " * (768 + words))
        end = heard(session.respond())[2]
        assert end.finish_reason == "length" and end.codes
        assert session.tokens <= 1024
        with pytest.raises(CapacityError):
            for _ in range(9):
                session.text("a " * 60)
                heard(session.respond())


def test_positions_that_run_out_end_the_session(speech, monkeypatch):
    config = speech.sampler.config
    text = dataclasses.replace(config.thinker_config.text_config, max_position_embeddings=120)
    short = dataclasses.replace(config, thinker_config=dataclasses.replace(config.thinker_config, text_config=text))
    monkeypatch.setattr(speech.sampler, "config", short)
    session = session_of(speech, sampling=TEXT, speech=SPOKEN)
    with pytest.raises(CapacityError, match="position"):
        session.audio(recording(8.0))
    with pytest.raises(PromptError, match="has ended"):
        session.text("a")


def test_turns_take_turns(speech):
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        with pytest.raises(PromptError, match="no answer"):
            session.interrupt()
        session.text("a")
        events = session.respond()
        next(events)
        with pytest.raises(PromptError, match="is answering"):
            session.audio(recording(0.1))
        with pytest.raises(PromptError, match="is answering"):
            session.respond()
        list(events)
        session.text("b")


def test_a_conversation_that_outgrows_its_caches_ends(speech):
    session = session_of(speech, sampling=TEXT, speech=SPOKEN)
    with pytest.raises(CapacityError, match="1024"):
        for piece in pieces(recording(44.0), 1.0):
            session.audio(piece)
    with pytest.raises(PromptError, match="has ended"):
        session.text("a")


def test_sound_too_short_for_a_token_can_go_on(speech):
    with session_of(speech, sampling=TEXT, speech=SPOKEN) as session:
        session.audio(recording(0.01))
        with pytest.raises(MediaError, match="short"):
            session.respond()
        session.audio(recording(0.5))
        assert heard(session.respond())[2].codes


def test_an_unknown_voice_is_refused_at_once(speech):
    with pytest.raises(PromptError, match="Ethan, Chelsie"):
        session_of(speech, speech=SpeechOptions(voice="Nobody"))
