"""Makes Omni-tiny, from nothing to the checkpoint: data, vocabulary, and every stage of training.

    python -m examples.omni_tiny.train_all --to .omni_tiny --fsdd free-spoken-digit-dataset

Killed at any time, the same command goes on. What has ended is not done again.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Literal

from tyro.conf import arg

from examples.omni_tiny.chain import Given, Step, left_out, steps
from examples.omni_tiny.files import whole
from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.program import run_main
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
RECORDS = "steps"  # what was made from what
# Arrays of a step are freed and made again thousands of times. Kept by the process, and in large pages, they spare the
# kernel's work of handing them out, which took a fifth of the vocoder's processor time; and without one arena for all
# threads, a step of the speech tokenizer took a third more.
MEMORY = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "arena_max": 1, "mmap_threshold": 1 << 32, "trim_threshold": 1 << 32}.items()
)


@dataclass(frozen=True)
class Args:
    """Make Omni-tiny. The steps, in their order, are in chain.py; DIR/steps tells how long each has taken.

    examples:
      python -m examples.omni_tiny.train_all --to .omni_tiny --fsdd fsdd
      python -m examples.omni_tiny.train_all --to .omni_tiny --only vocoder
      python -m examples.omni_tiny.train_all --to /tmp/trial --scale 0.01 --data-scale 0.01
      python -m examples.omni_tiny.train_all --to .omni_tiny --leave-out theo
      python -m examples.omni_tiny.train_all --to .omni_tiny_more --fsdd fsdd --model omni_jax/assets/omni_tiny
    """

    to: Annotated[Path, arg(metavar="DIR")] = Path(".omni_tiny")
    """The folder of everything."""
    only: Annotated[str | None, arg(metavar="STEP")] = None
    """One step."""
    from_: Annotated[str | None, arg(name="from", metavar="STEP")] = None
    """The first step; those before it are taken as they are."""
    until: Annotated[str | None, arg(metavar="STEP")] = None
    """The last step."""
    scale: float = 1.0
    """Lengths of all runs are multiplied by this, for a trial."""
    data_scale: float = 1.0
    """Amounts of data are multiplied by this, for a trial."""
    fsdd: Annotated[Path | None, arg(metavar="DIR")] = None
    """The Free Spoken Digit Dataset, see make_data."""
    tools: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where packages of npm are, see make_data."""
    data_python: Annotated[Path, arg(metavar="FILE")] = Path(sys.executable)
    """The Python that has the voices, where it is another one."""
    leave_out: Literal[FSDD_SPEAKERS] | None = None
    """Instead of the chain: a Thinker that never hears this person, in runs/sft_without_NAME, from pretrain1 on; with
    --model in runs/hearing_without_NAME, from the ears of its speech tokenizer."""
    model: Annotated[Path | None, arg(metavar="DIR")] = None
    """An Omni-tiny that is trained further, such as omni_jax/assets/omni_tiny; None begins with nothing."""
    jobs: int = 1
    """How many steps are made at a time, where they do not read each other; the processors are shared out."""
    accept_changes: bool = False
    """Take results that were made from other inputs, or by another configuration, as they are."""


def main(args: Args) -> None:
    """Runs what has not ended yet.

    Raises:
        OmniError: no such step; something is missing, was made from other inputs, or failed.
    """
    data = {"--fsdd": args.fsdd, "--tools": args.tools}
    options = [word for name, path in data.items() if path is not None for word in (name, str(path.resolve()))]
    options += [] if args.data_scale == 1 else ["--scale", str(args.data_scale)]
    model = None if args.model is None else given(args.model)
    chain = steps(scale=args.scale, data=tuple(options), model=model)
    beside = [] if args.leave_out is None else left_out(args.leave_out, scale=args.scale, model=model)
    wanted = selected(beside or chain, args.only, args.from_, args.until)
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs} is out of range. Give 1 or more.")

    def command(step: Step) -> list[str]:
        python = args.data_python if step.name == "data" else Path(sys.executable)
        return [str(python), "-m", step.module, *step.options]

    with locked(args.to) as lock:
        make_all(Book(args.to, [*chain, *beside], args.accept_changes), wanted, command, lock, jobs=args.jobs)


