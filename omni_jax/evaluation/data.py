"""The lines of a task, all checked before a model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.jsonl import JsonLines
from input_pipeline.media_source import media_file
from input_pipeline.messages import MEDIA_KEYS, one_form
from omni_jax.errors import DataError, MediaError, PromptError
from omni_jax.evaluation.task import Message, Task

_TOLD = 5  # bad lines that a message names


@dataclass(frozen=True, eq=False)
class Item:
    """A line with its prompt. index: its number among the lines that are not blank; where: "test.jsonl:12"."""

    index: int
    where: str
    line: Mapping[str, Any]
    messages: list[Message]


@dataclass(frozen=True, eq=False)
class TaskData:
    """All lines of a task. folder: what paths in them start from; digest: SHA-256 of the file."""

    task: Task
    folder: Path
    items: list[Item]
    digest: str

    def path(self, name: str) -> str:
        """A path of a line, from the folder of its file."""
        return str(self.folder / name)


def read_task(task: Task, folder: Path, limit: int | None = None) -> TaskData:
    """Reads the lines, makes their prompts, and looks whether all media are there.

    Args:
        limit: lines to take, the first ones; None for all.

    Raises:
        DataError: no such file, none of its lines is of this task, or bad lines; the first are named file:line.
    """
    lines = JsonLines(folder / task.file)
    base, items, bad = lines.path.parent, [], []
    for index in range(len(lines)):
        if limit is not None and len(items) + len(bad) >= limit:
            break
        where = lines.where(index)
        try:
            line = lines.value(index)
            if not isinstance(line, Mapping):
                raise DataError(f"expected an object, found {type(line).__name__}.")
            if task.where is None or task.where(line):
                items.append(Item(index, where, line, _checked(task, line, base)))
        except KeyError as error:
            bad.append(f"{where}: the key {error} is missing; the task {task.name} needs it.")
        except (DataError, MediaError, PromptError) as error:
            bad.append(f"{where}: {error}")
        except (TypeError, ValueError, IndexError) as error:
            bad.append(f"{where}: {task.name} cannot use it: {type(error).__name__}: {error}")
    if bad:
        more = f"\nand {len(bad) - _TOLD} more lines" if len(bad) > _TOLD else ""
        raise DataError("\n".join(bad[:_TOLD]) + more)
    if not items:
        raise DataError(f"{lines.path}: none of its {len(lines)} lines is of the task {task.name}.")
    return TaskData(task, base, items, lines.digest)


def _checked(task: Task, line: Mapping[str, Any], folder: Path) -> list[Message]:
    """The prompt, with absolute paths; everything that scoring will read has been read once."""
    messages = one_form({"messages": task.messages(line)}, folder)["messages"]
    for message in messages:
        for item in message["content"] if not isinstance(message["content"], str) else ():
            key = item.get("type")
            if key in MEDIA_KEYS and isinstance(item.get(key), (str, Path)):
                media_file(item[key])
    for measure in task.measures:
        if measure.where is None or measure.where(line):
            reference = measure.reference(line)
            if measure.of == "voice":
                media_file(folder / reference)
    recordings = [task.truth(line), line[task.clone] if task.clone else None]
    for recording in filter(None, recordings):
        media_file(folder / recording)
    if task.speak == "reference" and not str(task.text_to_speak(line)).strip():
        raise DataError("there is no text to be spoken.")
    return messages
