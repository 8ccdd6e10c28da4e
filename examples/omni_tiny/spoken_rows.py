"""Recordings in memory as mel, and the phones that are said in them: changed, several to a row."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32

from examples.omni_tiny.lexicon import labels
from examples.omni_tiny.sentences import DIGITS, normal_words
from input_pipeline.jsonl import JsonLines
from input_pipeline.media_audio import load_audio
from input_pipeline.mel import log_mel
from omni_jax.config import ProcessorConfig
from omni_jax.errors import DataError, OmniError

# Bounds of what is changed: places of mel bins, pace, tilt of the spectrum, height of a floor of noise.
_PLACES, _PACE, _TILT, _FLOOR = (0.87, 1.15), (0.82, 1.2), (-0.15, 0.15), (0.9, 2.0)
_GAP = 25  # frames at most before each recording
_FRAMES_PER_PHONE = 2 / _PACE[0]  # the probe has a place for 20 ms; at the fastest pace a phone needs one
_PHONES_PER_SECOND = 16  # of room in a row


def room_for_phones(frames: int) -> int:
    """Phones that a row of mel frames (10 ms) has room for."""
    return frames * _PHONES_PER_SECOND // 100


@dataclass(frozen=True)
class Rows:
    """mel: float32 [B, G, F, M], blocks of each row. frames: int32 [B, G], real ones. phones: int32 [B, S], 0 for
    padding."""

    mel: Float32[np.ndarray, "B G F M"]
    frames: Int32[np.ndarray, "B G"]
    phones: Int32[np.ndarray, "B S"]


@dataclass(frozen=True)
class Recordings:
    """mel: of all recordings, one after the other. ends: where each ends. phones: of each. shares: how often each is
    drawn; they sum to 1. digest: of the files they were read from."""

    mel: Float16[np.ndarray, "T M"]
    ends: Int32[np.ndarray, "N"]
    phones: Sequence[tuple[int, ...]]
    shares: Float[np.ndarray, "N"]
    digest: str = ""

    @classmethod
    def read(
        cls,
        paths: Sequence[Path],
        processor: ProcessorConfig,
        *,
        frames: int,
        digits: float,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> "Recordings":
        """All recordings of files of transcripts (audio_text.jsonl).

        Args:
            frames: of a row; what is longer, or says more than a row has room for, is left out, as is what is said
                faster than the probe can tell.
            digits: how often one of digits only is drawn, against any other.
            progress: called with stage, done, total.

        Raises:
            DataError: a file or recording is missing, a line is no transcript, a word is not in the lexicon, or
                nothing fits.
        """
        files = [JsonLines(path) for path in paths]
        lines = [(file, index) for file in files for index in range(len(file))]
        mels: list[np.ndarray] = []
        phones: list[tuple[int, ...]] = []
        shares: list[float] = []
        for number, (file, index) in enumerate(lines):
            sound, text = _told(file, index)
            said, mel = _heard(file, index, sound, text, processor, frames)
            if mel is not None and _fits(said, len(mel), frames):
                mels.append(mel.astype(np.float16))
                phones.append(said)
                shares.append(digits if set(normal_words(text)) <= set(DIGITS) else 1.0)
            if progress is not None and number % 500 == 0:
                progress("recordings", number, len(lines))
        if not mels:
            raise DataError(
                f"{', '.join(map(str, paths))}: no recording fits in a row of {frames / 100:g} s. Give more blocks."
            )
        digest = hashlib.sha256("".join(file.digest for file in files).encode()).hexdigest()
        ends = np.cumsum([*map(len, mels)]).astype(np.int32)
        return cls(np.concatenate(mels), ends, phones, np.array(shares) / sum(shares), digest)

    def at(self, step: int, rows: int, blocks: int, block: int, seed: int) -> Rows:
        """Rows of a step: recordings drawn, changed, and put side by side while there is room.

        Args:
            blocks, block: of a row, and frames of a block.
        """
        rng = np.random.default_rng([seed, step])
        room = blocks * block
        mel = np.zeros((rows, room, self.mel.shape[1]), np.float32)
        phones = np.zeros((rows, room_for_phones(room)), np.int32)
        frames = np.zeros((rows, blocks), np.int32)
        drawn = self._drawn(rng, room)
        own, said = next(drawn)
        for row in range(rows):
            used = told = 0
            while used + len(own) <= room and told + len(said) <= phones.shape[1]:
                mel[row, used : used + len(own)] = own
                phones[row, told : told + len(said)] = said
                used, told = used + len(own), told + len(said)
                own, said = next(drawn)
            frames[row] = np.clip(used - block * np.arange(blocks), 0, block)
        return Rows(mel.reshape(rows, blocks, block, -1), frames, phones)

    def _drawn(self, rng: np.random.Generator, room: int) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
        """Recordings, changed, each after a short silence."""
        while True:
            index = int(rng.choice(len(self.ends), p=self.shares))
            own = self.mel[self.ends[index - 1] if index else 0 : self.ends[index]].astype(np.float32)
            gap = min(int(rng.integers(_GAP)), room - len(own))
            own = np.pad(own, ((gap, 0), (0, 0)), constant_values=own.min())
            yield changed(own, rng, most=room), self.phones[index]


def changed(mel: Float32[np.ndarray, "T M"], rng: np.random.Generator, *, most: int) -> Float32[np.ndarray, "U M"]:
    """Another speaker, pace, channel and noise, at most `most` frames of it, in which the same is said.

    The speaker changes by the places of mel bins, which are stretched or pressed together by up to 15 %; after vocal
    tract length perturbation (Jaitly and Hinton 2013), which does so with Hz. Masks of time and frequency: SpecAugment
    (Park et al. 2019, arXiv:1904.08779).
    """
    length, bins = mel.shape
    mel = _read_at(mel.T, np.arange(bins) * rng.uniform(*_PLACES)).T
    mel = _read_at(mel, np.linspace(0, length - 1, max(min(int(length * rng.uniform(*_PACE)), most), 1)))
    mel = mel + np.linspace(-1, 1, bins) * rng.uniform(*_TILT)
    if rng.random() < 0.3:
        mel = np.maximum(mel, mel.max() - rng.uniform(*_FLOOR))
    mean = mel.mean()
    for axis, share, widest in ((1, 0.5, 12), (1, 0.5, 12), (0, 0.3, 8), (0, 0.3, 8)):
        if rng.random() < share:
            width = int(rng.integers(1, widest))
            first = int(rng.integers(max(mel.shape[axis] - width, 0) + 1))
            mel[(slice(None),) * axis + (slice(first, first + width),)] = mean
    return mel.astype(np.float32)


def _read_at(values: Float[np.ndarray, "T M"], places: Float[np.ndarray, "U"]) -> Float[np.ndarray, "U M"]:
    """Between the rows that are next to each place; beyond the last one, the last."""
    places = np.clip(places, 0, len(values) - 1)
    lower = places.astype(int)
    upper, part = np.minimum(lower + 1, len(values) - 1), (places - lower)[:, None]
    return values[lower] * (1 - part) + values[upper] * part


def _fits(said: tuple[int, ...], length: int, frames: int) -> bool:
    """Whether a row has room for a recording, and the recording time for its phones, a blank between equal ones."""
    repeats = sum(one == other for one, other in pairwise(said))
    slow_enough = (len(said) + repeats) * _FRAMES_PER_PHONE <= length
    return slow_enough and length <= frames and len(said) <= room_for_phones(frames)


def _told(file: JsonLines, index: int) -> tuple[Path, str]:
    """Recording and transcript of a line."""
    try:
        _, user, answer = file.value(index)["messages"]
        (sound,) = [part["audio"] for part in user["content"] if part["type"] == "audio"]
        if not isinstance(answer["content"], str):
            raise TypeError("the answer is no text")
        return file.path.parent / sound, answer["content"]
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(
            f"{file.where(index)}: not a recording and its transcript ({error}). Give lines of audio_text.jsonl."
        ) from error


def _heard(
    file: JsonLines, index: int, sound: Path, text: str, processor: ProcessorConfig, frames: int
) -> tuple[tuple[int, ...], Float[np.ndarray, "T M"] | None]:
    """Phones of a line, and its mel [T, M], None where it is longer than a row."""
    try:
        said, wave = labels(text), load_audio(sound)
        if len(wave) > frames * processor.hop_length:
            return said, None
        return said, log_mel(wave, processor, name=sound.name).T
    except OmniError as error:
        raise DataError(f"{file.where(index)}: {error}") from error
