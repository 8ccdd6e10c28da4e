"""Codes equal those of transformers token for token, waveforms within 1e-3; loops end, and rows do not mix."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from input_pipeline.packing import BUCKETS
from omni_jax.errors import CapacityError, CheckpointError, OmniError, PromptError
from omni_jax.interop import reference_speech
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import AS_PUBLISHED, CODE_SAMPLING, CodeEvent, SpeechOptions
from omni_jax.sampling.token2wav import flow_noise

WORDS, CODES = 12, 30
GREEDY = dataclasses.replace(AS_PUBLISHED, codes=SamplingOptions(max_new_tokens=CODES, repetition_penalty=1.05))
WARM = dataclasses.replace(AS_PUBLISHED, codes=dataclasses.replace(CODE_SAMPLING, max_new_tokens=CODES))
CASES = ["text", "image", "audio of one block", "film with sound"]


@pytest.fixture(scope="module")
def speech(tiny_checkpoint, sampler):
    return Speech.from_checkpoint(tiny_checkpoint[1], sampler)


@pytest.fixture(scope="module")
def pytorch_model(tiny_checkpoint):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine its threads would wait for each other at thousands of small steps
    yield reference_speech.load_model(tiny_checkpoint[0])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def answered(sampler, conversation):
    """A request and its greedy answer, by name of the conversation."""
    requests = {name: sampler.prepare(conversation[name]) for name in CASES}
    options = SamplingOptions(max_new_tokens=WORDS)
    return {name: (one, sampler.generate([one], options)[0].token_ids) for name, one in requests.items()}


def pytorch_speech(model, sampler, requests, pad_id, **options):
    return reference_speech.speak(
        model,
        requests,
        sampler.config,
        pad_id=pad_id,
        stop_ids=sampler.stop_ids,
        max_new_tokens=WORDS,
        max_codes=CODES,
        **options,
    )


def assert_equal_speech(utterances, codes, waveforms, stops=(140, 142)):
    for ours, theirs, waveform in zip(utterances, codes, waveforms, strict=True):
        ends = [place for place, code in enumerate(theirs) if code in stops]
        assert ours.codes == theirs[: ends[0] if ends else None]
        assert ours.finish_reason == ("stop" if ends else "length")
        assert len(set(ours.codes)) > 3  # not a loop that anything would reproduce
        assert ours.waveform.shape == waveform.shape == (480 * len(ours.codes),)
        assert np.abs(ours.waveform - waveform).max() < 1e-4
        assert np.abs(waveform).max() > 0.05


@pytest.mark.parametrize("name", CASES)
def test_codes_and_waveform_equal_those_of_transformers(name, speech, answered, pytorch_model, sampler, pad_id):
    request, reply = answered[name]
    voice = "Ethan" if name == "text" else "Chelsie"
    theirs = pytorch_speech(pytorch_model, sampler, [request], pad_id, speaker=voice)
    assert theirs.texts == [reply]
    utterances = speech.speak([request], [reply], dataclasses.replace(GREEDY, voice=voice), noise=theirs.noise)
    assert_equal_speech(utterances, theirs.codes, theirs.waveforms)


def test_a_batch_whose_rows_end_apart_equals_transformers(
    speech, answered, pytorch_model, sampler, pad_id, monkeypatch
):
    """Texts of unequal length, and a code of the second row for a stop id."""
    requests, replies = zip(*(answered[name] for name in CASES[:3]))
    thinker_stop = next(
        token for place, token in enumerate(replies[0]) if place > 4 and token not in replies[0][:place]
    )
    monkeypatch.setattr(sampler, "stop_ids", (*sampler.stop_ids, thinker_stop))
    replies = [answer.token_ids for answer in sampler.generate(requests, SamplingOptions(max_new_tokens=WORDS))]
    free = codes_of(speech, requests, replies, GREEDY)[0]
    stops = (140, free[1][5])
    monkeypatch.setattr(speech, "stops", stops)

    theirs = pytorch_speech(pytorch_model, sampler, requests, pad_id, code_stops=stops)
    for ours, text in zip(replies, theirs.texts):
        assert text[: len(ours)] == ours
    utterances = speech.speak(requests, replies, GREEDY, noise=theirs.noise)
    assert_equal_speech(utterances, theirs.codes, theirs.waveforms, stops)
    assert len({len(reply) for reply in replies}) > 1 and len({len(one.codes) for one in utterances}) > 1


def codes_of(speech, requests, replies, options):
    """All codes of each row, and the reasons of their ends."""
    codes, ends = [[] for _ in requests], [None] * len(requests)
    for event in speech.stream_codes(requests, replies, options):
        assert ends[event.row] is None  # nothing comes after the end
        assert len(event.codes) <= 12
        codes[event.row] += event.codes
        ends[event.row] = event.finish_reason
    return codes, ends


def test_a_row_does_not_depend_on_its_neighbours(speech, answered):
    """Sampled, with other seeds, voices and limits; the vocoder is left out, since it runs row by row."""
    requests, replies = zip(*(answered[name] for name in CASES[:3]))
    options = [
        SpeechOptions(voice, dataclasses.replace(WARM.codes, seed=seed, max_new_tokens=limit))
        for seed, (voice, limit) in enumerate([("Ethan", 30), (None, 7), ("Chelsie", 13)])
    ]
    together, _ = codes_of(speech, requests, replies, options)
    alone = [codes_of(speech, [one], [reply], own)[0][0] for one, reply, own in zip(requests, replies, options)]
    assert together == alone
    assert len({tuple(codes) for codes in together}) == 3


def test_seed_and_voice_change_what_is_said(speech, answered):
    request, reply = answered["text"]
    changed = dataclasses.replace(WARM, codes=dataclasses.replace(WARM.codes, seed=1))
    spoken = [codes_of(speech, [request], [reply], options)[0][0] for options in (WARM, WARM, changed)]
    assert spoken[0] == spoken[1] != spoken[2]
    hot = SpeechOptions(codes=SamplingOptions(max_new_tokens=60, temperature=3.0))
    voices = [codes_of(speech, [request], [reply], dataclasses.replace(hot, voice=name))[0] for name in speech.speakers]
    assert voices[0] != voices[1]


def test_chunks_and_caches_of_any_size_give_the_same_codes(speech, sampler, answered, monkeypatch):
    """Chunks of 8 tokens: the prompt has many, and the reply two."""
    request, reply = answered["image"]
    expected = codes_of(speech, [request], [reply], GREEDY)
    small = Speech.__new__(Speech)
    small.__dict__.update(speech.__dict__)
    small.sampler = type(sampler).__new__(type(sampler))
    small.sampler.__dict__.update(sampler.__dict__ | {"chunk": 8})
    monkeypatch.setattr("omni_jax.sampling.speech.BUCKETS", BUCKETS)
    assert codes_of(small, [request], [reply], GREEDY) == expected


@pytest.mark.parametrize("limit", [1, 2, 13, 25])
def test_the_limit_on_codes_is_exact(speech, answered, limit):
    request, reply = answered["text"]
    options = dataclasses.replace(GREEDY, codes=dataclasses.replace(GREEDY.codes, max_new_tokens=limit))
    codes, ends = codes_of(speech, [request], [reply], options)
    assert len(codes[0]) == limit and ends == ["length"]
    assert codes[0] == codes_of(speech, [request], [reply], GREEDY)[0][0][:limit]


@pytest.mark.parametrize("place", [0, 4, 12])  # the first code, and the ends of a block
def test_speech_ends_before_a_stop_id(speech, answered, place, monkeypatch):
    request, reply = answered["text"]
    free = codes_of(speech, [request], [reply], GREEDY)[0][0]
    monkeypatch.setattr(speech, "stops", (140, free[place]))
    codes, ends = codes_of(speech, [request], [reply], GREEDY)
    assert codes[0] == free[: free.index(free[place])] and ends == ["stop"]


def test_text_that_comes_late_changes_nothing(speech, sampler, answered):
    """The Talker waits where its text is not there yet: the two tracks may run side by side."""
    request, reply = answered["text"]
    expected = codes_of(speech, [request], [reply], GREEDY)[0][0]
    state, text, code, _ = speech.start([request], [np.asarray(reply[:-1])], [GREEDY])
    codes, whole, twelve = [int(code[0])], int(text.count[0]), jnp.int32(12)
    for known in [0, 0, 1, 4, whole, whole]:
        known_now = text.replace(count=jnp.asarray([known]), complete=jnp.asarray([False]))
        state, block, done, _ = sp.talk(speech.params, state, known_now, twelve, block=12, **speech.static("talker"))
        codes += [int(c) for c in block[0] if c >= 0]
        assert len(codes) == 1 + known and not done[0]
    while not done[0]:
        state, block, done, _ = sp.talk(speech.params, state, text, twelve, block=12, **speech.static("talker"))
        codes += [int(c) for c in block[0] if c >= 0]
    assert codes == expected


def test_only_ids_that_the_dit_knows_are_drawn(speech, answered):
    request, reply = answered["text"]
    wild = SamplingOptions(max_new_tokens=200, temperature=100.0)
    codes = codes_of(speech, [request], [reply], SpeechOptions(codes=wild))[0][0]
    assert len(set(codes)) > 10
    assert max(codes) <= speech.sampler.config.token2wav_config.dit_config.num_embeds


def test_a_reply_without_words_is_silent(speech, sampler, answered):
    """An end of turn alone, or nothing at all; beside a neighbour that speaks, and alone."""
    request, reply = answered["text"]
    end = sampler.stop_ids[0]
    codes, ends = codes_of(speech, [request] * 3, [[end], reply, []], GREEDY)
    assert codes[0] == codes[2] == [] and ends[0] == ends[2] == "silent"
    assert codes[1] == codes_of(speech, [request], [reply], GREEDY)[0][0]
    alone = speech.speak([request], [[end]], GREEDY)[0]
    assert alone.finish_reason == "silent" and alone.waveform.shape == (0,)
    assert list(speech.stream_codes([request], [[]], GREEDY)) == [CodeEvent(0, (), "silent")]


def test_a_reply_of_one_word_speaks(speech, answered):
    """An answer cut off after its first token; the public reference fails on it."""
    request, reply = answered["text"]
    codes, ends = codes_of(speech, [request], [reply[:1]], GREEDY)
    assert len(codes[0]) > 3 and ends[0] in ("stop", "length")
    # the word is heard with the start of speech, as in an answer whose second token was never fed
    assert codes[0] == codes_of(speech, [request], [reply[:2]], GREEDY)[0][0]


def test_noise_of_a_block_does_not_depend_on_what_follows(speech):
    def noise(seed, blocks):
        return np.asarray(flow_noise(jnp.int32(seed), config=speech.token2wav.config.dit_config, blocks=blocks))

    short, long, other = (noise(seed, blocks) for seed, blocks in ((3, 2), (3, 4), (4, 2)))
    np.testing.assert_array_equal(short, long[: len(short)])
    assert np.abs(np.corrcoef(long[:24].ravel(), long[24:48].ravel())[0, 1]) < 0.1
    assert np.abs(short - other).max() > 1


def test_the_waveform_follows_the_seed_and_not_the_padding(speech, answered):
    codes = [5, 9, 77, 3, 120, 44, 60]
    first, again = speech.synthesise([codes, codes], GREEDY)
    other = speech.synthesise([codes], SpeechOptions(codes=SamplingOptions(seed=5)))[0]
    assert first.shape == (480 * 7,)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_code_that_the_dit_does_not_know_is_an_error(speech):
    with pytest.raises(OmniError, match="129 at index"):
        speech.synthesise([[3, 129]])


def test_more_codes_than_the_dit_has_positions_for_are_refused(speech):
    with pytest.raises(CapacityError, match="16385.*16384"):
        speech.synthesise([[1] * 16385], AS_PUBLISHED)


def test_noise_must_fit_the_codes(speech):
    with pytest.raises(ValueError, match="6, 80"):
        speech.synthesise([[1, 2, 3]], AS_PUBLISHED, noise=[np.zeros((5, 80), np.float32)])


def test_noise_is_for_the_published_decoder_only(speech):
    with pytest.raises(PromptError, match="full"):
        speech.synthesise([[1, 2, 3]], noise=[np.zeros((6, 80), np.float32)])


def test_an_unknown_voice_lists_the_voices(speech, answered):
    request, reply = answered["text"]
    with pytest.raises(PromptError, match="'Nobody'.*Ethan, Chelsie"):
        speech.speak([request], [reply], SpeechOptions(voice="Nobody"))


@pytest.mark.parametrize("replies, message", [([], "0 replies"), ([[1, 5000]], "5000"), ([[-1]], "-1")])
def test_replies_are_checked(speech, answered, replies, message):
    with pytest.raises(PromptError, match=message):
        speech.speak([answered["text"][0]], replies, GREEDY)


def test_options_must_match_requests_in_number(speech, answered):
    request, reply = answered["text"]
    with pytest.raises(PromptError, match="2 sets of options"):
        speech.speak([request], [reply], [GREEDY, GREEDY])


def test_a_model_without_a_talker_says_so(sampler, speech, tiny_checkpoint):
    mute = type(sampler).__new__(type(sampler))
    mute.__dict__.update(sampler.__dict__)
    mute.config = dataclasses.replace(sampler.config, talker_config=None, token2wav_config=None)
    with pytest.raises(CheckpointError, match="cannot speak"):
        Speech.from_checkpoint(tiny_checkpoint[1], mute)


def test_no_requests_give_no_speech(speech):
    assert speech.speak([], []) == []
