"""Sampling is reproducible, streams what it would return, ends where it should; compilations are bounded."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.packing import BUCKETS
from input_pipeline.request import assemble, prepare
from omni_jax.errors import CapacityError, NumericsError, PromptError
from omni_jax.sampling import programs
from omni_jax.sampling.compiled import compiled_programs_by_name
from omni_jax.sampling.generate import Sampler
from omni_jax.sampling.options import SamplingOptions

WARM = SamplingOptions(max_new_tokens=12, temperature=1.0, top_k=50, top_p=0.95, seed=7)


@pytest.fixture(scope="module")
def requests(sampler, conversation):
    names = ["text", "image", "audio shorter than a block", "audio of one block"]
    return [sampler.prepare(conversation[name]) for name in names]


def test_the_same_seed_gives_the_same_tokens_whatever_the_batch(sampler, requests):
    options = [dataclasses.replace(WARM, seed=seed) for seed in range(4)]
    together = [answer.token_ids for answer in sampler.generate(requests, options)]
    alone = [sampler.generate([one], own)[0].token_ids for one, own in zip(requests, options)]
    turned = [answer.token_ids for answer in sampler.generate(requests[::-1], options[::-1])]
    assert together == alone == turned[::-1]


def test_another_seed_gives_other_tokens(sampler, requests):
    answers = {tuple(sampler.generate(requests[:1], dataclasses.replace(WARM, seed=s))[0].token_ids) for s in range(4)}
    assert len(answers) == 4


def test_a_stream_gives_what_generate_returns(sampler, requests):
    whole = sampler.generate(requests, WARM)
    texts, tokens, ends = [""] * 4, [[] for _ in range(4)], [None] * 4
    for event in sampler.stream(requests, WARM):
        assert ends[event.row] is None  # nothing comes after the end
        texts[event.row] += event.text
        tokens[event.row] += event.token_ids
        ends[event.row] = event.finish_reason
    assert texts == [answer.text for answer in whole]
    assert tokens == [answer.token_ids for answer in whole]
    assert ends == [answer.finish_reason for answer in whole]


def test_text_arrives_while_the_answer_is_going_on(sampler, requests):
    events = list(sampler.stream(requests[:1], SamplingOptions(max_new_tokens=100)))
    assert len(events) >= 4
    assert events[0].finish_reason is None


def test_an_answer_ends_at_a_stop_token_and_the_text_does_not_show_it(sampler, requests, tiny_checkpoint):
    free = sampler.generate(requests[:1], SamplingOptions(max_new_tokens=8))[0]
    stop = free.token_ids[3]
    stopping = Sampler.from_checkpoint(tiny_checkpoint[1], chunk=64, stop_ids=[stop])
    ended = stopping.generate(requests[:1], SamplingOptions(max_new_tokens=8))[0]
    assert ended.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert ended.finish_reason == "stop" and free.finish_reason == "length"
    assert ended.text == sampler.tokenizer.decode(ended.token_ids[:-1])


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 37])
def test_the_limit_is_exact(sampler, requests, limit):
    answers = sampler.generate(
        requests, [SamplingOptions(max_new_tokens=limit)] * 3 + [SamplingOptions(max_new_tokens=3)]
    )
    assert [len(answer.token_ids) for answer in answers] == [limit] * 3 + [3]


def test_an_answer_that_would_outgrow_the_largest_cache_ends_there(sampler, monkeypatch):
    monkeypatch.setattr("omni_jax.sampling.generate.BUCKETS", dataclasses.replace(BUCKETS, cache=(1024,)))
    request = assemble([1 + place % 900 for place in range(1016)], sampler.config)
    answer = sampler.generate([request], SamplingOptions(max_new_tokens=100))[0]
    assert len(answer.token_ids) == 8 and answer.finish_reason == "length"


def test_a_prompt_longer_than_the_cache_is_refused(sampler, monkeypatch):
    monkeypatch.setattr("omni_jax.sampling.generate.BUCKETS", dataclasses.replace(BUCKETS, cache=(64, 128)))
    with pytest.raises(CapacityError, match="130"):
        sampler.generate([assemble(list(range(130)), sampler.config)])


def test_a_prompt_longer_than_the_model_is_refused_with_the_count(sampler):
    words = [{"role": "user", "content": "word " * 40000}]
    with pytest.raises(CapacityError, match="32768"):
        prepare(words, sampler.tokenizer, sampler.config, sampler.processor)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_logits_that_are_not_finite_are_an_error_and_not_an_answer(sampler, requests, tiny_checkpoint, when):
    broken = Sampler.from_checkpoint(tiny_checkpoint[1], chunk=64)
    thinker = broken.params["thinker"]
    if when == "at once":
        thinker["final_norm"]["scale"] = thinker["final_norm"]["scale"] * np.nan
    else:  # the first token itself has a NaN embedding
        first = sampler.generate(requests[:1], SamplingOptions(max_new_tokens=1))[0].token_ids[0]
        thinker["embed"]["embedding"] = thinker["embed"]["embedding"].at[first].set(np.nan)
    with pytest.raises(NumericsError, match="Request 0.*not finite"):
        broken.generate(requests[:1], SamplingOptions(max_new_tokens=8))


def test_no_requests_give_no_answers(sampler):
    assert sampler.generate([]) == []


def test_options_must_match_requests_in_number(sampler, requests):
    with pytest.raises(PromptError, match="2 sets of options"):
        sampler.generate(requests, [WARM, WARM])


def test_fifty_unlike_requests_compile_a_bounded_number_of_programs(sampler, sizes_in_use):
    """The bound that the documentation states: one request at a time, up to 1,024 tokens of prompt and answer.

    There are 3 cache lengths (256, 512, 1024), each with one prefill, one decode and one empty cache; an encoder
    program for each size of its input met; a placement for each size of encoder output; and two more.
    """
    for program in programs.PROGRAMS:
        program.clear_cache()
    rng = np.random.default_rng(0)
    for number in range(50):
        content = [{"type": "text", "text": "word " * int(rng.integers(1, 200))}]
        if number % 3 == 1:
            height, width = rng.integers(60, 300, 2)
            content.append({"type": "image", "image": rng.integers(0, 255, (height, width, 3)).astype(np.uint8)})
        if number % 10 == 5:
            content = [{"type": "video", "video": (rng.integers(0, 255, (4, 50, 60, 3)).astype(np.uint8), 2.0)}]
        if number % 4 == 2:
            samples = rng.normal(size=int(rng.integers(2000, 16000 * 7))) * 0.1
            content.append({"type": "audio", "audio": (samples.astype(np.float32), 16000)})
        request = sampler.prepare([{"role": "user", "content": content}])
        assert len(request.token_ids) <= 1000
        sampler.generate([request], SamplingOptions(max_new_tokens=int(rng.integers(1, 20))))
    compiled = compiled_programs_by_name()
    bound = dict(encode_audio=4, encode_vision=10, embed=1, place=14, new_prefill=3, prefill=3, first_token=1, decode=3)
    beyond = {name: compiled[name] for name in bound if compiled[name] > bound[name]}
    assert not beyond, compiled
