"""Lines of JSON become conversations of one form; whatever is wrong with one is told with its line."""

import base64
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.jsonl import JsonLines
from input_pipeline.messages import one_form, with_sources
from omni_jax.errors import DataError
from tests.input_pipeline.training_data import assistant, said, user, write_lines


def conversation(*contents, **lists):
    return {"messages": [user(content) for content in contents], **lists}


def test_placeholders_are_filled_in_order_with_paths_from_the_folder(tmp_path):
    lists = {"images": ["a.png", "/abs/b.png"], "audios": ["c.wav"], "videos": []}
    (first, second) = one_form(conversation("<image>x<audio>", "y<image>", **lists), tmp_path)["messages"]
    assert first["content"] == [
        {"type": "image", "image": str(tmp_path / "a.png")},
        {"type": "text", "text": "x"},
        {"type": "audio", "audio": str(tmp_path / "c.wav")},
    ]
    assert second["content"] == [{"type": "text", "text": "y"}, {"type": "image", "image": "/abs/b.png"}]


def test_items_keep_their_order_and_texts_of_items_are_literal(tmp_path):
    items = [
        {"type": "text", "text": "<image> is a tag"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "video", "video": "film.mp4", "use_audio": True},
        {"type": "audio", "audio": {"path": None, "bytes": b"RIFF"}},
    ]
    (message,) = one_form(conversation(items), tmp_path)["messages"]
    assert message["content"] == [
        items[0],
        {"type": "image_url", "image_url": str(tmp_path / "a.png")},
        items[2],
        {"type": "video", "video": str(tmp_path / "film.mp4"), "use_audio": True},
        {"type": "audio", "audio": b"RIFF"},
    ]


def test_the_form_is_stable_and_media_can_be_exchanged(tmp_path):
    raw = conversation("<image>x", [{"type": "video", "video": "f.mp4"}], images=["a.png"])
    raw["messages"].append(assistant("y", loss=False))
    once = one_form(raw, tmp_path)
    assert one_form(once, tmp_path / "elsewhere") == once
    assert once["messages"][-1] == {"role": "assistant", "content": "y", "loss": False}
    changed = with_sources(once["messages"], lambda source: source.rpartition("/")[2].encode())
    assert [item for message in changed[:2] for item in message["content"] if item["type"] != "text"] == [
        {"type": "image", "image": b"a.png"},
        {"type": "video", "video": b"f.mp4"},
    ]


def test_codes_are_read_from_files(tmp_path):
    np.save(tmp_path / "codes.npy", np.array([3, 1, 2], np.int16))
    message = one_form({"messages": [said("Hi", codes="codes.npy")]}, tmp_path)["messages"][0]
    assert message["content"][1] == {"type": "speech", "voice": "Chelsie", "codes": [3, 1, 2]}


@pytest.mark.parametrize(
    "raw, kind, complaint",
    [
        ([1], "malformed", "expected an object"),
        ({}, "malformed", "either 'messages' or 'text'"),
        ({"messages": [user("a")], "text": "b"}, "malformed", "found messages and text"),
        ({"messages": []}, "malformed", "at least one message"),
        ({"messages": "a"}, "malformed", "at least one message"),
        ({"messages": ["a"]}, "malformed", "message 1: expected an object with 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "malformed", "message 1"),
        ({"messages": [user(None)]}, "malformed", "message 1: 'content' must be"),
        ({"messages": [user(["a"])]}, "malformed", "message 1, item 1: expected an object"),
        ({"messages": [assistant("a", loss="no")]}, "malformed", "'loss' must be true or false"),
        ({"messages": [assistant("", tool_calls=[1])]}, "malformed", "tool_calls"),
        (conversation("<image>"), "malformed", "more placeholders <image>"),
        (conversation("<image><image>", images=["a"]), "malformed", "more placeholders <image>"),
        (conversation("<audio>", audios=["a", "b"]), "malformed", "1 more of 'audios'"),
        (conversation("a", images="a.png"), "malformed", "'images' must be a list"),
        (conversation("<image>", images=[None]), "malformed", r"images\[0\]: the source"),
        (conversation("a", image="a.png"), "malformed", "Did you mean 'images'"),
        (conversation("a", rejected_response="b"), "malformed", "spoken answers"),
        ({"text": ""}, "malformed", "'text' must be"),
        ({"text": "a", "images": ["b"]}, "malformed", "no place for 'images'"),
        ({"messages": [said("a", codes="none.npy")]}, "missing media", "none.npy: no such file"),
        ({"messages": [said("a", codes="bad.npy")]}, "corrupt media", "bad.npy: not a .npy"),
        ({"messages": [said("a", codes="wide.npy")]}, "corrupt media", "wide.npy: .* integers"),
    ],
)
def test_mistakes_are_told(tmp_path, raw, kind, complaint):
    (tmp_path / "bad.npy").write_bytes(b"not numpy")
    np.save(tmp_path / "wide.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=complaint) as caught:
        one_form(raw, tmp_path)
    assert caught.value.kind == kind


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(["", "  ", "\t"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=30)),
        max_size=12,
    ),
    st.booleans(),
)
def test_each_line_is_read_without_the_others(tmp_path_factory, texts, ends_with_newline):
    file = tmp_path_factory.mktemp("lines") / "some.jsonl"
    rows = [text if not text.strip() and len(text) < 3 else json.dumps({"text": text or "x"}) for text in texts]
    rows.append(json.dumps({"text": "last"}))
    file.write_bytes(("\n".join(rows) + "\n" * ends_with_newline).encode())
    lines = pickle.loads(pickle.dumps(JsonLines(file)))
    real = [(number, row) for number, row in enumerate(rows, start=1) if row.strip()]
    assert len(lines) == len(real)
    for index in reversed(range(len(real))):
        number, row = real[index]
        assert lines.where(index) == f"some.jsonl:{number}"
        assert lines.read(index) == json.loads(row)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    lines = JsonLines(file)
    assert [(lines.where(i), lines.read(i)["text"]) for i in range(2)] == [
        ("windows.jsonl:1", "a"),
        ("windows.jsonl:3", "b"),
    ]


@pytest.mark.parametrize("line", ['{"messages": [', "[" * 100000, '{"text": "\\ud8"}', "\u0000"])
def test_a_line_that_is_not_json(tmp_path, line):
    lines = JsonLines(write_lines(tmp_path / "bad.jsonl", [{"text": "good"}, line]))
    assert lines.read(0) == {"text": "good"}
    with pytest.raises(DataError, match="not JSON"):
        lines.read(1)


def test_a_missing_and_an_empty_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        JsonLines(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl: no lines"):
        JsonLines(tmp_path / "empty.jsonl")


def test_recordings_in_base64_pass_through(tmp_path):
    item = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    assert one_form(conversation([item]), tmp_path)["messages"][0]["content"] == [item]
