"""Recordings for the stages that train on sound alone: speech tokenizer, Token2Wav, vocoder.

A source is a JSON lines file, one recording a line, paths from its folder:

    {"audio": "a.wav", "codes": [5, 17, …]}                                     inversion: sound and its codes
    {"audio": "a.wav", "text": "What is said."}                                 scratch
    {"audio": "a.wav", "codes": […], "reference": "b.wav", "speaker": "v.npy"}  Token2Wav: another recording of the
                                                                                voice, or its mel (.npy), and the
                                                                                voice's vector
    {"audio": "a.wav"}                                                          vocoder

The order is a new permutation in each epoch, and chance is drawn for each row by its number: a run that is resumed
goes on with the same recordings, changed in the same way. A recording that cannot be used leaves its row to the next
one of the file that can.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipeline.augment import augment, random_speaker
from input_pipeline.loader import Report
from input_pipeline.loader_rows import Skipped
from input_pipeline.media_audio import load_audio
from input_pipeline.speech_batch import (
    UTF8_LABELS,
    coded_speech,
    sounded_mel,
    transcribed_speech,
    utf8_labels,
    voiced_codes,
)
from input_pipeline.speech_mel import MEL_24K, speech_mel
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import ConfigError, DataError, OmniError
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig, TfdsConfig

_AHEAD = 2  # steps that are made before they are asked for
_TRIES = 8  # recordings that a row is tried with


class ClipKind(Protocol):
    """What one stage makes of recordings."""

    def read(self, line: Mapping[str, Any], folder: Path, rng: np.random.Generator) -> tuple:
        """One row, decoded; raises `OmniError` for one that cannot be used."""
        ...

    def stack(self, rows: list[tuple]) -> Any:
        """The batch of several."""
        ...


class CodedClips:
    """Rows of `CodedSpeech`."""

    def __init__(self, data: DataConfig, model: OmniConfig, processor: ProcessorConfig):
        self.data, self.processor, self.blocks = data, processor, -(-int(data.clip_seconds * 50) // 100)

    def read(self, line: Mapping[str, Any], folder: Path, rng: np.random.Generator) -> tuple:
        sound = _sound(line, folder, 16_000, self.data.clip_seconds)
        codes = codes_of(line)
        sound = augment(sound, 16_000, rng) if self.data.augment else sound
        coded_speech([(sound, codes)], self.blocks, self.processor)  # says what is wrong with this one
        return sound, codes

    def stack(self, rows: list[tuple]) -> Any:
        return coded_speech(rows, self.blocks, self.processor)


class TranscribedClips:
    """Rows of `TranscribedSpeech`; the voice to hear is another one where recordings are augmented."""

    def __init__(self, data: DataConfig, model: OmniConfig, processor: ProcessorConfig):
        self.data, self.processor, self.blocks = data, processor, -(-int(data.clip_seconds * 50) // 100)
        self.labels = self.most_labels(data)
        tokenizer = model.speech_tokenizer_config
        if tokenizer is not None and tokenizer.text_vocab_size < UTF8_LABELS:
            raise ConfigError(
                f"The speech tokenizer has {tokenizer.text_vocab_size} labels of text; bytes need {UTF8_LABELS}."
            )

    @staticmethod
    def most_labels(data: DataConfig) -> int:
        """Bytes of text in a row; there are 50 codes a second to say them with."""
        return int(25 * data.clip_seconds)

    def read(self, line: Mapping[str, Any], folder: Path, rng: np.random.Generator) -> tuple:
        sound = _sound(line, folder, 16_000, self.data.clip_seconds)
        text = line.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError("has no text. Give what is said.")
        ids = utf8_labels(text.strip())
        if len(ids) > self.labels:
            raise DataError(f"has a text of {len(ids)} bytes (at most {self.labels}).", "too long")
        heard = augment(random_speaker(sound, 16_000, rng), 16_000, rng) if self.data.augment else sound
        return heard, sound, ids

    def stack(self, rows: list[tuple]) -> Any:
        return transcribed_speech(rows, self.blocks, self.labels, self.processor)


class VoicedClips:
    """Rows of `VoicedCodes`. Their sound is never changed: it is the target."""

    reference_frames = 400

    def __init__(self, data: DataConfig, model: OmniConfig, processor: ProcessorConfig):
        self.data, self.codes = data, int(50 * data.clip_seconds)
        self.width = model.token2wav_config.dit_config.enc_emb_dim

    def read(self, line: Mapping[str, Any], folder: Path, rng: np.random.Generator) -> tuple:
        sound = _sound(line, folder, 24_000, self.data.clip_seconds)
        row = codes_of(line), sound, *voice_of(line, folder, self.width)
        voiced_codes([row], self.codes)
        return row

    def stack(self, rows: list[tuple]) -> Any:
        return voiced_codes(rows, self.codes)


class SoundClips:
    """Rows of `SoundedMel`; of long recordings a random piece."""

    def __init__(self, data: DataConfig, model: OmniConfig, processor: ProcessorConfig):
        self.data, self.frames = data, int(100 * data.clip_seconds)

    def read(self, line: Mapping[str, Any], folder: Path, rng: np.random.Generator) -> tuple:
        sound, most = _sound(line, folder, 24_000, None), 240 * self.frames
        first = int(rng.integers(max(len(sound) - most, 0) + 1))
        return (sound[first : first + most],)

    def stack(self, rows: list[tuple]) -> Any:
        return sounded_mel([sound for (sound,) in rows], self.frames)


class Clips:
    """An iterator over (batch of this host's rows, `Report`), as `input_pipeline.loader.Loader` is."""

    def __init__(self, files: tuple[Path, ...], kind: ClipKind, rows: Any, data: DataConfig, *, epochs: int | None):
        """Reads the files' lines, no sound.

        Raises:
            DataError: a file is missing, or a line is not a JSON object with "audio"; file and line are named.
        """
        self._lines = [line for file in files for line in _lines(file)]
        if not self._lines:
            raise DataError(f"{', '.join(map(str, files))}: there are no recordings in it.")
        digest = hashlib.sha256(json.dumps([line for _, _, line in self._lines]).encode()).hexdigest()[:32]
        self._about = {"recordings": digest, "seed": data.seed, "rows": rows.total * rows.batches}
        own = range(rows.own.start, rows.own.stop)
        self._places = [part * rows.total + row for part in range(rows.batches) for row in own]
        self._kind, self._data, self._epochs = kind, data, epochs
        self._step, self._read, self._skipped = 0, 0, 0
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[list[Future]] = deque()

    def state(self) -> dict[str, Any]:
        """The place after the last batch that was handed out; the same on all hosts."""
        return {"step": self._step, **self._about}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`.

        Raises:
            DataError: other recordings, another seed, or another number of rows.
        """
        wrong = [f"{key}: was {state.get(key)}, is {now}" for key, now in self._about.items() if state.get(key) != now]
        if wrong:
            raise DataError("The data is not what this run was begun with:\n  " + "\n  ".join(wrong) + "\nUndo it.")
        self.seek(int(state["step"]))

    def seek(self, step: int) -> None:
        self.close()
        self._step = step

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        self._ahead.clear()

    def __iter__(self) -> Iterator[tuple[Any, Report]]:
        return self

    def __next__(self) -> tuple[Any, Report]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(1, min(self._data.workers, os.cpu_count() or 1)))
        while len(self._ahead) <= _AHEAD:
            step = self._step + len(self._ahead)
            self._ahead.append([self._pool.submit(self._row, step, place) for place in self._places])
        if self._ended(self._step):
            raise StopIteration
        made = [future.result() for future in self._ahead.popleft()]
        skipped = tuple(each for _, _, refused in made for each in refused)
        self._read, self._skipped, self._step = self._read + len(made), self._skipped + len(skipped), self._step + 1
        self._check_corrupt(skipped)
        names = tuple(name for name, _, _ in made)
        return self._kind.stack([row for _, row, _ in made]), Report(len(made), 0, names, skipped=skipped)

    def _ended(self, step: int) -> bool:
        whole = self._about["rows"] * (step + 1)
        return self._epochs is not None and whole > self._epochs * len(self._lines)

    def _check_corrupt(self, latest: tuple[Skipped, ...]) -> None:
        seen = self._read + self._skipped
        if seen >= 10 and self._skipped > max(self._data.corrupt_share, 0.5 if seen < 100 else 0.0) * seen:
            shown = "\n  ".join(f"{each.name}: {each.reason}" for each in latest[:5])
            raise DataError(
                f"{self._skipped} of {seen} recordings could not be used. The latest:\n  {shown}\nMend them."
            )

    def _row(self, step: int, place: int) -> tuple[str, tuple, list[Skipped]]:
        """Name, row, and what had to be skipped before it."""
        number = step * self._about["rows"] + place
        epoch, index = divmod(number, len(self._lines))
        chosen = int(_order(len(self._lines), self._data.seed, epoch)[index])
        refused: list[Skipped] = []
        for attempt in range(min(_TRIES, len(self._lines))):
            name, folder, line = self._lines[(chosen + attempt) % len(self._lines)]
            try:
                return name, self._kind.read(line, folder, np.random.default_rng((self._data.seed, number))), refused
            except (OmniError, OSError, ValueError) as error:
                refused.append(Skipped(name, str(error)))
        raise DataError(f"{len(refused)} recordings in a row cannot be used. The first: {refused[0]}. Mend the data.")


class OpenClips:
    """An `OpenData` of `run.py` for recordings."""

    def __init__(self, config: RunConfig, model: OmniConfig, processor: ProcessorConfig, kind: Callable[..., ClipKind]):
        self._data, self._kind = config.data, kind(config.data, model, processor)

    def __call__(self, sources: tuple[SourceConfig | TfdsConfig, ...], rows: Any, *, held_out: bool = False) -> Clips:
        """
        Raises:
            ConfigError: no sources, or one that is no JSON lines file.
        """
        if not sources or any(isinstance(source, TfdsConfig) or source.weight is not None for source in sources):
            raise ConfigError("This stage takes one or more JSON lines files of recordings, without weights.")
        files = tuple(Path(source.path) for source in sources)
        return Clips(files, self._kind, rows, self._data, epochs=1 if held_out else self._data.epochs)


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    key = count, seed, epoch
    if key not in _orders:
        if len(_orders) > 8:
            _orders.clear()
        _orders[key] = np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(count), kind="stable")
    return _orders[key]


def _lines(file: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    if not file.is_file():
        raise DataError(f"{file} does not exist. Give a JSON lines file of recordings.", "missing media")
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number}: this is not JSON ({error.msg}). Mend or remove the line.") from error
        if not isinstance(line, dict) or not isinstance(line.get("audio"), str):
            raise DataError(f'{file}:{number}: a recording is an object with "audio", the path of a sound file.')
        yield f"{file.name}:{number}", file.parent, line


def _sound(
    line: Mapping[str, Any], folder: Path, rate: int, most_seconds: float | None, *, key: str = "audio"
) -> np.ndarray:
    if not isinstance(line.get(key), str):
        raise DataError(f'has no "{key}", the path of a sound file.', "missing media")
    sound = load_audio(str(folder / line[key]), sampling_rate=rate)
    if most_seconds is not None and len(sound) > rate * most_seconds:
        raise DataError(f"lasts {len(sound) / rate:.1f} s (at most {most_seconds:g} s).", "too long")
    return sound


def voice_of(line: Mapping[str, Any], folder: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference mel float32 [400, 80] and vector float32 [width] of a recording's voice.

    Raises:
        OmniError, OSError, ValueError: they are missing, unreadable or of another size.
    """
    reference, bins = line.get("reference"), MEL_24K.num_mel_bins
    if isinstance(reference, str) and reference.endswith(".npy"):
        mel = np.asarray(np.load(folder / reference), np.float32)
        if mel.ndim != 2 or mel.shape[1] != bins or not len(mel):
            raise DataError(f"has a reference of shape {list(mel.shape)}. Give a mel [frames, {bins}].")
    else:
        mel = speech_mel(_sound(line, folder, 24_000, None, key="reference"))
    frames = VoicedClips.reference_frames
    mel = np.tile(mel, (-(-frames // len(mel)), 1))[:frames]  # a short one is repeated
    speaker = line.get("speaker")
    vector = np.load(folder / speaker) if isinstance(speaker, str) else speaker
    vector = np.asarray([] if vector is None else vector, np.float32).reshape(-1)
    if len(vector) != width:
        raise DataError(f"has a speaker vector of {len(vector)} numbers, the model takes {width}.")
    return mel, vector


def codes_of(line: Mapping[str, Any]) -> np.ndarray:
    """The codes of a recording, int32 [C]. Raises DataError where they are none."""
    codes = np.asarray(line.get("codes", ()))
    if codes.ndim != 1 or not len(codes) or codes.dtype.kind not in "iu" or codes.min() < 0:
        raise DataError('has no "codes", a list of numbers from 0.')
    return codes.astype(np.int32)
