"""A profile of a few steps, when it is wanted: by step number, by signal, or by a file."""

import signal
import threading
from pathlib import Path
from types import FrameType

import jax

from omni_jax.errors import ConfigError

_STEPS = 5


class Profiler:
    """Call it before each step. Traces go to FOLDER/profile, for TensorBoard or xprof; each host writes its own.

    Args:
        folder: OUTPUT.
        steps: first and last step to trace, if known ahead. While the run goes on, SIGUSR1 or a file OUTPUT/profile.now
            traces the next five. Of several hosts that see the file one takes it, and traces; the signal is for the
            process that gets it.
    """

    def __init__(self, folder: str | Path, steps: tuple[int, int] | None = None):
        self._folder = Path(folder)
        self._trigger = self._folder / "profile.now"
        self._window = steps
        self._last: int | None = None
        self._asked = False

    def __enter__(self) -> "Profiler":
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __call__(self, step: int) -> None:
        """`step` is the one to come."""
        if self._last is not None:
            if step > self._last:
                self._stop()
            return
        if self._window is not None and self._window[0] <= step <= self._window[1]:
            self._start(self._window[1])
        elif self._asked or self._taken():
            self._asked = False
            self._start(step + _STEPS - 1)

    def _taken(self) -> bool:
        """Whether the file was there and this process has removed it, which one process only can."""
        try:
            self._trigger.unlink()
        except FileNotFoundError:
            return False
        return True

    def _start(self, last: int) -> None:
        self._last = last
        jax.profiler.start_trace(str(self._folder / "profile"))

    def _stop(self) -> None:
        if self._last is not None:
            self._last = None
            jax.effects_barrier()
            jax.profiler.stop_trace()


def parse_steps(text: str) -> tuple[int, int]:
    """ "10:15" -> (10, 15), both included.

    Raises:
        ConfigError: not of that form.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile {text!r} is not of the form 10:15, the first and the last step to trace.")
    return int(first), int(last)
