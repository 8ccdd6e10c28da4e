"""Leaving a person out: nothing of them is in what the shorter chain hears, and all else is as usual."""

import json
from dataclasses import replace

import numpy as np
import pytest

from examples.omni_tiny import chain, leave_out
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.chain import left_out, steps
from examples.omni_tiny.files import write_lines
from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.train_all import Book, selected
from examples.omni_tiny.training import Training
from omni_jax.cli.train import parse
from omni_jax.errors import DataError
from omni_jax.evaluation.suites import tiny_left_out
from omni_jax.training.run_config import load_config

LABELS = np.tile(np.arange(10), 120).astype(np.uint8)


def human_paths(training: Training, who: str) -> set[str]:
    """Recordings, and films in which these are heard."""
    return {medium.path for medium in (*training.human[who], *training.human_films[who])}


@pytest.fixture(scope="module")
def training():
    return Training(0, Amounts().scaled(0.01), LABELS)


@pytest.fixture(scope="module")
def folder(training, tmp_path_factory):
    """All lines of training."""
    folder = tmp_path_factory.mktemp("lines")
    for name, lines in training.lines().items():
        write_lines(folder / f"{name}.jsonl", lines)
    return folder


def config_of(step):
    return parse(step.options[1:]).run


def test_people_are_heard_in_files_of_their_own_only(training, folder):
    """So that whatever does not name such a file has never heard them. Films, too, bring sound."""
    everybody = {path: who for who in FSDD_SPEAKERS for path in human_paths(training, who)}
    found = {who: set() for who in FSDD_SPEAKERS}
    for file in folder.glob("*.jsonl"):
        text = file.read_text()
        for path, who in everybody.items():
            if path in text:
                found[who].add(file.name)
    assert found == {who: {leave_out.lines_of(kind, who) for kind in leave_out.KINDS} for who in FSDD_SPEAKERS}
    assert not {film.recipe["sound"] for film in training.films} & set(everybody)


def test_in_the_films_of_a_person_nobody_else_speaks():
    training = Training(0, replace(Amounts().scaled(0.01), human=200, human_films=80), LABELS)
    for who, films in training.human_films.items():
        heard = {film.recipe["sound"] for film in films if film.recipe["sound"].endswith(".flac")}
        assert heard and heard <= {clip.path for clip in training.human[who]}


def test_people_are_heard_up_to_sft_by_those_stages_only_that_are_made_anew():
    names = {leave_out.lines_of(kind, who) for kind in leave_out.KINDS for who in FSDD_SPEAKERS}

    def heard_in(config) -> set[str]:
        return {each.path for each in config.data.sources} | set(getattr(config.stage, "recordings", ()))

    hears = {step.name for step in steps() if step.config is not None and names & heard_in(load_config(step.config))}
    assert hears == {*chain.LEFT_OUT, "phones"}  # which comes after sft, where a model without somebody ends
    usual = {step.name: step for step in steps()}
    assert "pretrain1_encoders" in usual["pretrain2"].after


@pytest.mark.parametrize("who", FSDD_SPEAKERS)
def test_a_person_who_is_left_out_is_in_none_of_the_lines(who, training, folder):
    leave_out.main(leave_out.Args(folder, who))
    others = set().union(*(human_paths(training, each) for each in FSDD_SPEAKERS if each != who))
    for kind in leave_out.KINDS:
        text = (folder / leave_out.lines_without(kind, who)).read_text()
        assert not [path for path in human_paths(training, who) if path in text]
        assert len([path for path in others if path in text]) > 10
    for step in left_out(who)[1:]:
        config, usual = config_of(step), load_config(step.config)
        heard = "".join((folder / source.path).read_text() for source in config.data.sources)
        assert not [path for path in human_paths(training, who) if path in heard]
        weights = [[source.weight for source in each.data.sources] for each in (config, usual)]
        assert weights[0] == weights[1]
        told = [source.path for source in config.data.sources]
        assert len(set(told)) == len(told)


def test_the_steps_follow_one_another_and_leave_the_chain_alone():
    usual = {step.name: step for step in steps()}
    lines, pretrain2, listening, sft = left_out("theo")
    assert not {lines.name, pretrain2.name, listening.name, sft.name} & set(usual)
    assert not {each.place for each in (lines, pretrain2, listening, sft)} & {step.place for step in usual.values()}
    assert config_of(pretrain2).checkpoint == usual["pretrain1_encoders"].result
    assert config_of(listening).checkpoint == pretrain2.result == "runs/pretrain2_without_theo/model"
    assert config_of(sft).checkpoint == listening.result == "runs/listening_without_theo/model"
    for step, name in ((pretrain2, "pretrain2"), (listening, "listening"), (sft, "sft")):
        config = config_of(step)
        assert f"{config.output}/model" == step.result and step.after[0] == lines.name
        whole = load_config(usual[name].config).optimizer.total_steps
        assert config.optimizer.total_steps == whole * chain.SHORTER
        assert step.fingerprint != usual[name].fingerprint
    assert [step.name for step in selected(left_out("theo"), None, None, "pretrain2_without_theo")] == [
        lines.name,
        pretrain2.name,
    ]


def test_of_a_model_that_is_given_only_the_tokenizer_is_taken(training, folder):
    """Its Thinker has heard everybody."""
    model = chain.Given("/model", "0123456789abcdef")
    lines, start, ears, hearing = left_out("theo", model=model)
    assert [lines.name, hearing.name] == ["lines_without_theo", "hearing_without_theo"]
    for whole in (steps(), steps(model=model)):
        assert not {step.place for step in (start, ears, hearing)} & {step.place for step in whole}
    assert start.options[start.options.index("--tokenizer") + 1] == "/model"  # of text
    assert ears.options[:4] == ("--base", start.result, "--ears", "/model") and "--take" not in ears.options
    config, usual = config_of(hearing), load_config(hearing.config)
    assert config.checkpoint == ears.result and f"{config.output}/model" == hearing.result
    assert config.optimizer.total_steps == usual.optimizer.total_steps
    leave_out.main(leave_out.Args(folder, "theo"))
    heard = "".join((folder / source.path).read_text() for source in config.data.sources)
    assert not [path for path in human_paths(training, "theo") if path in heard]
    assert [path for path in human_paths(training, "jackson") if path in heard]


def test_they_wait_for_what_they_begin_with(tmp_path):
    beside = left_out("theo")
    book = Book(tmp_path, [*steps(), *beside])
    with pytest.raises(DataError, match="lines_without_theo needs data"):
        book.finished(beside[0])
    (tmp_path / "sft_without_theo.jsonl").touch()
    with pytest.raises(DataError, match="pretrain2_without_theo needs pretrain1_encoders"):
        book.finished(beside[1])


def test_lines_that_are_missing_are_named(tmp_path):
    (tmp_path / "audio_text_jackson.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    with pytest.raises(DataError, match="audio_text_nicolas.jsonl: cannot be read"):
        leave_out.main(leave_out.Args(tmp_path, "theo"))


def test_the_evaluation_asks_about_the_same_people():
    assert {task.name for task in tiny_left_out.TASKS} == {f"hears_{who}" for who in FSDD_SPEAKERS}
