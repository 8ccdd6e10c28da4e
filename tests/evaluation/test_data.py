"""Lines are checked, and named, before anything is loaded."""

import pytest

from omni_jax.errors import ConfigError, DataError
from omni_jax.evaluation.data import read_task
from omni_jax.evaluation.metrics import accuracy
from omni_jax.evaluation.prompts import ask, choices, own_messages, prompt_text
from omni_jax.evaluation.suites import load_suite, suite_names
from omni_jax.evaluation.task import Measure, Task
from tests.evaluation.scored import media, write_lines

MEASURE = Measure("m", accuracy())


def task(**options):
    return Task("t", "t.jsonl", ask("{question}"), (MEASURE,), **options)


def test_bad_lines_are_named(tmp_path):
    media(tmp_path)
    good = {"image": "x.png", "question": "What?", "reference": "a"}
    lines = [good, {"question": "What?"}, {"reference": "a"}, good | {"image": "gone.png"}, [1]]
    write_lines(tmp_path / "t.jsonl", lines)
    with open(tmp_path / "t.jsonl", "a") as stream:
        stream.write("{\n\n{}\n")
    with pytest.raises(DataError) as error:
        read_task(task(), tmp_path)
    told = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in told[:5]] == [f"t.jsonl:{number}" for number in (2, 3, 4, 5, 6)]
    assert "'reference'" in told[0] and "'question'" in told[1] and "gone.png" in told[2] and "1 more" in told[5]


def test_which_lines(tmp_path):
    write_lines(tmp_path / "t.jsonl", [{"question": str(i), "reference": "a", "kind": i % 2} for i in range(6)])
    data = read_task(task(where=lambda line: line["kind"] == 1), tmp_path, limit=2)
    assert [(item.index, item.where) for item in data.items] == [(1, "t.jsonl:2"), (3, "t.jsonl:4")]
    with pytest.raises(DataError, match="none of its 6 lines"):
        read_task(task(where=lambda line: False), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_task(task(), tmp_path / "nowhere")


def test_recordings_are_looked_at_too(tmp_path):
    write_lines(tmp_path / "t.jsonl", [{"question": "x", "reference": "a", "recording": "gone.wav"}])
    with pytest.raises(DataError, match=r"t.jsonl:1: .*gone.wav"):
        read_task(task(), tmp_path)


def test_prompts():
    line = {"image": ["a.png", "b.png"], "audio": "c.wav", "video": "d.mp4", "use_audio": True, "fps": 1.0}
    line |= {"question": "Which?", "options": ["x", "y"]}
    messages = ask(choices("Answer with a letter."), system="Be brief.")(line)
    assert prompt_text(messages) == (
        "system: Be brief.\nuser: <image><image><audio><video>Which?\nA. x\nB. y\nAnswer with a letter."
    )
    assert messages[1]["content"][3] == {"type": "video", "video": "d.mp4", "use_audio": True, "fps": 1.0}
    own = [{"role": "user", "content": "Hello"}]
    assert ask("{question}")({"messages": own}) == own
    with pytest.raises(DataError, match="end with the user"):
        own_messages({"messages": [*own, {"role": "assistant", "content": "Hi"}]})
    with pytest.raises(DataError, match="'options'"):
        ask(choices("x"))({"question": "Which?", "options": ["x"]})


def test_all_suites_load_and_no_two_figures_share_a_name(tmp_path):
    figures = [measure.name for name in suite_names() for task in load_suite(name).tasks for measure in task.measures]
    assert len(figures) == len(set(figures)) > 80
    for words, content in (("no TASKS", ""), ("ZeroDivisionError", "1 / 0"), ("at least one", "TASKS = ()")):
        (tmp_path / "mine.py").write_text(content)
        with pytest.raises(ConfigError, match=words):
            load_suite(str(tmp_path / "mine.py"))
    with pytest.raises(ConfigError, match="one of asr"):
        load_suite("nonsense")


def test_speech_is_measured_of_tasks_that_speak():
    with pytest.raises(ConfigError, match="does not speak"):
        Task("t", "t.jsonl", ask("x"), (Measure("m", accuracy(), of="heard"),))
    with pytest.raises(ConfigError, match="ablate"):
        task(ablate="no_touch")