def make_all(
    book: "Book", wanted: Sequence[Step], command: Callable[[Step], Sequence[str]], lock: Any, *, jobs: int = 1
) -> None:
    """Makes what has not ended yet, up to `jobs` steps at a time, each on its share of the processors.

    A step that nothing could run beside, as the data, has all of them.

    Raises:
        OmniError: a step failed, or we were asked to stop; what ran beside it has saved and stopped.
    """
    free: SimpleQueue[tuple[int, ...]] = SimpleQueue()
    for processors in shares(sorted(os.sched_getaffinity(0)), jobs):
        free.put(processors)

    def make(step: Step, alone: bool) -> None:
        processors = free.get()
        try:
            print(f"{step.name}: begins", flush=True)
            seconds = book.make(step, command(step), lock, None if alone else processors)
            print(f"{step.name}: {seconds / 60:.1f} min", flush=True)
        finally:
            free.put(processors)

    waiting, running = list(wanted), dict[Future, Step]()
    with ThreadPoolExecutor(jobs) as pool, book.passing_on():
        while waiting or running:
            open_steps = {step.name for step in (*waiting, *running.values())}
            for step in [step for step in waiting if open_steps.isdisjoint(step.after)][: jobs - len(running)]:
                waiting.remove(step)
                if book.finished(step):
                    print(f"{step.name}: is there", flush=True)
                else:
                    running[pool.submit(make, step, not running and is_alone(step, waiting))] = step
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                del running[ended]
                try:
                    ended.result()
                except BaseException:
                    book.stop()
                    raise


def is_alone(step: Step, waiting: Sequence[Step]) -> bool:
    """Whether all that waits, in the order of the chain, waits for this step."""
    later = {step.name}
    for each in waiting:
        if later.isdisjoint(each.after):
            return False
        later.add(each.name)
    return True


