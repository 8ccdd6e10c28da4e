"""When the device finished what, seen from a thread that only waits: nobody else has to."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
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
        self._queue.put((stages, time.perf_counter(), results, amounts))

    def took(self, amounts: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """Work that has just been waited for, stage after stage."""
        self._queue.put((amounts, time.perf_counter(), dict(seconds), None))

    def _run(self) -> None:
        free_at = self._started
        while (item := self._queue.get()) is not None:
            stages, asked, results, amounts = item
            if amounts is None:
                start = asked - sum(results.values())
                for stage, amount in stages.items():
                    end = start + results.get(stage, 0.0)
                    self._spans.append(Span(stage, start - self._started, end - self._started, amount))
                    start = end
                free_at = asked
                continue
            try:
                jax.block_until_ready(results)
                counted = amounts()
            except Exception:  # whoever reads the results will hear of it
                continue
            now = time.perf_counter()
            for stage, amount in zip(stages, counted, strict=True):
                self._spans.append(Span(stage, max(asked, free_at) - self._started, now - self._started, amount))
            free_at = now
