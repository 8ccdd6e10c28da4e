"""Answers for the command line: everything that can be wrong with a prompt shows before the weights are loaded."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.sampling.options import SamplingOptions

Message = Mapping[str, Any]

# Steps of the preparation of a prompt and what they are called in "seconds".
_STAGES = {"text": "tokenize", "load": "decode_media", "features": "features", "layout": "positions"}


@dataclass
class Answer:
    """An answer with the time (s) of each stage. `token_ids` ends with the stop token, unless it was cut off.

    Of a spoken answer also codes, waveform (float32, 24 kHz), why its speech ended, and what each stage did when.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    waveform: Any = None
    speech_reason: str | None = None
    timeline: list[Any] = field(default_factory=list)
    audio_path: Path | None = None

    def as_json(self) -> dict[str, Any]:
        path = None if self.audio_path is None else str(self.audio_path)
        return {"text": self.text, "tokens": self.token_ids, "audio_path": path, "seconds": self.seconds}


class Answerer:
    """A checkpoint that answers conversations. Its weights are loaded when `load` or the first answer needs them."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str | None = None,
        weights: str | None = None,
        mesh: str | None = None,
        use_audio_in_video: bool = False,
        speak: bool = False,
        voice: str | None = None,
        voice_reference: Path | None = None,
    ):
        """Reads configuration, tokenizer and, to speak, voices.

        Args:
            weights: "int8" or None, see `sampling.load.load_sampler`.
            mesh: sizes of mesh axes, see `sharding.axes.parse_mesh`.
            voice: whose; None for the checkpoint's default.
            voice_reference: a recording that the voice shall sound like; see `sampling.voices.voice_from_recording`.

        Raises:
            CheckpointError, ConfigError: the folder is not an imported checkpoint, lacks a file, or cannot speak.
            ShardingError: the mesh is none, or not one of the devices here.
            PromptError: an unknown voice.
            MediaError: the reference cannot be used.
        """
        from input_pipeline.tokenizer import Tokenizer
        from omni_jax.config import ProcessorConfig
        from omni_jax.config_json import read_config, read_processor_config

        self.folder = imported_checkpoint(folder)
        self.config = read_config(folder)
        has_processor = (folder / "preprocessor_config.json").is_file()
        self.processor = read_processor_config(folder) if has_processor else ProcessorConfig()
        self.tokenizer = Tokenizer.load(folder)
        self._dtype, self._weights, self._use_audio_in_video = dtype, weights, use_audio_in_video
        self._mesh = None
        if mesh is not None:
            import jax

            from omni_jax.sharding import hosts
            from omni_jax.sharding.axes import parse_mesh
            from omni_jax.sharding.mesh import make_mesh

            sizes = parse_mesh(mesh)
            _, processes = hosts.start()
            # on one host a smaller mesh takes the first devices
            own = jax.devices()[: math.prod(sizes.values())] if processes == 1 else None
            self._mesh = make_mesh(own, **sizes)
        self.load_seconds = 0.0  # until an answer has told it
        self._voices: dict[str, Any] | None = None
        if speak:
            from omni_jax.sampling.voices import choose_speaker, load_speakers

            self._voices = load_speakers(folder, self.config)
            self.voice = choose_speaker(self._voices, voice).name
            if voice_reference is not None:
                self._voices[self.voice] = self._like(self._voices[self.voice], voice_reference)

    @staticmethod
    def _like(base: Any, reference: Path) -> Any:
        from input_pipeline.media import load_audio
        from input_pipeline.voice_mel import RATE
        from omni_jax.sampling.voices import voice_from_recording

        return voice_from_recording(base, load_audio(str(reference), sampling_rate=RATE), name=str(reference))

    def prepare(self, messages: Sequence[Message]) -> Any:
        """Reads the media and makes the request; see `input_pipeline.request.prepare` for what can be wrong."""
        from input_pipeline.packing import BUCKETS
        from input_pipeline.request import prepare

        return prepare(
            messages,
            self.tokenizer,
            self.config,
            self.processor,
            use_audio_in_video=self._use_audio_in_video,
            max_tokens=BUCKETS.cache[-1] - 1,  # the answer needs a place too
        )

    @cached_property
    def sampler(self):
        """The weights on the device."""
        console.setup_jax()
        started = time.perf_counter()
        with console.Progress("loading the checkpoint"):
            from omni_jax.sampling.load import load_sampler

            sampler = load_sampler(self.folder, dtype=self._dtype, mesh=self._mesh, weights=self._weights)
        self.load_seconds = time.perf_counter() - started
        return sampler

    @cached_property
    def speech(self):
        """The speaking half, on the device."""
        sampler, started = self.sampler, time.perf_counter()
        with console.Progress("loading the voice"):
            from omni_jax.sampling.speech import Speech

            speech = Speech.from_checkpoint(self.folder, sampler, self._voices)
        self.load_seconds += time.perf_counter() - started
        return speech

    def load(self) -> None:
        """Loads all that answers will need."""
        _ = self.sampler if self._voices is None else self.speech

    def answer(
        self,
        messages: Sequence[Message],
        options: SamplingOptions,
        on_text: Callable[[str], None] | None = None,
        *,
        spoken: Any = None,
        on_sound: Callable[[Any], None] | None = None,
    ) -> Answer:
        """Answers the last message.

        Args:
            on_text: called with each piece of text as it comes.
            spoken: `SpeechOptions`, for an answer in speech too; the voice is that of this object.
            on_sound: called with each piece of waveform as it comes.

        Raises:
            MediaError, PromptError, CapacityError: the messages are at fault.
        """
        with console.Progress("reading media"):
            request = self.prepare(messages)
        answer = Answer(prompt_tokens=len(request.token_ids))
        answer.seconds = {_STAGES[name]: value for name, value in request.stage_seconds.items()}
        self.load()
        import numpy as np

        from omni_jax.sampling.speech_options import AudioChunk, End

        stages: dict[str, float] = {}
        sound = [np.zeros(0, np.float32)]
        with console.Progress("encoding") as bar:
            common = dict(progress=bar, seconds=stages)
            if spoken is None:
                events = self.sampler.stream([request], options, **common)
            else:
                spoken = replace(spoken, voice=self.voice)
                events = self.speech.stream([request], options, spoken, timeline=answer.timeline, **common)
            for event in events:
                match event:
                    case AudioChunk():
                        sound.append(event.waveform)
                        if on_sound is not None:
                            on_sound(event.waveform)
                    case End():
                        answer.codes, answer.speech_reason = list(event.codes), event.speech_reason
                    case _:
                        answer.text += event.text
                        answer.token_ids.extend(event.token_ids)
                        bar("answering", len(answer.token_ids), options.max_new_tokens)
                        if on_text is not None:
                            bar.close()
                            on_text(event.text)
        if spoken is not None:
            answer.waveform = np.concatenate(sound)
        stages.pop("decode_steps", None)  # a count, not a time
        if self.load_seconds:  # the first answer only: later ones do not wait for it
            answer.seconds["load_checkpoint"] = self.load_seconds
            self.load_seconds = 0.0
        answer.seconds |= stages
        return answer
