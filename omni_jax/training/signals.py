"""Requests from outside to end a run after the step it is at: preemption (SIGTERM) and Ctrl-C (SIGINT)."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Listens while it is entered; ask `reached(step)` after every step.

    with StopRequest() as stop:
        ...
        if stop.reached(step): save and leave

    A second SIGINT does not wait: it raises KeyboardInterrupt.

    Of several processes any may get the signal, and all must stop after the same step. There SIGTERM is left to JAX,
    whose coordination service agrees on the step (`reached_preemption_sync_point`); SIGINT is passed on as SIGTERM.
    """

    def __init__(self):
        self.reason = ""  # the signal's name, once there was one
        self._before: dict[int, Any] = {}
        self._asked = 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            wanted = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._on_signal) for number in wanted}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ask(self, reason: str) -> None:
        """As a signal does, on one host alone."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked += number == signal.SIGINT
        if self._asked > 1:
            raise KeyboardInterrupt
        self.ask(signal.Signals(number).name)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`. All processes call it after every step, and all get the same answer."""
        if jax.process_count() > 1:
            if not multihost_utils.reached_preemption_sync_point(step):
                return False
            self.ask("SIGTERM")
        return bool(self.reason)
