"""What the scorers make of the truth, and which of them are asked at all."""

import numpy as np
import pytest

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.data import read_task
from omni_jax.evaluation.judge import Judge
from omni_jax.evaluation.metrics_text import bleu, error_rate
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.scorers import NAMES, Scorers
from omni_jax.evaluation.task import Measure, Task, at_least
from tests.evaluation.scored import media, rows, task_of, write_lines


@pytest.mark.parametrize(
    ("suite", "name", "line", "floor"),
    [
        ("tiny", "sees_string", {"answer": "four seven"}, 1),
        ("tiny", "watches_silenced", {"answer": "yes", "kind": "same"}, 1),
        ("image_qa", "docvqa_val", {"question": "?", "answers": ["abcd", "xyz"]}, 1),
        # the best of what ten people say: with three of them it would be 0.9
        ("image_qa", "textvqa_val", {"question": "?", "answers": ["two"] * 3 + ["three"] * 7}, 1),
        ("image_qa", "chartqa", {"question": "?", "answer": 12.5}, 1),
        ("image_qa", "mmmu", {"question": "?", "options": ["a cat", "a dog"], "answer": 1}, 1),
        ("speech_translation", "covost2_de_en", {"audio": "x.wav", "translation": "He is at home."}, 100),
        ("text", "gsm8k", {"question": "?", "answer": "so #### 1,200"}, 1),
        # a box is no text that could be an answer, and a recogniser that is not given tells no floor
        ("grounding", "refcoco_val", {"expression": "x", "box": [0, 0, 9, 9], "width": 9, "height": 9}, None),
        ("asr", "fleurs_en", {"audio": "x.wav", "text": "good morning"}, None),
    ],
)
def test_the_floor_of_text_is_what_the_reference_gets(tmp_path, suite, name, line, floor):
    line = {"messages": [{"role": "user", "content": "?"}], "image": "x.png"} | line
    found = rows(task_of(suite, name), tmp_path, [line], ["nothing"], seen=(9, 9))[name]
    assert found["floor"] == (None if floor is None else pytest.approx(floor))


def test_a_floor_shows_what_extraction_loses(tmp_path):
    lost = Measure("a", metrics.accuracy(), extract=extract.first_number, goal=at_least(1), baseline=0.25)
    task = Task("a", "a.jsonl", ask("?"), (lost, Measure("b", bleu("13a")), Measure("c", error_rate("en"))))
    found = rows(task, tmp_path, [{"reference": "he is home now"}], ["he is here now"])
    assert found["a"]["floor"] == 0 and found["b"]["floor"] == pytest.approx(100) and found["c"]["floor"] == 0
    assert found["a"]["baseline"] == 0.25 and found["b"]["baseline"] is None


def test_what_is_written_beside_speech_has_a_floor_too(tmp_path):
    line = {"messages": [{"role": "user", "content": "?"}], "answer": "four", "recording": "x.wav"}
    sounds = [np.ones(2400, np.float32)]
    found = rows(
        task_of("tiny", "converses_digit"), tmp_path, [line], ["two"], sounds=sounds, recognizer=lambda w, r: "five"
    )
    assert found["converses_digit"]["floor"] == 0 and found["converses_digit_written"]["floor"] == 1


def test_scorers_that_a_task_needs(tmp_path):
    media(tmp_path)
    spoken, all_ = {"recognizer", "speaker_scorer", "mos_scorer"}, Scorers(dict.fromkeys(NAMES, print))
    ask_ = {"messages": [{"role": "user", "content": "?"}], "reference": "a", "answer": "four", "voice": "joe"}
    heard = {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x.wav"}]}], "reference": "a"}
    for name, line, wanted in (
        ("speaks", ask_, spoken),
        ("speaks_hard", ask_, {"recognizer"}),
        ("hears_human", heard, {"recognizer"}),  # for the floor
        ("sees_digit", ask_, set()),
    ):
        task = task_of("tiny", name)
        write_lines(tmp_path / task.file, [line])
        data = read_task(task, tmp_path)
        assert Judge(data, all_).asked == wanted and Judge(data, Scorers()).asked == set()
