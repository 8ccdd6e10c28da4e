"""How lines are asked: each draws for itself, whatever is asked beside it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from omni_jax.evaluation.answers import Asker
from omni_jax.evaluation.data import read_task
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.task import Task
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech_options import CODE_SAMPLING, SpeechOptions
from tests.evaluation.scored import write_lines

SPOKEN = SimpleNamespace(
    text="", finish_reason="stop", prompt_tokens=1, waveform=None, codes=(), speech_reason="stop", token_ids=()
)


class Recorder:
    """A model that answers nothing, and notes the options of each line: (of text, of speech)."""

    def __init__(self):
        self.asked = {}
        self.processor, self.sampler, self.speech = SimpleNamespace(patch_size=14), self, self
        self.tokenizer = SimpleNamespace(token_id=lambda name: 0, encode=lambda text: [1])

    def prepare(self, messages):
        return SimpleNamespace(vision=(), token_ids=[1], line=messages[-1]["content"])

    def generate(self, requests, options, speech=None):
        for request, *each in zip(requests, options, speech or [None] * len(requests), strict=True):
            self.asked[str(request.line)] = each
        return [SPOKEN] * len(requests)

    def speak(self, requests, replies, speech):
        return self.generate(requests, [None] * len(requests), speech)


@pytest.fixture
def seeds(tmp_path):
    """Seeds of the lines in their order: (of text, of speech)."""
    write_lines(tmp_path / "a.jsonl", [{"reference": f"line {number}"} for number in range(7)])

    def seeds(speak, *, batch=7, first=0, seed=0, **task):
        options = SamplingOptions(temperature=1.0, seed=seed)
        data = read_task(Task("a", "a.jsonl", ask("{reference}"), (), options=options, speak=speak, **task), tmp_path)
        model, speech = Recorder(), SpeechOptions(codes=replace(CODE_SAMPLING, seed=seed))
        list(Asker(model, data, batch, speech).answers(data.items[first:]))
        return [(text and text.seed, speech and speech.codes.seed) for _, (text, speech) in sorted(model.asked.items())]

    return seeds


@pytest.mark.parametrize("speak", [None, "answer", "reference"])
def test_each_line_has_a_seed_of_its_own(seeds, speak):
    whole = seeds(speak)
    for kind, drawn in enumerate((speak != "reference", speak is not None)):
        assert len({pair[kind] for pair in whole}) == (7 if drawn else 1)
    assert all(0 <= seed < 2**31 for pair in whole for seed in pair if seed is not None)
    assert seeds(speak, batch=2) == whole  # however they are batched
    assert seeds(speak, batch=3, first=4) == whole[4:]  # and where a stopped run goes on
    assert not set(seeds(speak, seed=1)) & set(whole)
