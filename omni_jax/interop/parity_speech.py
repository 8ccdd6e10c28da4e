"""Parity of speech as a listener gets it: greedy codes and the waveform of whole answers, from prompt to sound."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from omni_jax.interop import reference_speech
from omni_jax.interop.parity_rows import Row, Step, compare, named_axes
from omni_jax.interop.parity_thinker import NEW_TOKENS, token_row
from omni_jax.interop.parity_token2wav import TOLERANCE_FLOW
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import AS_PUBLISHED

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

_NEW_CODES = 24
_CASES = ("text", "image", "audio", "film with sound")


def spoken_rows(subject: "Subject") -> Iterator[Row]:
    """A row of codes and one of sound for some of the prompts: ours from one batch, the reference's each alone.

    In the order of the published model: the whole text, then all codes, then all sound, from the reference's noise.
    """
    if not subject.speaks or not subject.in_memory:
        return
    sampler, config = subject.sampler, subject.config
    speech = Speech(sampler, subject.weights.params, subject.voices)
    chosen = {name: subject.requests[name] for name in _CASES if name in subject.requests}
    theirs = [
        reference_speech.speak(
            subject.reference.speech.whole,
            [request],
            config,
            pad_id=sampler.stop_ids[0],
            stop_ids=sampler.stop_ids,
            max_new_tokens=NEW_TOKENS,
            max_codes=_NEW_CODES,
        )
        for request in chosen.values()
    ]
    talker = config.talker_config
    stops = talker.tts_codec_pad_token_id, talker.tts_codec_end_token_id
    options = replace(AS_PUBLISHED, codes=SamplingOptions(max_new_tokens=_NEW_CODES, repetition_penalty=1.05))
    codes: list[list[int]] = [[] for _ in theirs]
    for event in speech.stream_codes(list(chosen.values()), [spoken.texts[0] for spoken in theirs], options):
        codes[event.row] += event.codes
    # from the reference's codes, which ours should be: so that a row of sound stands for the sound alone
    their_codes = [_until(spoken.codes[0], stops) for spoken in theirs]
    waveforms = speech.synthesise(their_codes, options, noise=[spoken.noise[0] for spoken in theirs])
    for index, name in enumerate(chosen):
        yield token_row(f"greedy codes: {name}", codes[index], their_codes[index], kind="code")
        their_waveform = theirs[index].waveforms[0]
        step = Step(f"waveform of '{name}'", waveforms[index], their_waveform, named_axes("sample"))
        yield compare(f"waveform: {name}", [step], tolerance=TOLERANCE_FLOW)


def _until(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    return next((ids[:place] for place in np.flatnonzero(np.isin(ids, stops))), ids)
