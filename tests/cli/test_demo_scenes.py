"""The scenes of `omni-jax demo`: what is shipped, when an answer is right, and what is refused."""

import json
import shutil

import pytest

from input_pipeline.media import load_audio, load_image, load_video
from omni_jax.cli.demo import SCENES
from omni_jax.cli.demo_scenes import FILE, read_scenes, words
from omni_jax.config import ProcessorConfig
from omni_jax.errors import DataError, OmniError


@pytest.fixture(scope="module")
def shipped():
    return {scene.name: scene for scene in read_scenes(SCENES)}


def test_all_ways_to_ask_are_there(shipped):
    asked = [(tuple(medium.kind for medium in scene.media), bool(scene.question)) for scene in shipped.values()]
    assert (("image", "audio"), False) in asked  # a spoken question about a picture
    assert (("image", "audio"), True) in asked and (("video",), True) in asked and (("image",), True) in asked
    assert (("audio",), True) in asked and ((), True) in asked
    assert len({scene.voice for scene in shipped.values()}) > 1
    assert [message["role"] for scene in shipped.values() for message in scene.messages] == ["user"] * len(shipped)


def test_media_are_real_and_small(shipped):
    for medium in (medium for scene in shipped.values() for medium in scene.media):
        source = str(medium.file)
        if medium.kind == "image":
            assert load_image(source).shape == (56, 56, 3)
        elif medium.kind == "audio":
            assert 0.3 < len(load_audio(source)) / 16_000 < 3
        else:
            film = load_video(source, ProcessorConfig(), want_audio=True)
            assert (film.frames[0] != film.frames[-1]).any() and abs(film.audio).max() > 0.05
    assert sum(file.stat().st_size for file in SCENES.iterdir()) < 500_000


def test_every_file_has_its_credits(shipped):
    credits = (SCENES / "CREDITS.md").read_text()
    for scene in shipped.values():
        for medium in scene.media:
            lines = [text for text in scene.credits if text.startswith(f"{medium.file.name}: ")]
            assert lines and all(f"- {line}\n" in credits for line in lines)
            if "a person says" in medium.about:
                assert any("CC BY-SA 4.0; changed: resampled" in line for line in lines)


@pytest.mark.parametrize(
    "name, answer, right",
    [
        ("spoken-question", "The number is eight.", True),
        ("spoken-question", "It is 8", True),
        ("spoken-question", "The number is eight eight.", False),  # no more than the decisive words
        ("spoken-question", "The number is three.", False),
        ("spoken-question", "", False),
        ("same-number", "I see one and I hear one, so yes.", True),
        ("same-number", "I see one and I hear two, so no.", False),
        ("film", "I see six and I hear one, so no.", True),
        ("film", "I see 6 and I hear 1, so no.", True),
        ("film", "I see five and I hear two, so no.", False),  # which number decides, not only that they differ
        ("film", "I see one and I hear six, so no.", False),
        ("film", "I see six and I hear one, so yes.", False),
        ("film", "No, they differ.", False),
        ("film", "Yes, it is the same number.", False),
        ("typed-question", "There are two red squares.", True),  # it was asked how many
        ("please-say", "It is warm in the summer so the rabbits sleep under the bridge", True),
        ("please-say", "It is warm in the summer, so the rabbits sleep.", False),
    ],
)
def test_decisive_words(shipped, name, answer, right):
    assert shipped[name].is_right(answer) == right


@pytest.mark.parametrize("always", ["I see one and I hear one, so yes.", "I see nine and I hear zero, so no.", "No."])
def test_who_answers_always_the_same_is_not_always_right(shipped, always):
    """Of the scenes that must be heard and seen together, one is "yes", and one is "no"."""
    together = [scene for scene in shipped.values() if {"yes", "no"} <= set(scene.among)]
    assert {scene.name for scene in together} == {"same-number", "film"}
    assert sum(scene.is_right(always) for scene in together) <= 1


def test_words():
    assert words("Don’t count 47, PLEASE!") == ["don't", "count", "four", "seven", "please"]


@pytest.fixture
def folder(tmp_path):
    shutil.copyfile(SCENES / "same-number.png", tmp_path / "a.png")
    return tmp_path


def scene(**changes):
    media = [{"kind": "image", "file": "a.png", "about": "a number"}]
    given = {"name": "a", "title": "A", "media": media, "question": "?", "truth": "It is four.", "decisive": "four"}
    return given | {"among": ["three", "four"]} | changes


def write(folder, *scenes):
    (folder / FILE).write_text(json.dumps({"scenes": list(scenes)}))
    return read_scenes(folder)


def test_a_scene_of_ones_own(folder):
    (found,) = write(folder, scene())
    assert found.messages[0]["content"] == [
        {"type": "image", "image": str(folder / "a.png")},
        {"type": "text", "text": "?"},
    ]
    assert found.voice is None and found.credits == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"title": 3}, 'scene 1: "title" must be a text, not empty'),
        ({"truth": ""}, '"truth" must be a text, not empty'),
        ({"name": "a/b"}, '"name" must be of a-z, 0-9 and -'),
        ({"media": "a.png"}, '"media" must be a list'),
        ({"media": [{"kind": "image", "file": "a.png"}]}, "a medium needs"),
        ({"media": [{"kind": "audio", "file": "a.png", "about": ""}]}, "a.png is no audio"),
        ({"media": [{"kind": "image", "file": "b.png", "about": ""}]}, "b.png is missing"),
        ({"media": [], "question": ""}, "asks nothing"),
        ({"decisive": "three"}, "the truth itself would not be right"),
        ({"among": "four"}, '"among" must be a list of texts'),
    ],
)
def test_what_is_wrong_with_a_scene_is_named(folder, changes, message):
    with pytest.raises(DataError) as caught:
        write(folder, scene(**changes))
    assert message in str(caught.value) and "scene 1" in str(caught.value)


def test_what_is_wrong_with_the_file_is_named(folder):
    with pytest.raises(DataError, match=r"scenes\.json is missing\. Give a folder with"):
        read_scenes(folder)
    with pytest.raises(DataError, match="a list of one scene or more"):
        write(folder)
    with pytest.raises(DataError, match="'a' is given twice"):
        write(folder, scene(), scene())
    (folder / FILE).write_text("{")
    with pytest.raises(OmniError, match="is not JSON"):
        read_scenes(folder)
