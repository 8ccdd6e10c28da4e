"""When the device finished what, seen from a thread that only waits: nobody else has to."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax

from omni_jax.sampling.speech_options import Span


class Watch:
    """Spans of work in the order in which it was asked for.

    with Watch(started, spans) as watch:
        watch.expect(("dit",), mel, lambda: (24,))

    A span begins when the work was asked for, or when that before it was done; a device does one thing after another.
    """

    def __init__(self, started: float, spans: list[Span]):
        """`started`: the zero of all times, by `time.perf_counter`. `spans` is filled."""
        self._started, self._spans = started, spans
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._queue.put(None)
        self._thread.join()

    def expect(self, stages: tuple[str, ...], results: Any, amounts: Callable[[], tuple[int, ...]]) -> None:
        """Work that was just asked for, one span a stage; `amounts` is called when `results` are there."""
        asked = time.perf_counter()

        def wait(free_at: float) -> float:
            jax.block_until_ready(results)
            counted, now = amounts(), time.perf_counter()
            for stage, amount in zip(stages, counted, strict=True):
                self._note(stage, max(asked, free_at), now, amount)
            return now

        self._queue.put(wait)

    def took(self, amounts: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """Work that has just been waited for, stage after stage."""
        now = time.perf_counter()

        def note(_: float) -> float:
            start = now - sum(seconds.values())
            for stage, amount in amounts.items():
                end = start + seconds.get(stage, 0.0)
                self._note(stage, start, end, amount)
                start = end
            return now

        self._queue.put(note)

    def _note(self, stage: str, start: float, end: float, amount: int) -> None:
        self._spans.append(Span(stage, start - self._started, end - self._started, amount))

    def _run(self) -> None:
        """Each job is told when the device was free before it, and tells when it was free after."""
        free_at = self._started
        while (job := self._queue.get()) is not None:
            with suppress(Exception):  # whoever reads the results will hear of it
                free_at = job(free_at)