def shares(processors: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
    """The processors of each job: [0, 1, 2, 3], 2 -> [(0, 2), (1, 3)]. Where there are too few, jobs share them."""
    return [tuple(processors[job % len(processors) :: jobs]) for job in range(jobs)]


def given(folder: Path) -> Given:
    """A model to train further. Raises CheckpointError where there is none."""
    from omni_jax.interop.checkpoint_digest import checkpoint_digest

    return Given(str(imported_checkpoint(folder).resolve()), checkpoint_digest(folder))


def selected(chain: Sequence[Step], only: str | None, first: str | None, last: str | None) -> list[Step]:
    """The steps that are asked for. Raises ConfigError for a name that is none."""
    names = [step.name for step in chain]
    for name in (only, first, last):
        if name is not None and name not in names:
            raise ConfigError(f"There is no step {name!r}. Steps: {', '.join(names)}.")
    if only is not None:
        first = last = only
    start = 0 if first is None else names.index(first)
    stop = len(names) if last is None else names.index(last) + 1
    if start >= stop:
        raise ConfigError(f"{first} comes after {last}. Give them in the order of the chain: {', '.join(names)}.")
    return list(chain[start:stop])


@contextmanager
def locked(folder: Path):
    """Yields a file that says that somebody works in `folder`: as long as any process has it, a step's own included.

    Raises:
        DataError: somebody does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another train_all, or a step that one has begun, works in {folder}. Wait for it, or end it."
            ) from None
        yield file


class Book:
    """What has been made of what, in `folder`/steps, and the steps themselves."""

    def __init__(self, folder: Path, chain: Sequence[Step], accept_changes: bool = False):
        self.folder, self._accept = folder, accept_changes
        self._processes, self._asked = list[subprocess.Popen](), False
        self._steps = {step.name: step for step in chain}

    def finished(self, step: Step) -> bool:
        """Whether its result is there.

        Raises:
            DataError: something that it needs is not there; or what there is of it was made from other inputs.
        """
        for name in step.after:
            if not (self.folder / self._steps[name].result).exists():
                raise DataError(
                    f"{step.name} needs {name}, whose {self._steps[name].result} is not there. Make it first."
                )
        record, result = self._record(step), self.folder / step.result
        changed = [] if record is None else self._changes(step, record)
        if changed and (self.folder / step.place).exists() and not self._accept:
            raise DataError(
                f"{step.name} was made with other {', '.join(changed)} than there are now. Remove "
                f"{self.folder / step.place} to make it anew, or give --accept-changes."
            )
        if not result.exists():  # results appear whole or not at all
            return False
        if changed or not (record or {}).get("made"):  # made by hand, or by a step that outlived us
            self._write(step, {"seconds": 0.0, "made": result.stat().st_mtime, **(record or {}), **self._origin(step)})
        return True

    @contextmanager
    def passing_on(self):
        """Meanwhile whoever asks us to stop, asks the steps that run. For the main thread."""

        def pass_on(number: int, _frame: Any) -> None:
            self.stop(number)

        own = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in own.items():
                signal.signal(number, handler)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks all steps that run to save and to end; none begins any more."""
        self._asked = True
        for process in list(self._processes):
            process.send_signal(number)

    def make(self, step: Step, command: Sequence[str], lock: Any, processors: Collection[int] | None = None) -> float:
        """Runs a step to its end, and notes it. Returns the seconds that it took, with those of earlier attempts.

        Args:
            processors: that it may use; None for all of ours.

        Raises:
            OmniError: it failed, or was stopped.
        """
        before = self._record(step) or {}
        spent = {} if self._changes(step, before) else before
        started = time.time()
        facts = {**self._origin(step), **{name: spent.get(name, 0.0) for name in ("seconds", "processor_seconds")}}
        self._write(step, facts)
        status, worked = self._call(command, lock, processors)
        signalled = self._asked
        facts["seconds"] = round(facts["seconds"] + time.time() - started, 3)
        facts["processor_seconds"] = round(facts["processor_seconds"] + worked, 3)
        there = (self.folder / step.result).exists()
        self._write(step, facts | ({"made": started} if there and status == 0 else {}))
        if status == 0 and there and signalled:
            raise DataError(f"stopped after {step.name}. The same command goes on.")
        if signalled or (status == 0 and not there):  # a run that is asked to stop saves, and ends well
            raise DataError(f"{step.name} was stopped. The same command goes on.")
        if status != 0:
            raise DataError(f"{step.name} failed with status {status}: {' '.join(command)}")
        return facts["seconds"]

    def _call(self, command: Sequence[str], lock: Any, processors: Collection[int] | None) -> tuple[int, float]:
        """Status of a command, and the seconds of processors that it took, with those of its own commands."""
        environment = (
            {"GLIBC_TUNABLES": MEMORY}
            | os.environ
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])])}
        )
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, pass_fds=[lock.fileno()], start_new_session=True
        )
        if processors is not None:  # while it still has one thread; before it begins would mean to fork JAX's threads
            with suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, processors)
        self._processes.append(process)
        if self._asked:  # meanwhile
            process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        self._processes.remove(process)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def _changes(self, step: Step, record: Mapping[str, Any]) -> list[str]:
        """Names of inputs that are no longer those of the record, and "settings"."""
        then, now = record.get("inputs", {}), self._inputs(step)
        changed = [name for name in now if then.get(name) != now[name]]
        return changed + (["settings"] if record.get("fingerprint") != step.fingerprint else [])

    def _origin(self, step: Step) -> dict[str, Any]:
        return {"inputs": self._inputs(step), "fingerprint": step.fingerprint}

    def _inputs(self, step: Step) -> dict[str, float | None]:
        """When each was made."""
        return {name: (self._record(self._steps[name]) or {}).get("made") for name in step.after}

    def _record(self, step: Step) -> dict[str, Any] | None:
        path = self.folder / RECORDS / f"{step.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _write(self, step: Step, facts: Mapping[str, Any]) -> None:
        with whole(self.folder / RECORDS / f"{step.name}.json") as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        run_main(main, Args)
    except KeyboardInterrupt:
        sys.exit(130)
