"""The tokenizer equals the public one on plain text, and keeps control tokens out of reach."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as PublicTokenizer

from input_pipeline.tokenizer import StreamDecoder, Tokenizer
from omni_jax.errors import CheckpointError, PromptError
from tests.input_pipeline import tiny_tokenizer

PUBLIC = PublicTokenizer.from_str(tiny_tokenizer.tokenizer_json())
TEXTS = [
    "",
    "Hello world",
    "  leading\n\n\n and  inner  ",
    "12345",
    "你好，世界 🙂👩‍👩‍👧",
    "cafe\u0301 I'LL we've\r\n\t",
    "\x00\x7f",
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
marked_text = st.lists(st.one_of(any_text, st.sampled_from(tiny_tokenizer.CONTROL + tiny_tokenizer.PLAIN))).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_has_the_ids_of_the_public_tokenizer_and_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == PUBLIC.encode(text).ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@settings(max_examples=200, deadline=None)
@given(marked_text)
def test_on_request_control_tokens_are_recognised_like_in_the_public_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text, special_tokens=True)
    assert ids == PUBLIC.encode(text).ids
    assert tokenizer.decode(ids) == PUBLIC.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == PUBLIC.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(marked_text)
def test_user_text_can_never_become_a_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not {tokenizer.token_id(name) for name in tiny_tokenizer.CONTROL} & set(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_tokens_that_mean_no_control_stay_whole(tokenizer):
    assert tokenizer.encode("a<tool_call>b") == PUBLIC.encode("a<tool_call>b").ids
    assert tokenizer.decode(tokenizer.encode("<tool_call>")) == "<tool_call>"
    assert tokenizer.token_id("<|fim_prefix|>") not in tokenizer.encode("<|fim_prefix|>")


def test_vocab_and_merges_give_the_same_tokenizer(tokenizer, tmp_path):
    other = Tokenizer.load(tiny_tokenizer.write_parts(tmp_path))
    for text in TEXTS:
        assert other.encode(text) == tokenizer.encode(text)
    assert other.token_id("<|IMAGE|>") == tokenizer.token_id("<|IMAGE|>") == 1012
    assert other.decode([1002, 40], skip_special_tokens=False) == tokenizer.decode(
        [1002, 40], skip_special_tokens=False
    )


def test_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("ab"), 151859, -1]) == "ab"
    assert tokenizer.vocab_size == 1016


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1015), max_size=30), st.integers(1, 4), st.booleans())
def test_streamed_pieces_join_to_the_decoded_whole(tokenizer, ids, step, skip):
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    pieces = [decoder.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special_tokens=skip)
    assert decoder.flush() == ""


@settings(max_examples=100, deadline=None)
@given(any_text)
def test_streaming_never_shows_half_a_character(tokenizer, text):
    text = unicodedata.normalize("NFC", text.replace("\ufffd", ""))
    decoder = StreamDecoder(tokenizer)
    shown = ""
    for token in tokenizer.encode(text):
        shown += decoder.push(token)
        assert text.startswith(shown)
    assert shown + decoder.flush() == text


def test_a_character_of_several_tokens_appears_when_it_is_complete(tokenizer):
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🙂"]
    decoder.push(ids[0])
    assert decoder.flush() == "\ufffd"


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_an_unknown_control_token_is_named_beside_the_known_ones(tokenizer):
    with pytest.raises(CheckpointError, match=r"<\|speech\|>.*<\|im_start\|>"):
        tokenizer.token_id("<|speech|>")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["decoder"].update(type="WordPiece"),
        lambda content: content["model"].update(type="Unigram"),
        lambda content: content["added_tokens"][0].update(lstrip=True),
        lambda content: content["model"]["merges"].append(["no", "such token"]),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, change):
    content = json.loads(tiny_tokenizer.tokenizer_json())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json.*JSON"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_all_bytes_is_refused(tmp_path):
    tiny_tokenizer.write_parts(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match="254 of 256 bytes"):
        Tokenizer.load(tmp_path)


def test_unpaired_surrogates_are_a_prompt_error(tokenizer):
    with pytest.raises(PromptError, match="character 1"):
        tokenizer.encode("a\ud800")
