"""Scenes of the demo through the model: offline first, then streamed with the clock running, and both compared.

    side by side   programs of text and speech  |  programs of sound; tokens and codes of all scenes, offline
    one by one     each scene streamed: text and sound as they come
    at the end     sound of the offline codes, compared with what was streamed

All programs are ready when the clock starts, so latencies are those of a model that is in use.

What the comparison proves. Tokens and codes come about in other programs offline: the text is decoded by itself, then
the Talker hears the finished text, which the Thinker has read in chunks. That they are the same is a finding, which
needs float32: in bfloat16 the two ways round differently, and codes are drawn at random from what they give. Sound is
made of windows, each a function of its codes, voice, seed and place. On a CPU both ways compute them one a call with
the same programs, so that of equal codes it can only be shown that the stream has made, ordered and ended them rightly,
whenever their codes came; elsewhere the offline windows go up to eight a call, which the stream's seldom do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.packing import pack_batch
from input_pipeline.request import Request
from omni_jax.cli.demo_scenes import Scene
from omni_jax.cli.sound_file import SAMPLE_RATE
from omni_jax.interop.restore import load_checkpoint_info
from omni_jax.sampling.generate import Event
from omni_jax.sampling.load import load_sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import AudioChunk, End, Span, SpeechOptions
from omni_jax.sampling.voices import choose_speaker

SAME = 1e-5  # of samples in [-1, 1]: windows that run as a batch may differ by float32's last bits
STAGES = ("encode_audio", "encode_vision", "prefill", "decode", "dit", "bigvgan")
# Prompt tokens of a prefill call. Prompts of the demo take one each, and their caches have one size with the answer.
CHUNK = 128
LARGE = 1_000_000_000  # parameters: beyond it float32 costs too much memory and time on a GPU or TPU


Offline = tuple[list[int], list[int]]  # tokens and codes of an answer


@dataclass(frozen=True)
class Chunk:
    """Something that was handed out, `seconds` after the question: a piece of text, or `samples` of sound."""

    seconds: float
    text: str = ""
    samples: int = 0


@dataclass
class Played:
    """A streamed answer.

    waveform: float32 [W] in [-1, 1], 24 kHz. chunks: what was handed out, in order.
    seconds: of stages; all times count from the question, that is from before its media are read.
    timeline: what the device was seen to do.
    """

    scene: Scene
    voice: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    speech_reason: str = ""
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    chunks: list[Chunk] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    timeline: list[Span] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return self.scene.is_right(self.text)

    @property
    def sound_seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE

    @property
    def first_text(self) -> float | None:
        return next((chunk.seconds for chunk in self.chunks if chunk.text), None)

    @property
    def first_sound(self) -> float | None:
        return next((chunk.seconds for chunk in self.chunks if chunk.samples), None)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds from the question to the last sample for each second of sound: below 1 is faster than it is heard."""
        return self.seconds["answer"] / self.sound_seconds if len(self.waveform) else None

    @property
    def smooth_from(self) -> float | None:
        """Whoever begins to play after so many seconds hears no pause."""
        heard, starts = 0, []
        for chunk in self.chunks:
            if chunk.samples:
                starts.append(chunk.seconds - heard / SAMPLE_RATE)
                heard += chunk.samples
        return max(starts, default=None)


@dataclass(frozen=True)
class Comparison:
    """How a streamed answer differs from the offline one; `largest`: of samples, where there are as many."""

    tokens: bool
    codes: bool
    largest: float

    @property
    def same(self) -> bool:
        return self.tokens and self.codes and self.largest <= SAME


@contextmanager
def exact_products(wanted: bool = True) -> Iterator[None]:
    """Products of float32 matrices are float32, which GPUs and TPUs round more coarsely by default.

    In all threads, where `jax.default_matmul_precision` would be that of one.
    """
    name = "jax_default_matmul_precision"
    before = getattr(jax.config, name)
    if wanted and jax.default_backend() != "cpu":
        jax.config.update(name, "highest")
    try:
        yield
    finally:
        jax.config.update(name, before)


