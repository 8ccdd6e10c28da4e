"""Rows of speech for `vs_transformers.py`: the Talker's codes, codes to sound, and the first sound of an answer.

The model is the random checkpoint "speech": the 3B model's Talker and the published DiT and BigVGAN, behind the
"bench" Thinker. Where the reference would take more than some ten minutes, both sides solve the flow with fewer
evaluations, and the row's name says how many.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case, Sides

from input_pipeline.request import assemble
from omni_jax.interop import reference_speech
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling.load import load_sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import AS_PUBLISHED, CODES_PER_SECOND, AudioChunk, SpeechOptions

PROMPT_TOKENS, REPLY_TOKENS, CODES = 256, 40, 64
# Seconds of speech, and time points of the solver: 10 are 36 evaluations, 4 are 12, 2 are 4.
SOUNDS = ((2, 10), (10, 4), (30, 2))
ANSWER_SECONDS = 10


class SpeakingModel:
    """Both sides of one checkpoint that speaks, loaded when first asked for."""

    def __init__(self, folder: Callable[[], Path]):
        self._folder = folder
        self.ids = np.random.default_rng(1).integers(0, 900, PROMPT_TOKENS)
        self.reply = np.random.default_rng(2).integers(0, 900, REPLY_TOKENS).tolist()

    @cached_property
    def sampler(self):
        return load_sampler(self._folder() / "imported", stop_ids=())

    @cached_property
    def speech(self) -> Speech:
        return Speech.from_checkpoint(self._folder() / "imported", self.sampler)

    @cached_property
    def reference(self) -> Any:
        return reference_speech.load_model(self._folder() / "published")

    @cached_property
    def speaker(self):
        return self.speech.speakers["Chelsie"]

    @cached_property
    def request(self):
        return assemble(list(self.ids), self.sampler.config)

    def codes(self, seconds: float) -> np.ndarray:
        most = self.sampler.config.token2wav_config.dit_config.num_embeds
        return np.random.default_rng(3).integers(0, most, round(seconds * CODES_PER_SECOND))


def speech_cases(model: SpeakingModel) -> Iterator[Case]:
    """All rows of speech."""
    yield Case(f"Talker decode, {CODES} codes", lambda: talker_sides(model))
    for seconds, points in SOUNDS:
        sound = Sound(model, seconds, FlowOptions(num_steps=points))
        for decoder in ("full", "block"):
            yield Case(f"token2wav {decoder}, {sound.name}", lambda sound=sound, decoder=decoder: sound.sides(decoder))
    yield Case(f"first sound of a {ANSWER_SECONDS} s answer", lambda: first_sound_sides(model))


def talker_sides(model: SpeakingModel) -> Sides:
    """Greedy codes after a prompt and a first code; the reference's is a bare loop of forward passes."""
    speech, talker = model.speech, model.reference.talker
    config = speech.sampler.config.talker_config
    options = replace(AS_PUBLISHED, codes=SamplingOptions(max_new_tokens=CODES))
    width, best = config.embedding_size, [float("inf")]
    text = torch.randn(1, PROMPT_TOKENS + 2, width, generator=torch.Generator().manual_seed(0))
    reply = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(1))

    def ours() -> float:
        seconds: dict[str, float] = {}
        events = list(speech.stream_codes([model.request], [model.reply], options, seconds=seconds))
        assert sum(len(event.codes) for event in events) == CODES, "speech ended early: choose another seed"
        best[0] = min(best[0], seconds["talker_decode"])
        return seconds["talker_decode"]

    def theirs() -> float:
        out = talker.model(inputs_embeds=talker.thinker_to_talker_proj(text), use_cache=True)
        started = time.perf_counter()
        code = talker.codec_head(out.last_hidden_state[:, -1]).argmax(-1)
        for step in range(CODES - 1):
            x = talker.thinker_to_talker_proj(talker.model.embed_tokens(code[:, None]) + reply)
            position_ids = torch.full((3, 1, 1), text.shape[1] + step)
            out = talker.model(
                inputs_embeds=x, position_ids=position_ids, past_key_values=out.past_key_values, use_cache=True
            )
            code = talker.codec_head(out.last_hidden_state[:, -1]).argmax(-1)
        return time.perf_counter() - started

    def details() -> dict[str, Any]:
        return {"real_time_factor": {"talker": best[0] / (CODES / CODES_PER_SECOND)}}

    return Sides(ours, theirs, details=details)


