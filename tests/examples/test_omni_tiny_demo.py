"""The scenes of the demo, as they are taken out of Omni-tiny's test data."""

import json

import numpy as np
import pytest

from examples.omni_tiny import demo_media
from examples.omni_tiny.demo_media import CREDITS, RULES, Args
from examples.omni_tiny.files import write_lines
from examples.omni_tiny.held_out import HeldOut
from omni_jax.cli.demo import SCENES
from omni_jax.cli.demo_scenes import FILE, read_scenes
from omni_jax.errors import DataError

LABELS = np.tile(np.arange(10), 1000).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All test lines, for digits that come in turn; their media are empty files."""
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
    made, shipped = read_scenes(tmp_path / "demo"), read_scenes(SCENES)
    assert [(s.name, s.title, s.voice, s.among) for s in made] == [(s.name, s.title, s.voice, s.among) for s in shipped]
    assert [[(m.kind, m.file.name) for m in s.media] for s in made] == [
        [(m.kind, m.file.name) for m in s.media] for s in shipped
    ]


def test_credits_name_the_recording(data, tmp_path):
    demo_media.main(Args(data, tmp_path / "demo"))
    told = (tmp_path / "demo" / CREDITS).read_text()
    assert "same-number.flac: 0_theo_0.wav of the Free Spoken Digit Dataset" in told
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
