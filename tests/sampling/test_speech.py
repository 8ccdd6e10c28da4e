"""Codes equal those of transformers token for token, waveforms within 1e-3; loops end, and rows do not mix."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from omni_jax.errors import CapacityError, CheckpointError, OmniError, PromptError
from omni_jax.interop import reference
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import CODE_SAMPLING, CodeEvent, Speech, SpeechOptions

WORDS, CODES = 12, 30
GREEDY = SpeechOptions(codes=SamplingOptions(max_new_tokens=CODES, repetition_penalty=1.05))
WARM = SpeechOptions(codes=dataclasses.replace(CODE_SAMPLING, max_new_tokens=CODES))
CASES = ["text", "image", "audio of one block", "film with sound"]


@pytest.fixture(scope="module")
def speech(tiny_checkpoint, sampler):
    return Speech.from_checkpoint(tiny_checkpoint[1], sampler)


@pytest.fixture(scope="module")
def pytorch_model(tiny_checkpoint):
    reference.quiet()
    return transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(
        tiny_checkpoint[0], dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def answered(sampler, conversation):
    """A request and its greedy answer, by name of the conversation."""
    requests = {name: sampler.prepare(conversation[name]) for name in CASES}
    options = SamplingOptions(max_new_tokens=WORDS)
    return {name: (one, sampler.generate([one], options)[0].token_ids) for name, one in requests.items()}


def pytorch_speech(model, sampler, requests, pad_id, monkeypatch, **options):
    """What transformers says: tokens of text, ids of codes, waveforms, and the noise that it drew for each."""
    inputs = reference.thinker_inputs(requests, sampler.config, pad_id=pad_id)
    for name in ("pixel_values", "pixel_values_videos"):  # its Talker does not take them
        if name in inputs:
            inputs[f"thinker_{name}"] = inputs.pop(name)
    drawn, codes = [], []
    draw, talk = torch.randn, model.talker.generate

    def recording_draw(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    def recording_talk(*args, **kwargs):
        codes.append(talk(*args, **kwargs)[:, kwargs["input_ids"].shape[1] :])
        return torch.cat([kwargs["input_ids"], codes[-1]], dim=1)

    model.thinker.rope_deltas = model.talker.rope_deltas = None  # kept on the module between calls
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", recording_draw)
        patch.setattr(model.talker, "generate", recording_talk)
        texts, waveforms = model.generate(
            **inputs,
            thinker_do_sample=False,
            thinker_max_new_tokens=WORDS,
            thinker_eos_token_id=list(sampler.stop_ids),
            thinker_pad_token_id=pad_id,
            talker_do_sample=False,
            talker_max_new_tokens=CODES,
            talker_eos_token_id=[140, 142],
            **options,
        )
    waveforms = waveforms if isinstance(waveforms, list) else [waveforms]
    texts = texts[:, inputs["input_ids"].shape[1] :].tolist()
    noise = [item[0].numpy() for item in drawn]
    return texts, codes[0].tolist(), [waveform.numpy() for waveform in waveforms], noise


def spoken(codes):
    """Codes before the first stop."""
    ends = [place for place, code in enumerate(codes) if code in (140, 142)]
    return codes[: ends[0]] if ends else codes


@pytest.mark.parametrize("names", [*([name] for name in CASES), CASES[:3]], ids=[*CASES, "a batch of 3"])
def test_codes_and_waveform_equal_those_of_transformers(
    names, speech, answered, pytorch_model, sampler, pad_id, monkeypatch
):
    requests, replies = zip(*(answered[name] for name in names))
    texts, codes, waveforms, noise = pytorch_speech(pytorch_model, sampler, requests, pad_id, monkeypatch)
    for ours, theirs in zip(replies, texts):
        assert theirs[: len(ours)] == ours
    utterances = speech.speak(requests, replies, GREEDY, noise=noise)
    for ours, theirs, waveform in zip(utterances, codes, waveforms):
        assert ours.codes == spoken(theirs)
        assert len(set(ours.codes)) > 3  # not a loop that anything would reproduce
        assert ours.waveform.shape == waveform.shape == (480 * len(ours.codes),)
        assert np.abs(ours.waveform - waveform).max() < 1e-3
        assert np.abs(waveform).max() > 0.05