class Sound:
    """Codes of some seconds of speech to a waveform; both our decoders beside one run of the reference."""

    def __init__(self, model: SpeakingModel, seconds: float, options: FlowOptions):
        self.model, self.seconds, self.options = model, seconds, options
        self.name = f"{seconds} s, {options.evaluations} evaluations"

    @cached_property
    def reference(self) -> dict[str, float]:
        """Seconds of each stage."""
        codes, speaker, sound = self.model.codes(self.seconds), self.model.speaker, self.model.reference.token2wav
        started = time.perf_counter()
        mel = sound.code2wav_dit_model.sample(
            torch.tensor(speaker.vector)[None],
            torch.tensor(speaker.ref_mel)[None],
            torch.from_numpy(codes)[None],
            num_steps=self.options.num_steps,
        )
        solved = time.perf_counter()
        waveform = sound.code2wav_bigvgan_model(mel)
        assert len(waveform) == 480 * len(codes)
        return {"dit": solved - started, "bigvgan": time.perf_counter() - solved}

    def sides(self, decoder: str) -> Sides:
        codes, speaker, token2wav = self.model.codes(self.seconds), self.model.speaker, self.model.speech.token2wav
        stages: dict[str, float] = {}

        def ours() -> None:
            stages.clear()
            decode = getattr(token2wav, decoder)
            assert len(decode(codes, speaker, options=self.options, seconds=stages)) == 480 * len(codes)

        def details() -> dict[str, Any]:
            compute = {"dit": stages["dit"] * FlowOptions().evaluations / self.options.evaluations}
            compute["bigvgan"] = stages["bigvgan"]
            return {
                "stages": {"ours": dict(stages), "reference": self.reference},
                "real_time_factor": {stage: spent / self.seconds for stage, spent in compute.items()},
            }

        return Sides(ours, lambda: sum(self.reference.values()), slow=True, details=details)


def first_sound_sides(model: SpeakingModel) -> Sides:
    """From the request to the first samples; the reference, which has none before the last, to all of them."""
    speech, codes = model.speech, ANSWER_SECONDS * CODES_PER_SECOND
    config = model.sampler.config
    spoken = SpeechOptions(codes=SamplingOptions(max_new_tokens=codes), codes_per_token=None, loop_guard=None)
    words, first = SamplingOptions(max_new_tokens=REPLY_TOKENS), {}

    def ours() -> float:
        started, sound = time.perf_counter(), 0
        events = speech.stream([model.request], words, spoken)
        for event in events:
            if isinstance(event, AudioChunk):
                taken = time.perf_counter() - started
                first.setdefault("first_seconds", taken)
                if not sound:
                    first["first_seconds"] = min(first["first_seconds"], taken)
                    first["first_milliseconds_of_sound"] = len(event.waveform) / 24
                sound += len(event.waveform)
                if sound >= 24_000:
                    first["seconds_to_one_second_of_sound"] = taken
                    break
        events.close()  # waits for what is under way, which is not counted
        return first["first_seconds"]

    @cache
    def theirs() -> float:
        started = time.perf_counter()
        out = reference_speech.speak(
            model.reference,
            [model.request],
            config,
            pad_id=0,
            stop_ids=[-1],
            code_stops=[-1],
            max_new_tokens=REPLY_TOKENS,
            max_codes=codes,
            talker_bad_words_ids=[[config.talker_config.tts_codec_end_token_id]],  # its DiT would fail on it
        )
        assert len(out.waveforms[0]) == 480 * codes
        return time.perf_counter() - started

    return Sides(ours, theirs, slow=True, details=lambda: dict(first))
