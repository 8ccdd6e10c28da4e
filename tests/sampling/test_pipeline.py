"""Text and speech made side by side are those that are made one after the other, and sound comes early."""

import dataclasses
import itertools

import numpy as np
import pytest

from omni_jax.errors import NumericsError, PromptError
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.compiled import compiled_programs_by_name
from omni_jax.sampling.generate import Event
from omni_jax.sampling.guards import is_looping
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.pipeline import Answering
from omni_jax.sampling.sound import SoundStreams
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import CODE_SAMPLING, AudioChunk, End, SpeechOptions

FAST = dataclasses.replace(SpeechOptions().flow, solver="euler", num_steps=2)
WARM = SamplingOptions(max_new_tokens=12, temperature=1.0, top_k=50, top_p=0.9)
CASES = ["text", "image", "audio of one block", "film with sound"]


@pytest.fixture(scope="module")
def speech(tiny_checkpoint, sampler):
    return Speech.from_checkpoint(tiny_checkpoint[1], sampler)


@pytest.fixture(scope="module")
def requests(sampler, conversation):
    return {name: sampler.prepare(conversation[name]) for name in CASES}


def spoken(limit=40, seed=0, **changes):
    codes = dataclasses.replace(CODE_SAMPLING, max_new_tokens=limit, seed=seed)
    return SpeechOptions(codes=codes, flow=FAST, **changes)


def two_pass(speech, requests, options, spoken):
    """Texts, then codes, then sound."""
    answers = speech.sampler.generate(requests, options)
    return answers, speech.speak(requests, [answer.token_ids for answer in answers], spoken)


