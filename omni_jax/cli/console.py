"""What all subcommands share: output, a progress bar, orderly errors, and the compilation cache."""

import importlib.metadata
import importlib.util
import json
import os
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni_jax.errors import OmniError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as of any program whose reader has gone

_LEVEL = "--xla_backend_optimization_level"
DEBUG_VARIABLE, CACHE_VARIABLE = "OMNI_JAX_DEBUG", "OMNI_JAX_CACHE"


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Output:
    """Where a command's words go: standard output, or standard error when that is kept for one JSON object."""

    def __init__(self, as_json: bool):
        self.as_json = as_json

    def write(self, text: str, end: str = "\n") -> None:
        # a model may write control characters; they are not for a terminal to obey
        text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
        print(text, end=end, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def result(self, value: dict[str, Any]) -> None:
        """The command's result; printed only if JSON was asked for. Call it last."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=False), flush=True)


def run_guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """Runs a command and turns whatever it raises into a message and an exit status.

    Returns:
        The command's own status; 2 for an `OmniError`; 130 for Ctrl-C; 1 for a defect of the program, whose traceback
        is shown only with `debug`.
    """
    try:
        return command()
    except OmniError as error:
        if debug:
            traceback.print_exc()
        else:
            note(describe(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        note("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again while it ends
        return _BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            first = (str(error).strip().splitlines() or [""])[0]
            note(f"Unexpected {type(error).__name__}: {first}\nThis is a defect. Run again with --debug to see where.")
        return FAILED


def describe(error: OmniError) -> str:
    """MediaError: clip.mp4 has no sound track, ...
    Leave the option out, or add a sound track.
    """
    head = f"{type(error).__name__}: "
    return textwrap.indent(head + str(error), " " * len(head)).lstrip()


class Progress:
    """A bar on standard error for work that takes more than two seconds; nothing when that is not a terminal.

    with Progress() as bar:
        bar("prefill", 3, 8)

    A thread draws it, so the clock goes on while a program compiles and nobody reports.
    """

    def __init__(self, stage: str = "", *, unit: str = "it", patience: float = 2.0):
        self._stage, self._done, self._total = stage, 0, 0
        self._unit, self._patience = unit, patience
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._draw, args=(time.time(),), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        self._stage, self._done, self._total = stage, done, total

    def close(self) -> None:
        """Removes the bar; later reports are ignored."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _draw(self, started: float) -> None:
        if self._stop.wait(self._patience):
            return
        from tqdm import tqdm

        bar, stage = None, None
        while True:
            if bar is None or stage != self._stage or (bar.total or 0) != self._total:
                if bar is not None:
                    bar.close()
                stage, total = self._stage, self._total
                # without a total there is no rate to tell, only that time passes
                form = None if total else "{desc} {elapsed}"
                scale = {"unit": self._unit, "unit_scale": self._unit == "B", "bar_format": form}
                bar = tqdm(total=total or None, desc=stage, leave=False, file=sys.stderr, **scale)
                bar.start_t = started
            bar.n = self._done
            bar.refresh()
            if self._stop.wait(0.2):
                bar.close()
                return


def compile_quickly() -> None:
    """Call before JAX is imported: where there is only a CPU, programs are optimised at LLVM's level 1 instead of 3.

    For small models: those of the demo compile sooner, and run no slower (docs/omni_tiny.md). What the user has set in
    XLA_FLAGS goes before it. Nothing happens once JAX is imported, for it reads its flags only once.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "jax" not in sys.modules and _LEVEL not in flags and _only_cpu():
        os.environ["XLA_FLAGS"] = f"{flags} {_LEVEL}=1".strip()


def _only_cpu() -> bool:
    """Whether JAX is told to use the CPU, or has no plugin for another device."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.lower() == "cpu"
    plugins = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    return not plugins and not importlib.metadata.entry_points(group="jax_plugins")


def setup_jax() -> None:
    """Call before JAX is used: compiled programs are kept on disk, so that a second run need not compile them again.

    The folder is $OMNI_JAX_CACHE, else ~/.cache/omni_jax/xla; OMNI_JAX_CACHE=off keeps nothing. JAX's own
    JAX_COMPILATION_CACHE_DIR goes before both. A folder that cannot be written costs time, nothing else.
    """
    import jax

    wanted = os.environ.get(CACHE_VARIABLE, "")
    if wanted.lower() == "off" or jax.config.jax_compilation_cache_dir:
        return
    folder = Path(wanted) if wanted else Path.home() / ".cache" / "omni_jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        note(f"{folder} cannot be written, so compiled programs are not kept. {CACHE_VARIABLE} names another folder.")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
