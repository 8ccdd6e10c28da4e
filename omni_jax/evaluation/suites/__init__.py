"""Suites by name: a module here, or a Python file of the user's, with a tuple TASKS."""

import hashlib
import importlib
import pkgutil
import runpy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from omni_jax.errors import ConfigError
from omni_jax.evaluation.task import Task


@dataclass(frozen=True)
class Suite:
    """Tasks under one name. digest: of the file that they are written in."""

    name: str
    tasks: tuple[Task, ...]
    digest: str


def suite_names() -> list[str]:
    """Names of the suites here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_suite(name: str) -> Suite:
    """A suite by name ("tiny", "asr") or by file ("mine.py").

    Raises:
        ConfigError: there is none, it fails, or two figures have one name.
    """
    if name in suite_names():
        module = importlib.import_module(f"{__name__}.{name}")
        file, tasks = Path(module.__file__), module.TASKS
    elif Path(name).suffix == ".py" and Path(name).is_file():
        file = Path(name)
        try:
            tasks = runpy.run_path(str(file))["TASKS"]
        except KeyError:
            raise ConfigError(f"{name} has no TASKS. Write TASKS = (Task(...), ...).") from None
        except Exception as error:  # whatever the user's file does
            raise ConfigError(f"{name} cannot be read as a suite: {type(error).__name__}: {error}") from error
    else:
        raise ConfigError(f"There is no suite {name!r}. Give a Python file, or one of {', '.join(suite_names())}.")
    tasks = tuple(tasks)
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise ConfigError(f"{name}: TASKS must be a tuple of at least one Task.")
    names = Counter(name for task in tasks for name in (f"task {task.name}", *(m.name for m in task.measures)))
    twice = [each for each, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"{name}: {twice[0]!r} is there twice. Each task and each figure needs a name of its own.")
    return Suite(file.stem, tasks, hashlib.sha256(file.read_bytes()).hexdigest())