def assert_equal_answers(ours, answers, utterances):
    for one, answer, utterance in zip(ours, answers, utterances, strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (answer.text, answer.token_ids, answer.finish_reason)
        assert (one.codes, one.speech_reason) == (utterance.codes, utterance.finish_reason)
        np.testing.assert_array_equal(one.waveform, utterance.waveform)


@pytest.mark.parametrize("seed", range(20))
def test_side_by_side_equals_two_pass(speech, requests, seed):
    request = requests[CASES[seed % 4]]
    tokens = 1 + seed * 7 % 30  # answers of one token, of less than a block, of several
    options = dataclasses.replace(WARM, seed=seed, max_new_tokens=tokens)
    sound = spoken(limit=1 + seed * 11 % 50, seed=seed, voice="Ethan" if seed % 2 else None)
    ours = speech.generate([request], options, sound)
    assert_equal_answers(ours, *two_pass(speech, [request], options, sound))
    assert len(ours[0].waveform) == 480 * len(ours[0].codes)


def test_side_by_side_equals_two_pass_greedily(speech, requests):
    options, codes = SamplingOptions(max_new_tokens=20), SamplingOptions(max_new_tokens=40, repetition_penalty=1.05)
    sound = SpeechOptions(codes=codes, flow=FAST)
    assert_equal_answers(
        speech.generate([requests["image"]], options, sound), *two_pass(speech, [requests["image"]], options, sound)
    )


def test_a_batch_of_unlike_rows_equals_each_alone(speech, requests, monkeypatch):
    """Texts that end long before, and long after, the speech of their neighbours; one that says nothing."""
    stop = speech.sampler.generate([requests["image"]], WARM)[0].token_ids[0]
    monkeypatch.setattr(speech.sampler, "stop_ids", (*speech.sampler.stop_ids, stop))
    options = [dataclasses.replace(WARM, max_new_tokens=count, seed=seed) for seed, count in enumerate([3, 40, 17])]
    options.insert(1, WARM)
    rows = [requests[name] for name in ("text", "image", "audio of one block", "film with sound")]
    sounds = [spoken(60, 1), spoken(20, 2), spoken(7, 3), spoken(25, 4)]
    together = speech.generate(rows, options, sounds)
    for one, request, option, sound in zip(together, rows, options, sounds, strict=True):
        assert_equal_answers([one], *two_pass(speech, [request], option, sound))
    assert together[1].speech_reason == "silent" and together[1].token_ids == [stop]
    assert len(together[1].waveform) == 0


def test_events_come_in_order_and_sound_before_the_answer_ends(speech, requests):
    options = dataclasses.replace(WARM, max_new_tokens=60)
    events = list(speech.stream([requests["text"]], options, spoken(limit=100)))
    assert isinstance(events[-1], End) and sum(isinstance(event, End) for event in events) == 1
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    assert [chunk.start for chunk in chunks] == list(np.cumsum([0] + [len(chunk.waveform) for chunk in chunks])[:-1])
    assert sum(len(chunk.waveform) for chunk in chunks) == 480 * len(events[-1].codes)
    # 24 codes are enough for the first sound: it comes with at most 25 tokens of text, and not after 36
    before = events[: events.index(chunks[0])]
    tokens = sum(len(event.token_ids) for event in before if isinstance(event, Event))
    assert 24 <= tokens <= 25
    assert len(chunks) >= len(events[-1].codes) // 12 - 1


@pytest.fixture
def asked(monkeypatch):
    """What the device is asked to do, in order."""
    order = []

    def record(owner, name, word, counts=lambda result: True):
        real = getattr(owner, name)

        def recording(*args, **kwargs):
            result = real(*args, **kwargs)
            order.extend([word] * bool(counts(result)))
            return result

        monkeypatch.setattr(owner, name, recording)

    record(sp, "converse", "steps")
    record(sp, "talk", "steps")
    record(SoundStreams, "dispatch", "sound", counts=lambda sounds: any(sound.count for sound in sounds))
    return order


def test_the_first_sound_waits_for_24_codes_and_no_more(speech, requests, asked):
    """Nor do the two pieces after it wait for more than their 12; then the device always has steps to do."""
    list(speech.stream([requests["text"]], dataclasses.replace(WARM, max_new_tokens=99), spoken(limit=99)))
    start = ["steps", "steps", "sound", "steps", "sound", "steps", "sound"]
    assert asked[:9] == [*start, "steps", "steps"]


def test_a_neighbour_that_ends_at_once_does_not_hold_up_the_first_sound(speech, requests, asked):
    options = dataclasses.replace(WARM, max_new_tokens=60)
    first = None
    for event in speech.stream([requests["text"]] * 2, options, [spoken(limit=80), spoken(limit=3)]):
        if isinstance(event, AudioChunk) and event.row == 0:
            first = first or list(asked)
    assert first.count("steps") <= 3 and "sound" in first


def test_work_for_a_block_of_codes_does_not_grow(speech, requests, monkeypatch):
    """Over 24 s of speech: programs run, pieces of work waiting, bytes held by the decoder of sound, cache size."""
    calls, waiting, held, caches = [], set(), [], set()
    real = sp.talk

    def recording(params, state, *args, **kwargs):
        calls.append(kwargs["block"])
        caches.add(state.cache.length)
        return real(params, state, *args, **kwargs)

    monkeypatch.setattr(sp, "talk", recording)
    take = Answering._take_codes

    def watching(self, *args):
        yield from take(self, *args)
        waiting.add(len(self._queue))
        held.append(self._streams.held_bytes)

    monkeypatch.setattr(Answering, "_take_codes", watching)
    before = compiled_programs_by_name()
    long = spoken(limit=1200, codes_per_token=None, loop_guard=None)
    answer = speech.generate([requests["text"]], dataclasses.replace(WARM, max_new_tokens=20), long)[0]
    blocks = len(answer.codes) // 12
    assert blocks > 50
    assert blocks - 3 <= len(calls) <= blocks + 3 and set(calls) == {12}
    assert max(waiting) <= 4 and len(caches) == 1
    assert max(held) == held[len(held) // 4] == held[len(held) // 2]
    compiled = compiled_programs_by_name()
    assert compiled["talk"] - before["talk"] <= 1 and compiled["converse"] - before["converse"] <= 1


def test_nothing_is_compiled_as_the_answer_grows(speech, requests):
    list(speech.stream([requests["text"]], dataclasses.replace(WARM, max_new_tokens=30), spoken(limit=60)))
    before = compiled_programs_by_name()
    for seed, (tokens, codes) in enumerate([(7, 90), (40, 30), (1, 50), (90, 120)]):
        options = dataclasses.replace(WARM, max_new_tokens=tokens, seed=seed)
        list(speech.stream([requests["text"]], options, spoken(limit=codes, seed=seed)))
    grown = {name: count - before[name] for name, count in compiled_programs_by_name().items() if count > before[name]}
    assert grown in ({}, {"decode": 1})  # for a text that outlives its speech, the first time


def test_an_answer_at_the_limit_of_codes_says_so(speech, requests):
    events = list(speech.stream([requests["text"]], WARM, spoken(limit=17)))
    end = events[-1]
    assert end.speech_reason == "length" and len(end.codes) == 17
    assert sum(len(event.waveform) for event in events if isinstance(event, AudioChunk)) == 480 * 17


def test_codes_are_bounded_by_the_length_of_the_text(speech, requests):
    """100 for the whole, and for each token that is spoken: an answer's last token is not."""
    options = dataclasses.replace(WARM, max_new_tokens=4)
    bounded = spoken(limit=1200, codes_per_token=5, loop_guard=None)
    answer = speech.generate([requests["text"]], options, bounded)[0]
    assert answer.speech_reason == "length" and len(answer.codes) == sp.SLACK + 5 * 3
    replies = [answer.token_ids]
    assert speech.speak([requests["text"]], replies, bounded)[0].codes == answer.codes


def test_a_loop_of_codes_ends(speech, requests):
    """Greedy speech of a random model goes round and round; a neighbour that draws its codes goes on.

    It ends with the code that makes it a loop, wherever blocks begin and end: beside neighbours, alone, in two passes.
    """
    looping = SpeechOptions(codes=SamplingOptions(max_new_tokens=1200), flow=FAST, loop_guard=61, codes_per_token=None)
    batch = [requests["text"], requests["image"]]
    options = [WARM, dataclasses.replace(WARM, max_new_tokens=31)]
    answers = speech.generate(batch, options, [looping, spoken(limit=200)])
    assert answers[0].speech_reason == "loop" and len(answers[0].codes) < 200
    assert is_looping(answers[0].codes, 61) and not is_looping(answers[0].codes[:-1], 61)
    assert len(answers[0].waveform) == 480 * len(answers[0].codes)
    assert_equal_answers(answers[:1], *two_pass(speech, batch[:1], WARM, looping))
    assert speech.generate(batch[:1], WARM, looping)[0].codes == answers[0].codes
    assert answers[1].codes == speech.generate(batch[1:], options[1], spoken(limit=200))[0].codes
    assert len(answers[1].codes) > len(answers[0].codes)


def test_what_counts_as_a_loop():
    assert is_looping([9, 1, 2, 1, 2, 1, 2], 6)
    assert is_looping([4] * 10, 10)
    assert not is_looping([4] * 9, 10)
    assert not is_looping([1, 2, 1, 2, 1, 3], 6)
    assert not is_looping([*range(26)] * 3, 78)  # a cycle longer than half a second is no loop


def test_the_published_decoder_gives_its_sound_at_the_end(speech, requests):
    events = list(speech.stream([requests["text"]], WARM, spoken(limit=30, decoder="full")))
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    assert len(chunks) == 1 and len(chunks[0].waveform) == 480 * len(events[-1].codes)
    expected = speech.synthesise([events[-1].codes], spoken(limit=30, decoder="full"))[0]
    np.testing.assert_array_equal(chunks[0].waveform, expected)
    seconds, timeline = {}, []
    list(speech.stream([requests["text"]], WARM, spoken(limit=30, decoder="full"), seconds=seconds, timeline=timeline))
    assert seconds["dit"] > 0 and seconds["bigvgan"] > 0
    assert [span.amount for span in timeline if span.stage in ("dit", "bigvgan")] == [60, 480 * 30]


def test_stages_and_their_times_are_told(speech, requests):
    seconds, timeline = {"first_sound": 1e9}, []  # of an earlier call
    list(speech.stream([requests["film with sound"]], WARM, spoken(), seconds=seconds, timeline=timeline))
    wanted = {"encode_audio", "encode_vision", "prefill", "first_text", "first_sound", "decode", "dit", "bigvgan"}
    assert wanted <= set(seconds) and all(value > 0 for value in seconds.values())
    assert seconds["first_text"] < seconds["first_sound"] < seconds["answer"]
    assert {span.stage for span in timeline} == {"text", "codes", "dit", "bigvgan"}
    assert all(0 <= span.start <= span.end <= seconds["answer"] for span in timeline)
    codes = [span for span in timeline if span.stage in ("codes", "dit", "bigvgan")]
    assert all(one.end <= two.start for one, two in itertools.pairwise(codes))  # one device does one thing at a time


def test_an_unknown_voice_is_refused_before_anything_runs(speech, requests, monkeypatch):
    monkeypatch.setattr(speech.sampler, "encode", lambda *args: pytest.fail("encoded"))
    with pytest.raises(PromptError, match="'Nobody'.*Ethan, Chelsie"):
        next(iter(speech.stream([requests["text"]], WARM, SpeechOptions(voice="Nobody"))))


@pytest.mark.parametrize(
    "changes", [{"decoder": "half"}, {"codes_per_token": 0}, {"codes_per_token": 1 << 16}, {"loop_guard": 1}]
)
def test_options_out_of_range_are_refused(changes):
    with pytest.raises(PromptError, match=next(iter(changes))):
        SpeechOptions(**changes)


def test_numbers_that_are_not_finite_are_an_error(speech, requests, monkeypatch):
    import jax

    broken = jax.tree.map(lambda leaf: leaf * np.nan, speech.params)
    monkeypatch.setattr(speech, "params", broken)
    with pytest.raises(NumericsError, match="speech"):
        list(speech.stream([requests["text"]], WARM, spoken()))


def test_no_requests_have_no_events(speech):
    assert list(speech.stream([])) == [] and speech.generate([]) == []
