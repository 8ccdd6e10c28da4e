"""Greedy answers equal those of `transformers`, token for token, on a random float32 model."""

import numpy as np
import pytest

from omni_jax.interop import reference
from omni_jax.sampling.options import SamplingOptions

OPTIONS = SamplingOptions(max_new_tokens=16)
CASES = [
    "text",
    "image",
    "two images",
    "audio shorter than a block",
    "audio of one block",
    "audio of 31 s",
    "silent film",
    "film with sound",
    "all together",
    "several turns",
]


def pytorch_answers(requests, sampler, model, pad_id, options=OPTIONS):
    inputs = reference.thinker_inputs(requests, sampler.config, pad_id=pad_id)
    return reference.generate(model, inputs, options, stop_ids=sampler.stop_ids, pad_id=pad_id)


@pytest.mark.parametrize("name", CASES)
def test_tokens_equal_those_of_transformers(name, conversation, sampler, pytorch_thinker, pad_id):
    request = sampler.prepare(conversation[name])
    ours = sampler.generate([request], OPTIONS)[0].token_ids
    assert ours == pytorch_answers([request], sampler, pytorch_thinker, pad_id)[0]
    assert len(set(ours)) > 3  # not a loop that anything would reproduce


def test_a_batch_of_unlike_requests_equals_transformers(conversation, sampler, pytorch_thinker, pad_id):
    names = ["text", "two images", "audio of one block", "film with sound"]
    requests = [sampler.prepare(conversation[name]) for name in names]
    answers = [answer.token_ids for answer in sampler.generate(requests, OPTIONS)]
    assert answers == pytorch_answers(requests, sampler, pytorch_thinker, pad_id)


def test_the_repetition_penalty_equals_that_of_transformers(conversation, sampler, pytorch_thinker, pad_id):
    options = SamplingOptions(max_new_tokens=48, repetition_penalty=1.7)
    request = sampler.prepare(conversation["image"])
    ours = sampler.generate([request], options)[0].token_ids
    assert ours == pytorch_answers([request], sampler, pytorch_thinker, pad_id, options)[0]
    assert ours != sampler.generate([request], SamplingOptions(max_new_tokens=48))[0].token_ids


def test_the_content_of_media_changes_the_answer(sampler):
    """Guards the cases above: an answer that ignored the media would be equal too. Sizes are the same throughout."""
    rng = np.random.default_rng(0)

    def answer(kind, source):
        message = [{"role": "user", "content": [{"type": kind, kind: source}, {"type": "text", "text": "What?"}]}]
        return sampler.generate([sampler.prepare(message)], OPTIONS)[0].token_ids

    for kind, sources in {
        "image": rng.integers(0, 256, (2, 60, 90, 3)).astype(np.uint8),
        "audio": (rng.normal(0, 0.1, (2, 8000)) * np.linspace([0.1], [1.0], 2)).astype(np.float32),
        "video": [(film, 2.0) for film in rng.integers(0, 256, (2, 4, 60, 90, 3)).astype(np.uint8)],
    }.items():
        assert answer(kind, sources[0]) != answer(kind, sources[1]), kind


def test_chunks_of_any_size_give_the_same_answer(conversation, sampler, tiny_checkpoint):
    from omni_jax.sampling.load import load_sampler

    request = sampler.prepare(conversation["film with sound"])
    other = load_sampler(tiny_checkpoint[1], chunk=256, unrolled=False)  # and the scanned form of the decoder
    assert other.generate([request], OPTIONS)[0].token_ids == sampler.generate([request], OPTIONS)[0].token_ids
