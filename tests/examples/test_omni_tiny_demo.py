"""The scenes of the demo, as they are taken out of Omni-tiny's test data."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from examples.omni_tiny import demo_media
from examples.omni_tiny.demo_media import CREDITS, RULES, Args
from examples.omni_tiny.files import write_lines
from examples.omni_tiny.held_out import HeldOut
from examples.omni_tiny.sentences import DIGITS
from omni_jax.cli.demo import SCENES
from omni_jax.cli.demo_scenes import FILE, read_scenes
from omni_jax.errors import DataError

# What the first 10,000 handwritten digits of `packages.handwriting` are: so many of each, in its order.
COUNTS = (1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978)
LABELS = np.repeat(np.arange(10), COUNTS)[np.random.default_rng(0).permutation(10_000)].astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All test lines; their media are empty files."""
    folder = tmp_path_factory.mktemp("data")
    for name, lines in HeldOut(0, LABELS).sets().items():
        write_lines(folder / f"test_{name}.jsonl", lines)
        for item in (item for line in lines for item in line["messages"][-1]["content"]):
            if item["type"] != "text" and name in {rule.set for rule in RULES}:
                path = folder / item[item["type"]]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return folder


@pytest.fixture(autouse=True)
def handwriting(monkeypatch):
    monkeypatch.setattr(demo_media.packages, "handwriting", lambda tools: (None, LABELS))


def test_scenes_are_those_that_are_shipped(data, tmp_path):
    demo_media.main(Args(data, tmp_path / "demo"))
    made, shipped = ([scene_facts(scene) for scene in read_scenes(d)] for d in (tmp_path / "demo", SCENES))
    for one, other in zip(made, shipped, strict=True):
        assert one == other


def scene_facts(scene):
    """All but credits, without the media's folder."""
    facts = asdict(scene) | {"media": [asdict(medium) | {"file": medium.file.name} for medium in scene.media]}
    del facts["credits"]
    return facts


def test_numbers_that_differ_have_to_be_told():
    yes, no = (
        {"kind": "same", "answer": word, "reference": text}
        for word, text in (("yes", "I see one and I hear one, so yes."), ("no", "I see six and I hear one, so no."))
    )
    assert demo_media._decisive(yes)[0] == "one one yes" and demo_media._decisive(no)[0] == "six one no"
    assert set(DIGITS) | {"yes", "no"} == set(demo_media._decisive(yes)[1]) == set(demo_media._decisive(no)[1])
    assert demo_media._decisive({"kind": "way", "answer": "left"}) == ("left", ["left", "right", "up", "down"])


def test_lines_of_other_data_are_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_media.HeldOut, "media", lambda self: iter(()))
    with pytest.raises(DataError, match=r"\.png in test_converses_same\.jsonl is of other data .* Run it again"):
        demo_media.main(Args(data, tmp_path / "demo"))


def test_credits_name_the_recording(data, tmp_path):
    demo_media.main(Args(data, tmp_path / "demo"))
    told = (tmp_path / "demo" / CREDITS).read_text()
    assert "same-number.flac: 1_jackson_0.wav of the Free Spoken Digit Dataset" in told
    assert "film.mp4: its sound: " in told and "of Kokoro-82M (hexgrad, Apache-2.0)" in told
    assert told.count("CC BY-SA 4.0; changed:") == 3


def test_an_earlier_folder_is_replaced_and_nothing_else(data, tmp_path):
    target = tmp_path / "demo"
    demo_media.main(Args(data, target))
    (target / "old.png").touch()
    demo_media.main(Args(data, target))
    assert not (target / "old.png").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").touch()
    with pytest.raises(DataError, match="holds something else than scenes"):
        demo_media.main(Args(data, other))
    assert (other / "letter.txt").exists()


def test_a_missing_file_leaves_the_old_scenes(data, tmp_path):
    target = tmp_path / "demo"
    demo_media.main(Args(data, target))
    (line,) = [each for each in json.loads((target / FILE).read_text())["scenes"] if each["name"] == "repeat"]
    with pytest.raises(DataError, match="cannot be read"):
        demo_media.main(Args(tmp_path, target))
    assert line in json.loads((target / FILE).read_text())["scenes"]