class Player:
    """A checkpoint that plays scenes, in float32 unless it is large. Run it under `exact_products(player.exact)`.

    Errors of its folder are those of `load_sampler` and `Speech.from_checkpoint`.
    """

    def __init__(self, folder: Path, text: SamplingOptions, speech: SpeechOptions):
        large = load_checkpoint_info(folder).num_parameters > LARGE
        self.sampler = load_sampler(folder, dtype=None if large else jnp.float32, chunk=CHUNK)
        self.speech = Speech.from_checkpoint(folder, self.sampler)
        self._text, self._speech = text, speech

    @property
    def exact(self) -> bool:
        """Whether streamed and offline answers must be the same: in bfloat16 they may differ."""
        return self.sampler.dtype == jnp.float32

    @property
    def about(self) -> str:
        """The size of the model: "24.5 M parameters, float32"."""
        sound = self.speech.token2wav
        parts = self.sampler.params, self.speech.params, sound.dit, sound.bigvgan
        count = sum(leaf.size for leaf in jax.tree.leaves(parts))
        return f"{count / 1e6:.1f} M parameters, {self.sampler.dtype.name}"

    def voice(self, scene: Scene) -> str:
        """The scene's, if this checkpoint has it, or the default one."""
        known = scene.voice if scene.voice in self.speech.speakers else None
        return choose_speaker(self.speech.speakers, known).name

    def _options(self, scene: Scene) -> SpeechOptions:
        return replace(self._speech, voice=self.voice(scene))

    def warm_up(self, scenes: Sequence[Scene], report: Callable[[str], None] = lambda stage: None) -> list[Offline]:
        """Compiles what the scenes need, on two threads: one has the sound and the text by itself, one the rest.

        Returns:
            Of each scene the offline answer, but for its sound.
        """
        requests = [self.sampler.prepare(scene.messages) for scene in scenes]
        with ThreadPoolExecutor(1) as aside:
            sound = aside.submit(self._warm_up_sound, scenes)
            report("compiling: encoders and sound")
            for request in requests:
                self.sampler.encode(pack_batch([request], self.sampler.config, chunk=CHUNK))
            text = aside.submit(lambda: [self._written(request) for request in requests])
            report("compiling: text and speech")
            for scene, request in zip(scenes, requests):
                self._begin(scene, request, Event)
            report("compiling: offline text and sound")
            tokens = text.result()
            codes = [self._said(*each) for each in zip(scenes, requests, tokens)]
            sound.result()
        for scene, request in zip(scenes, requests):
            self._begin(scene, request, AudioChunk)
        return list(zip(tokens, codes))

    def _warm_up_sound(self, scenes: Sequence[Scene]) -> None:
        """Three blocks of codes: the windows of a beginning, of the middle and of an end."""
        token2wav = self.speech.token2wav
        for name in dict.fromkeys(self.voice(scene) for scene in scenes):
            speaker = choose_speaker(self.speech.speakers, name)
            token2wav.voice(speaker)  # is kept
        codes = np.zeros(3 * token2wav.codes_per_block, np.int32)
        token2wav.block(codes, speaker, options=self._speech.flow, batched=False)

    def _written(self, request: Request) -> list[int]:
        """The offline text: tokens."""
        (answer,) = self.sampler.generate([request], self._text)
        return answer.token_ids

    def _said(self, scene: Scene, request: Request, tokens: list[int]) -> list[int]:
        """The offline codes of a finished text."""
        events = self.speech.stream_codes([request], [tokens], self._options(scene))
        return [code for event in events for code in event.codes]

    def _begin(self, scene: Scene, request: Request, until: type) -> None:
        """Streams an answer as far as the first event of a kind, so that all programs of the way to it are there."""
        stream = self.speech.stream([request], self._text, self._options(scene))
        any(isinstance(event, until) for event in stream)
        stream.close()

    def play(self, scene: Scene, on_text: Callable[[str], None] = lambda text: None) -> Played:
        """Streams the answer. `on_text` gets each piece of text as it comes."""
        played, sound = Played(scene, self.voice(scene)), [np.zeros(0, np.float32)]
        started, stages = time.perf_counter(), {}

        def since() -> float:
            return time.perf_counter() - started

        request = self.sampler.prepare(scene.messages)
        reading = since()
        events = self.speech.stream(
            [request], self._text, self._options(scene), seconds=stages, timeline=played.timeline
        )
        for event in events:
            match event:
                case Event():
                    played.text += event.text
                    if event.text:
                        played.chunks.append(Chunk(since(), text=event.text))
                        on_text(event.text)
                case AudioChunk():
                    played.chunks.append(Chunk(since(), samples=len(event.waveform)))
                    sound.append(event.waveform)
                case End():
                    played.seconds["answer"] = since()
                    played.token_ids, played.codes = list(event.token_ids), list(event.codes)
                    played.speech_reason = event.speech_reason
        played.waveform = np.concatenate(sound)
        stages = {name: stages[name] for name in STAGES if name in stages}
        played.seconds = {"read": reading, **stages, **played.seconds}
        # from here on all times count from the question
        played.timeline = [replace(s, start=s.start + reading, end=s.end + reading) for s in played.timeline]
        return played

    def compare(self, shown: Sequence[Played], offline: Sequence[Offline]) -> list[Comparison]:
        """Makes the sound of the offline answers, and looks how they differ from what was streamed."""
        with ThreadPoolExecutor(2) as pool:  # no clock is running any more
            return list(pool.map(self._compare, shown, offline))

    def _compare(self, played: Played, offline: Offline) -> Comparison:
        tokens, codes = offline
        (sound,) = self.speech.synthesise([codes], self._options(played.scene))
        same_length = len(sound) == len(played.waveform)
        largest = float(np.abs(sound - played.waveform).max(initial=0)) if same_length else float("inf")
        return Comparison(tokens == played.token_ids, codes == played.codes, largest)
