"""Answers for the command line: everything that can be wrong with a prompt shows before the weights are loaded."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """An answer with the time (s) of each stage. `token_ids` ends with the stop token, unless it was cut off."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": self.token_ids, "audio_path": None, "seconds": self.seconds}


class Answerer:
    """A checkpoint that answers conversations. Its weights are loaded when `load` or the first answer needs them."""

    def __init__(self, folder: Path, *, dtype: str | None = None, use_audio_in_video: bool = False):
        """Reads configuration and tokenizer.

        Raises:
            CheckpointError, ConfigError: the folder is not an imported checkpoint, or lacks a file.
        """
        from input_pipeline.tokenizer import Tokenizer
        from omni_jax.config import ProcessorConfig
        from omni_jax.config_json import read_config, read_processor_config

        self.folder = imported_checkpoint(folder)
        self.config = read_config(folder)
        has_processor = (folder / "preprocessor_config.json").is_file()
        self.processor = read_processor_config(folder) if has_processor else ProcessorConfig()
        self.tokenizer = Tokenizer.load(folder)
        self._dtype, self._use_audio_in_video = dtype, use_audio_in_video
        self.load_seconds = 0.0  # until an answer has told it

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

            sampler = load_sampler(self.folder, dtype=self._dtype)
        self.load_seconds = time.perf_counter() - started
        return sampler

    def answer(
        self, messages: Sequence[Message], options: SamplingOptions, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Answers the last message.

        Args:
            on_text: called with each piece of text as it comes.

        Raises:
            MediaError, PromptError, CapacityError: the messages are at fault.
        """
        with console.Progress("reading media"):
            request = self.prepare(messages)
        answer = Answer(prompt_tokens=len(request.token_ids))
        answer.seconds = {_STAGES[name]: value for name, value in request.stage_seconds.items()}
        sampler, stages = self.sampler, {}
        with console.Progress("encoding") as bar:
            for event in sampler.stream([request], options, progress=bar, seconds=stages):
                answer.text += event.text
                answer.token_ids.extend(event.token_ids)
                bar("answering", len(answer.token_ids), options.max_new_tokens)
                if on_text is not None:
                    bar.close()
                    on_text(event.text)
        stages.pop("decode_steps", None)  # a count, not a time
        if self.load_seconds:  # the first answer only: later ones do not wait for it
            answer.seconds["load_checkpoint"] = self.load_seconds
            self.load_seconds = 0.0
        answer.seconds |= stages
        return answer
