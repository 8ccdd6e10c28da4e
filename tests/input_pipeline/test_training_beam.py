"""Apache Beam makes the shards that one machine makes (where Beam is installed)."""

from pathlib import Path

import pytest

from input_pipeline.jsonl import JsonLines
from input_pipeline.prepare_shards import Preparation, begin, make_shards
from tests.input_pipeline.training_data import ROOM, context, mixed_lines, write_lines, write_media

pytest.importorskip("apache_beam")
from input_pipeline.prepare_beam import make_shards_with_beam


def test_beam_makes_the_same_shards(tmp_path):
    data = write_lines(write_media(tmp_path / "data") / "mixed.jsonl", mixed_lines() * 2)

    def preparation(name: str) -> Preparation:
        return Preparation(JsonLines(data), context(), ROOM, Path(tmp_path / name), 3)

    ours, theirs = preparation("ours"), preparation("theirs")
    begin(ours)
    expected = make_shards(ours, range(3))
    assert make_shards_with_beam(theirs, runner="DirectRunner") == expected
    for file in (tmp_path / "ours").iterdir():
        assert file.read_bytes() == (tmp_path / "theirs" / file.name).read_bytes()
