"""Speech into a wav file while it is made: 24 kHz, one channel, 16 bits."""

import os
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from omni_jax.errors import PromptError

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 24_000


def check_target(path: Path, suffix: str) -> None:
    """Whether a file could be written there, before any expensive work.

    Raises:
        PromptError: another ending, a folder of that name, a folder that is missing or may not be written.
    """
    if path.suffix.lower() != suffix:
        raise PromptError(f"{path} must end with {suffix}.")
    if path.is_dir():
        raise PromptError(f"{path} is a folder. Give the name of a file.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise PromptError(f"{folder} does not exist. Make the folder of {path.name} first.")
    if not os.access(folder, os.W_OK):
        raise PromptError(f"{folder} may not be written. Choose another place for {path.name}.")


class SoundFile:
    """A wav file that appears under its name when it is whole, also if that is because somebody stopped listening.

    with SoundFile(path) as file:
        file.write(waveform)
    """

    def __init__(self, path: Path):
        self.path, self._aside = path, path.with_name(f".{path.name}.part")

    def __enter__(self) -> "SoundFile":
        with self._told():
            self._stream = open_wav(self._aside)
        return self

    def write(self, waveform: "np.ndarray") -> None:
        """float32 in [-1, 1].

        Raises:
            PromptError: the disk is full, or the like.
        """
        with self._told():
            self._stream.writeframes(pcm(waveform))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        keep = error is None or isinstance(error, KeyboardInterrupt)
        try:
            with self._told() if keep else suppress(OSError):
                self._stream.close()
                if keep:
                    self._aside.replace(self.path)
        finally:
            self._aside.unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PromptError(f"{self.path} could not be written: {error.strerror}. Choose another place.") from error


def open_wav(file: "Path | IO[bytes]") -> wave.Wave_write:
    """A stream for the samples of `pcm`."""
    stream = wave.Wave_write(file if hasattr(file, "write") else str(file))
    stream.setnchannels(1)
    stream.setsampwidth(2)
    stream.setframerate(SAMPLE_RATE)
    return stream


def pcm(waveform: "np.ndarray") -> bytes:
    """16-bit little-endian samples of float32 in [-1, 1]."""
    import numpy as np

    return np.rint(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
