"""Table 7, questions on films, by the option's letter.

    {"video": "1.mp4", "question": "What ...?", "options": ["a", "b"], "answer": "B", "subtitles": "..."}

Films are heard where the line says "use_audio": true. Subtitles are read where a line has them: videomme and
videomme_subtitles are two files. EgoSchema's full test set goes to a server; its public subset is scored.
"""

from dataclasses import replace

from omni_jax.evaluation.prompts import ask, choices
from omni_jax.evaluation.suites.image_qa import by_option
from omni_jax.evaluation.task import Line, Task

_QUESTION = choices("Answer with the option's letter from the given choices directly.")


def _subtitled(line: Line) -> str:
    return f"This video's subtitles are listed below:\n{line['subtitles']}\n{_QUESTION(line)}"


def _with_subtitles(task: Task) -> Task:
    return replace(task, messages=ask(_subtitled))


TASKS = (
    by_option("videomme"),
    _with_subtitles(by_option("videomme_subtitles")),
    by_option("mvbench"),
    by_option("egoschema_subset"),
)
