"""Worker processes that end with the process that began them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any


def spawned(workers: int, initializer: Callable[..., None], *args: Any) -> ProcessPoolExecutor:
    """Fresh processes, each of which calls `initializer(*args)` first: forks of one that runs JAX can hang."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(initializer, args))


def _begin(initializer: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes; one traceback is enough
    threading.Thread(target=end_with_parent, daemon=True).start()
    initializer(*args)


def end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
