"""Judges that a user brings: a recogniser, vectors of speakers, figures of naturalness. None is a dependency.

    recognizer       (waveform float32 [W], sampling rate) -> text, or a list of (word, start, end) in seconds
    speaker_scorer   (waveform float32 [W], sampling rate) -> a vector; near ones are of one speaker
    mos_scorer       (waveform float32 [W], sampling rate) -> a number

Each is named "module:function"; modules of the current folder are found, too.
"""

import importlib
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omni_jax.errors import ConfigError

Function = Callable[[np.ndarray, int], Any]
NAMES = ("recognizer", "speaker_scorer", "mos_scorer")
_METHODS = {"recognizer": "hear", "speaker_scorer": "voice", "mos_scorer": "opinion"}
_TRIAL_RATE, _TRIAL_LEVEL = 24_000, 0.01  # of what they will hear; too loud to be left alone as silence


@dataclass(frozen=True)
class Heard:
    """What a recogniser made of a recording; words with their times (s) where it tells them."""

    text: str
    words: tuple[tuple[str, float, float], ...] | None = None


@dataclass(frozen=True)
class Scorers:
    """Those that were given, by name."""

    functions: Mapping[str, Function] = field(default_factory=dict)

    @classmethod
    def load(cls, names: Mapping[str, str | None]) -> "Scorers":
        """`names`: "recognizer" -> "module:function" or None. Raises ConfigError where one cannot be imported."""
        return cls({kind: _imported(kind, name) for kind, name in names.items() if name is not None})

    def __contains__(self, name: str | None) -> bool:
        return name is None or name in self.functions

    def try_out(self, names: Collection[str]) -> None:
        """Asks each of these once, of half a second of soft noise: it shows now, not after hours, that one is broken.

        Raises:
            ConfigError: one fails, or gives something else than it should; its option is named.
        """
        noise = np.random.default_rng(0).normal(scale=_TRIAL_LEVEL, size=_TRIAL_RATE // 2).astype(np.float32)
        for name in NAMES:
            if name in names and name in self.functions:
                getattr(self, _METHODS[name])(noise, _TRIAL_RATE)

    def hear(self, waveform: np.ndarray, rate: int) -> Heard:
        """Silence is heard as nothing. Raises ConfigError where the function fails or gives something else."""
        if not len(waveform):
            return Heard("", ())
        found = self._call("recognizer", waveform, rate)
        if isinstance(found, str):
            return Heard(found)
        try:
            words = tuple((str(word), float(start), float(end)) for word, start, end in found)
        except (TypeError, ValueError) as error:
            raise _unlike("recognizer", "a text or a list of (word, start, end)", found) from error
        return Heard(" ".join(word for word, *_ in words), words)

    def voice(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """float64 [D]."""
        found = self._call("speaker_scorer", waveform, rate)
        try:
            vector = np.asarray(found, np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise _unlike("speaker_scorer", "a vector", found) from error
        if not len(vector) or not np.isfinite(vector).all():
            raise _unlike("speaker_scorer", "a vector of finite numbers", found)
        return vector

    def opinion(self, waveform: np.ndarray, rate: int) -> float:
        found = self._call("mos_scorer", waveform, rate)
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise _unlike("mos_scorer", "a number", found) from error
        if not np.isfinite(value):
            raise _unlike("mos_scorer", "a finite number", found)
        return value

    def _call(self, name: str, waveform: np.ndarray, rate: int) -> Any:
        try:
            return self.functions[name](np.asarray(waveform, np.float32), rate)
        except Exception as error:
            raise ConfigError(
                f"{_option(name)}: failed on a recording of {len(waveform) / rate:.2f} s: "
                f"{type(error).__name__}: {error}\n"
                "Mend the function, or leave the option out: what needs it is then not measured."
            ) from error


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unlike(name: str, wanted: str, found: Any) -> ConfigError:
    return ConfigError(f"{_option(name)}: expected {wanted}, found {found!r:.80}.")


def _imported(kind: str, name: str) -> Function:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module does while it is imported
        raise ConfigError(
            f"{_option(kind)} {name!r} cannot be imported ({type(error).__name__}: {error}). "
            "Give the name of a function as package.module:function."
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise ConfigError(f"{_option(kind)} {name!r} is not a function. Give package.module:function.")
    return function
