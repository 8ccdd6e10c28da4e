"""What a caller may choose about speech, and what comes back."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from omni_jax.errors import PromptError
from omni_jax.models.dit import DEFAULT_OPTIONS
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling.options import SamplingOptions

CODES_PER_SECOND = 50
# The published settings of the Talker; 4096 codes are 82 s.
CODE_SAMPLING = SamplingOptions(max_new_tokens=4096, temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
_LARGEST_PACE = 1 << 15


@dataclass(frozen=True)
class SpeechOptions:
    """What a caller may choose about the speech of one request.

    voice: a name; None for the checkpoint's default.
    codes: how codes are drawn; its max_new_tokens is the limit on codes, its seed that of the noise too.
    flow: how the DiT's flow is solved.
    decoder: "block" solves it for a block of 12 codes at a time, streamed or not, with the same result; "full" for the
        whole utterance at once, as the published model does: no sound before the last code.
    codes_per_token: most codes for a token of text (75 are 1.5 s), beside 100 for the whole; None for no such bound.
    loop_guard: speech ends once this many codes (150 are 3 s) were one short pattern again and again; None for never.

    Raises:
        PromptError: a value out of range, with the range.
    """

    voice: str | None = None
    codes: SamplingOptions = CODE_SAMPLING
    flow: FlowOptions = DEFAULT_OPTIONS
    decoder: Literal["block", "full"] = "block"
    codes_per_token: int | None = 75
    loop_guard: int | None = 150

    def __post_init__(self) -> None:
        if self.decoder not in ("block", "full"):
            raise PromptError(f"decoder = {self.decoder!r} is unknown. Give block or full.")
        if self.codes_per_token is not None and not 1 <= self.codes_per_token <= _LARGEST_PACE:
            raise PromptError(
                f"codes_per_token = {self.codes_per_token!r} is out of range. Give 1 to {_LARGEST_PACE}, or None."
            )
        if self.loop_guard is not None and self.loop_guard < 2:
            raise PromptError(f"loop_guard = {self.loop_guard!r} is out of range. Give 2 codes or more, or None.")


SPEECH = SpeechOptions()
# Everything off that the published model does not have: what its codes and waveforms can be compared with.
AS_PUBLISHED = SpeechOptions(decoder="full", codes_per_token=None, loop_guard=None)


@dataclass(frozen=True)
class CodeEvent:
    """New codes of one request, or the end of its speech.

    finish_reason, at the end: "stop"; "length" at a limit on codes; "loop"; or "silent" for a reply without words.
    """

    row: int
    codes: tuple[int, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """A piece of one request's sound. Pieces follow each other without gap or overlap.

    waveform: float32 [W] in [-1, 1], 24 kHz, on the host; start: its first sample's place in the whole.
    """

    row: int
    waveform: np.ndarray
    start: int


@dataclass(frozen=True)
class End:
    """The last event of one request.

    finish_reason: of the text, "stop" or "length". speech_reason: as in `CodeEvent`, or "none" where nobody was to
        speak. In a live session both may be "interrupted".
    """

    row: int
    finish_reason: str
    speech_reason: str
    token_ids: tuple[int, ...]
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """What one stage was seen to do: from `start` to `end`, in seconds from the call."""

    stage: str  # "text", "codes", "dit", "bigvgan"
    start: float
    end: float
    amount: int = 0  # tokens, codes, mel frames or samples


@dataclass
class Utterance:
    """Speech of one reply. `waveform`: float32 [480 · codes] in [-1, 1] at 24 kHz, empty for a silent reply."""

    codes: list[int]
    finish_reason: str
    waveform: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class SpokenAnswer:
    """A finished answer in text and speech; see `Generation` and `Utterance` for the fields."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    codes: list[int]
    speech_reason: str
    waveform: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    timeline: list[Span] = field(default_factory=list)
