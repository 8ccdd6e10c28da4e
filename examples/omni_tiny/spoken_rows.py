"""Recordings in memory as mel, and the phones that are said in them: changed, several to a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32

from examples.omni_tiny.sentences import DIGITS, normal_words
from examples.omni_tiny.voices import phonemes
from input_pipeline.jsonl import JsonLines
from input_pipeline.media_audio import load_audio
from input_pipeline.mel import log_mel
from omni_jax.config import ProcessorConfig
from omni_jax.errors import DataError

# Of American English, as hibari and Kokoro write them. Their marks of stress and length are left out.
PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹɾʃʊʌʒʤʔʧθᵊᵻ"
_MARKS = "ˈˌː .,"
PHONES_PER_SECOND = 16  # of room in a row
# Bounds of what is changed: length of the vocal tract, pace, tilt of the spectrum, height of a floor of noise.
_TRACT, _PACE, _TILT, _FLOOR = (0.87, 1.15), (0.82, 1.2), (-0.15, 0.15), (0.9, 2.0)
_GAP = 25  # frames at most before each recording


def labels(text: str) -> tuple[int, ...]:
    """The phones of a text: numbers of `PHONES`, from 1.

    Raises:
        DataError: one that is not among them.
    """
    return tuple(label for word in normal_words(text) for label in _of_word(word))


@cache
def _of_word(word: str) -> tuple[int, ...]:
    said = [phone for phone in phonemes(False)(word) if phone not in _MARKS]
    unknown = sorted(set(said) - set(PHONES))
    if unknown or not said:
        raise DataError(f"{word!r} is said {''.join(said)!r}, of which {unknown} are no phones of ours. Leave it out.")
    return tuple(PHONES.index(phone) + 1 for phone in said)


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
    drawn; they sum to 1."""

    mel: Float16[np.ndarray, "T M"]
    ends: Int32[np.ndarray, "N"]
    phones: Sequence[tuple[int, ...]]
    shares: Float[np.ndarray, "N"]

    @classmethod
    def read(
        cls,
        paths: Sequence[Path],
        processor: ProcessorConfig,
        *,
        seconds: float,
        digits: float,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> "Recordings":
        """All recordings of files of transcripts (audio_text.jsonl), which lie beside them.

        Args:
            seconds: of a row; what is longer, or has more phones than a row has room for, is left out.
            digits: how often one of digits only is drawn, against any other.
            progress: called with stage, done, total.

        Raises:
            DataError: a file or recording is missing, a line is no transcript, or nothing is short enough.
        """
        files = [JsonLines(path) for path in paths]
        lines = [(file, index) for file in files for index in range(len(file))]
        found: list[tuple[np.ndarray, tuple[int, ...], float]] = []
        for number, (file, index) in enumerate(lines):
            sound, text = _told(file, index)
            mel, said = log_mel(load_audio(file.path.parent / sound), processor, name=sound).T, labels(text)
            fits = len(said) <= seconds * PHONES_PER_SECOND
            if fits and len(mel) * processor.hop_length <= seconds * processor.sampling_rate:
                share = digits if set(normal_words(text)) <= set(DIGITS) else 1.0
                found.append((mel.astype(np.float16), said, share))
            if progress is not None and number % 500 == 0:
                progress("recordings", number, len(lines))
        if not found:
            raise DataError(f"{', '.join(map(str, paths))}: no recording of at most {seconds:g} s. Give more blocks.")
        mels, phones, shares = zip(*found)
        return cls(np.concatenate(mels), np.cumsum([*map(len, mels)]).astype(np.int32), phones,
                   np.array(shares) / sum(shares))  # fmt: skip

    def at(self, step: int, rows: int, blocks: int, block: int, seed: int) -> Rows:
        """Rows of a step: recordings drawn, changed, and put side by side while there is room.

        Args:
            blocks, block: of a row, and frames of a block.
        """
        rng = np.random.default_rng([seed, step])
        room = blocks * block
        mel = np.zeros((rows, room, self.mel.shape[1]), np.float32)
        phones = np.zeros((rows, room * PHONES_PER_SECOND // 100), np.int32)
        frames = np.zeros((rows, blocks), np.int32)
        following = self._drawn(rng, room)
        for row in range(rows):
            used = said = 0
            while used + len(following[0]) <= room and said + len(following[1]) <= phones.shape[1]:
                own, spoken = following
                mel[row, used : used + len(own)] = own
                phones[row, said : said + len(spoken)] = spoken
                used, said = used + len(own), said + len(spoken)
                following = self._drawn(rng, room)
            frames[row] = np.clip(used - block * np.arange(blocks), 0, block)
        return Rows(mel.reshape(rows, blocks, block, -1), frames, phones)

    def _drawn(self, rng: np.random.Generator, room: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """A recording changed, after a short silence."""
        index = int(rng.choice(len(self.ends), p=self.shares))
        start = self.ends[index - 1] if index else 0
        own = changed(self.mel[start : self.ends[index]].astype(np.float32), rng, most=room)
        gap = min(int(rng.integers(_GAP)), room - len(own))
        return np.pad(own, ((gap, 0), (0, 0)), constant_values=own.min()), self.phones[index]


def changed(mel: Float32[np.ndarray, "T M"], rng: np.random.Generator, *, most: int) -> Float32[np.ndarray, "U M"]:
    """Another speaker, pace, channel and noise, at most `most` frames of it; the phones stay what they are.

    (Vocal tract length: Jaitly and Hinton 2013. Masks of time and frequency: SpecAugment, Park et al. 2019,
    arXiv:1904.08779.)
    """
    length, bins = mel.shape
    mel = _read_at(mel.T, np.arange(bins) * rng.uniform(*_TRACT)).T
    mel = _read_at(mel, np.linspace(0, length - 1, max(min(int(length * rng.uniform(*_PACE)), most), 1)))
    mel = mel + np.linspace(-1, 1, bins) * rng.uniform(*_TILT)
    if rng.random() < 0.3:
        mel = np.maximum(mel, mel.max() - rng.uniform(*_FLOOR))
    mean = mel.mean()
    for axis, share, widest in ((1, 0.5, 12), (1, 0.5, 12), (0, 0.3, 8), (0, 0.3, 8)):
        if rng.random() < share:
            width = int(rng.integers(1, widest))
            first = int(rng.integers(max(mel.shape[axis] - width, 1)))
            mel[(slice(None),) * axis + (slice(first, first + width),)] = mean
    return mel.astype(np.float32)


def _read_at(values: Float[np.ndarray, "T M"], places: Float[np.ndarray, "U"]) -> Float[np.ndarray, "U M"]:
    """Between the rows that are next to each place; beyond the last one, the last."""
    places = np.clip(places, 0, len(values) - 1)
    lower = places.astype(int)
    upper, part = np.minimum(lower + 1, len(values) - 1), (places - lower)[:, None]
    return values[lower] * (1 - part) + values[upper] * part


def _told(file: JsonLines, index: int) -> tuple[str, str]:
    """Recording and transcript of a line."""
    try:
        _, user, answer = file.value(index)["messages"]
        (sound,) = [part["audio"] for part in user["content"] if part["type"] == "audio"]
        return sound, answer["content"]
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{file.where(index)}: not a recording and its transcript ({error}). Give lines of "
                        "audio_text.jsonl.") from error  # fmt: skip
