"""Recordings for the stages that train on sound alone: speech tokenizer, Token2Wav, vocoder.

A source is a JSON lines file, one recording a line, paths from its folder:

    {"audio": "a.wav", "codes": [5, 17, …]}                                     inversion: sound and its codes
    {"audio": "a.wav", "text": "What is said."}                                 scratch
    {"audio": "a.wav", "codes": […], "reference": "b.wav", "speaker": "v.npy"}  Token2Wav: another recording of the
                                                                                voice, or its mel (.npy), and the
                                                                                voice's vector
    {"audio": "a.wav"}                                                          vocoder

The order is a new permutation in each epoch, and chance is drawn for each row by its number: a run that is resumed
goes on with the same recordings, changed in the same way. Held-out recordings come in the order of their files, and as
they are. A recording that cannot be used, or that is longer than a row, leaves its row empty.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from input_pipeline.clip_files import codes_of, voice_of
from input_pipeline.clip_kinds import ClipKind, CodedClips, SoundClips, TranscribedClips, VoicedClips
from input_pipeline.clips import Clips
from input_pipeline.jsonl import JsonLines
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.training.run_config import RunConfig, SourceConfig, TfdsConfig

__all__ = ["CodedClips", "OpenClips", "SoundClips", "TranscribedClips", "VoicedClips", "codes_of", "voice_of"]


class OpenClips:
    """An `OpenData` of `run.py` for recordings."""

    def __init__(self, config: RunConfig, model: OmniConfig, processor: ProcessorConfig, kind: Callable[..., ClipKind]):
        """
        Args:
            kind: of `input_pipeline/clip_kinds.py`.

        Raises:
            ConfigError: the data's settings do not fit the model.
        """
        data = self._data = config.data
        self._kind = kind(model, processor, seconds=data.clip_seconds, augment=data.augment)

    def __call__(self, sources: tuple[SourceConfig | TfdsConfig, ...], rows: Any, *, held_out: bool = False) -> Clips:
        """See `OpenData`.

        Raises:
            ConfigError: no sources, or one that is no JSON lines file.
            DataError: a file is missing or empty, or too many of its first lines cannot be used.
        """
        if not sources or any(isinstance(source, TfdsConfig) or source.weight is not None for source in sources):
            raise ConfigError("This stage takes one or more JSON lines files of recordings, without weights.")
        for source in sources:
            if not Path(source.path).is_file():
                raise DataError(f"{source.path} does not exist. Give a JSON lines file of recordings.", "missing media")
        return Clips(
            [JsonLines(source.path) for source in sources],
            self._kind,
            rows=rows.total,
            own=rows.own,
            accumulate=rows.batches,
            seed=self._data.seed,
            epochs=1 if held_out else self._data.epochs,
            in_order=held_out,
            workers=0 if held_out else self._data.workers,
            max_corrupt_share=self._data.corrupt_share,
        )
