"""What the stages of sound make of a recording: a line of a JSON lines file (`training/run_clips.py`) becomes a row.

All that can be wrong with a recording is found here, in the process that reads it, features included.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipeline import speech_batch
from input_pipeline.augment import augment, random_speaker
from input_pipeline.clip_files import REFERENCE_FRAMES, codes_of, load_sound, text_of, voice_of
from input_pipeline.speech_batch import (
    BLOCK_FRAMES,
    CODES_PER_SECOND,
    UTF8_LABELS,
    CodedSpeech,
    SoundedMel,
    TranscribedSpeech,
    VoicedCodes,
    utf8_labels,
)
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import ConfigError, DataError

Line = Mapping[str, Any]


class ClipKind(Protocol):
    """Rows of one stage. It is pickled into worker processes."""

    def check(self, line: Line) -> None:
        """What can be told without opening a file. Raises DataError."""
        ...

    def read(self, line: Line, folder: Path, rng: np.random.Generator | None) -> Any:
        """One row.

        Args:
            folder: where the line's paths start from.
            rng: what is left to chance; None leaves nothing to it: the sound as it is, from its beginning.

        Raises:
            OmniError: it cannot be used; DataError of the kind "too long" where there is no room for it.
        """
        ...

    def empty(self) -> Any:
        """A row without a recording, which does not count."""
        ...


class CodedClips:
    """Rows of `CodedSpeech`."""

    def __init__(self, model: OmniConfig, processor: ProcessorConfig, *, seconds: float, augment: bool = False):
        """
        Args:
            seconds: what a row has room for.
            augment: change the sound by noise, rooms and channels.

        Raises:
            ConfigError: rows longer than the processor hears at once.
        """
        self.seconds, self.augment, self.processor = seconds, augment, processor
        self.blocks = _blocks(seconds, processor)
        tokenizer = model.speech_tokenizer_config
        self.num_codes = None if tokenizer is None else tokenizer.num_codes

    def check(self, line: Line) -> None:
        codes_of(line, self.num_codes)

    def read(self, line: Line, folder: Path, rng: np.random.Generator | None) -> CodedSpeech:
        codes = codes_of(line, self.num_codes)
        sound = load_sound(line, folder, 16_000, self.seconds)
        if self.augment and rng is not None:
            sound = augment(sound, 16_000, rng)
        return speech_batch.coded_row(sound, codes, self.blocks, self.processor)

    def empty(self) -> CodedSpeech:
        return speech_batch.empty_coded_row(self.blocks, self.processor)


class TranscribedClips:
    """Rows of `TranscribedSpeech`; the voice to hear is another one where recordings are augmented."""

    def __init__(self, model: OmniConfig, processor: ProcessorConfig, *, seconds: float, augment: bool = False):
        """See `CodedClips`.

        Raises:
            ConfigError: too few labels; rows longer than the processor hears at once.
        """
        self.seconds, self.augment, self.processor = seconds, augment, processor
        self.blocks, self.labels = _blocks(seconds, processor), self.most_labels(seconds)
        tokenizer = model.speech_tokenizer_config
        if tokenizer is not None and tokenizer.text_vocab_size < UTF8_LABELS:
            raise ConfigError(
                f"The speech tokenizer has {tokenizer.text_vocab_size} labels of text; bytes need {UTF8_LABELS}."
            )

    @staticmethod
    def most_labels(seconds: float) -> int:
        """Bytes of text in a row; there are 50 codes a second to say them with."""
        return int(25 * seconds)

    def check(self, line: Line) -> None:
        text_of(line)

    def read(self, line: Line, folder: Path, rng: np.random.Generator | None) -> TranscribedSpeech:
        ids = utf8_labels(text_of(line))
        if len(ids) > self.labels:
            raise DataError(f"a text of {len(ids)} bytes (at most {self.labels}).", "too long")
        heard = sound = load_sound(line, folder, 16_000, self.seconds)
        if self.augment and rng is not None:
            heard = augment(random_speaker(sound, 16_000, rng), 16_000, rng)
        return speech_batch.transcribed_row(heard, sound, ids, self.blocks, self.labels, self.processor)

    def empty(self) -> TranscribedSpeech:
        return speech_batch.empty_transcribed_row(self.blocks, self.labels, self.processor)


class VoicedClips:
    """Rows of `VoicedCodes`. Their sound is never changed: it is the target."""

    reference_frames = REFERENCE_FRAMES

    def __init__(self, model: OmniConfig, processor: ProcessorConfig, *, seconds: float, augment: bool = False):
        """`seconds`: what a row has room for."""
        self.seconds, self.codes = seconds, int(CODES_PER_SECOND * seconds)
        dit = model.token2wav_config.dit_config
        self.num_codes, self.width = dit.num_embeds + 1, dit.enc_emb_dim  # its table, as `dit.check_codes`

    def check(self, line: Line) -> None:
        codes_of(line, self.num_codes)

    def read(self, line: Line, folder: Path, rng: np.random.Generator | None) -> VoicedCodes:
        codes = codes_of(line, self.num_codes)
        sound = load_sound(line, folder, 24_000, self.seconds)
        return speech_batch.voiced_row(codes, sound, *voice_of(line, folder, self.width), self.codes)

    def empty(self) -> VoicedCodes:
        return speech_batch.empty_voiced_row(self.codes, self.reference_frames, self.width)


class SoundClips:
    """Rows of `SoundedMel`; of long recordings a random piece. Their sound is never changed: it is the target."""

    def __init__(self, model: OmniConfig, processor: ProcessorConfig, *, seconds: float, augment: bool = False):
        """`seconds`: of a piece."""
        self.frames = int(100 * seconds)

    def check(self, line: Line) -> None:
        pass

    def read(self, line: Line, folder: Path, rng: np.random.Generator | None) -> SoundedMel:
        sound, most = load_sound(line, folder, 24_000), 240 * self.frames
        spare = max(len(sound) - most, 0)
        first = 0 if rng is None else int(rng.integers(spare + 1))
        return speech_batch.sounded_row(sound[first : first + most], self.frames)

    def empty(self) -> SoundedMel:
        return speech_batch.empty_sounded_row(self.frames)


def _blocks(seconds: float, processor: ProcessorConfig) -> int:
    if seconds > processor.max_audio_seconds:
        raise ConfigError(
            f"data.clip_seconds = {seconds:g} is above the {processor.max_audio_seconds} s that the audio processor "
            "hears at once. Lower it."
        )
    return -(-2 * int(CODES_PER_SECOND * seconds) // BLOCK_FRAMES)
