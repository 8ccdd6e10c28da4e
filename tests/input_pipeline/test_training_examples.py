"""Conversations become examples: loss on the assistant's words and their end, cut at turns, media whole."""

import unicodedata
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import request
from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
from input_pipeline.example_context import ExampleContext, sizes_of, speech_codes
from input_pipeline.examples import Sample, make_examples
from input_pipeline.messages import one_form
from input_pipeline.training_batch import RowShape
from omni_jax.errors import ConfigError, DataError
from tests.input_pipeline.media_files import numbered_frame, picture, tone
from tests.input_pipeline.training_data import (
    CONFIG,
    PROCESSOR,
    ROOM,
    VOICES,
    assistant,
    context,
    learned,
    said,
    system,
    tokenizer,
    user,
    write_media,
)

CONTEXT = context()
IMAGE = {"type": "image", "image": picture(60, 90)}
SOUND = {"type": "audio", "audio": (tone(2.5, 16000), 16000)}
FILM = {"type": "video", "video": (np.stack([numbered_frame(i, 56, 56) for i in range(8)]), 2.0)}


def words(text):
    return {"type": "text", "text": text}


def examples(*messages, context=CONTEXT, limit=ROOM, **options):
    return make_examples({"messages": list(messages)}, context, name="sample", limit=limit, **options)


def only(*messages, **options):
    (example,) = examples(*messages, **options)
    return example


def refused(*messages, kind, words, **options):
    with pytest.raises(DataError, match=words) as caught:
        examples(*messages, **options)
    assert caught.value.kind == kind
    assert str(caught.value).startswith("sample")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"))


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_end_of_the_turn_is_in_the_loss_and_the_line_break_after_it_is_not():
    example = only(user("Hi"), assistant("Hello."))
    names = [tokenizer().decode([i], skip_special_tokens=False) for i in example.token_ids]
    assert learned(example) == "Hello.<|im_end|>"
    assert names[-2:] == ["<|im_end|>", "\n"] and example.weights[-2:].tolist() == [1, 0]
    assert example.weights.dtype == np.float32


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
contents = st.one_of(texts, st.lists(st.one_of(texts.map(words), st.just(IMAGE)), max_size=3))
turns = st.tuples(contents, texts.filter(bool), st.sampled_from([None, True, False]))


@settings(max_examples=120, deadline=None)
@given(st.lists(turns, min_size=1, max_size=4), st.one_of(st.none(), texts))
def test_what_is_learned_is_what_the_assistant_says(exchanges, system_text):
    messages = [] if system_text is None else [system(system_text)]
    wanted = ""
    for asked, answer, loss in exchanges:
        messages += [user(asked), assistant(answer, **({} if loss is None else {"loss": loss}))]
        wanted += "" if loss is False else unicodedata.normalize("NFC", answer) + "<|im_end|>"
    if wanted:
        assert learned(only(*messages)) == wanted
    else:
        refused(*messages, kind="empty mask", words="nothing to learn")


def test_tokens_and_positions_are_those_of_a_prompt():
    messages = [user([IMAGE, words("What?")]), assistant("A cat."), user([SOUND, FILM]), assistant("Yes.")]
    example = only(*messages)
    prompt = request.prepare(messages, tokenizer(), CONFIG, PROCESSOR, add_generation_prompt=False)
    for name in ("token_ids", "position_ids", "audio_row", "vision_row"):
        np.testing.assert_array_equal(getattr(example, name), getattr(prompt, name))
    for ours, theirs in zip(example.audio, prompt.audio, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(example.vision, prompt.vision, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_an_answer_that_begins_with_a_line_break_follows_the_prompt_that_generation_uses():
    example = only(user("Hi"), assistant("\nHello."))
    prompt = request.prepare([user("Hi")], tokenizer(), CONFIG, PROCESSOR).token_ids
    first = int(np.flatnonzero(example.weights)[0])
    np.testing.assert_array_equal(example.token_ids[:first], prompt)
    assert learned(example) == "\nHello.<|im_end|>"


def test_only_the_last_turn_may_be_trained():
    example = only(user("a"), assistant("one"), user("b"), assistant("two"), context=context(train_on="last"))
    assert learned(example) == "two<|im_end|>"


@pytest.mark.parametrize("text", [None, "Be brief."])
def test_the_system_turn_of_conversations_without_one(text):
    whole = [user("a"), assistant("one")]
    written = tokenizer().decode(only(*whole, context=context(default_system=text)).token_ids)
    assert written == ("" if text is None else f"system\n{text}\n") + "user\na\nassistant\none\n"
    assert DEFAULT_SYSTEM_TEXT in tokenizer().decode(only(*whole).token_ids)


def test_a_plain_text_is_learned_whole_and_ends():
    (example,) = make_examples({"text": "one two <|im_end|>"}, CONTEXT, name="t", limit=ROOM)
    assert tokenizer().decode(example.token_ids, skip_special_tokens=False) == "one two <|im_end|><|endoftext|>"
    assert tokenizer().token_id("<|im_end|>") not in example.token_ids
    assert example.weights.tolist() == [0] + [1] * (len(example.token_ids) - 1)
    np.testing.assert_array_equal(example.position_ids, np.tile(np.arange(len(example.token_ids)), (3, 1)))
    assert (example.audio, example.vision, example.speech) == ((), (), ())


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), st.integers(3, 20))
def test_a_long_text_is_cut_without_losing_a_token(text, room):
    whole = make_examples({"text": text}, CONTEXT, name="t", limit=ROOM)[0]
    parts = make_examples({"text": text}, CONTEXT, name="t", limit=RowShape(room))
    assert all(2 <= len(part.token_ids) <= room for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.token_ids for part in parts]), whole.token_ids)
    for part, piece in zip(parts, Sample({"text": text}, CONTEXT, name="t").pieces(RowShape(room))[0], strict=True):
        (again,) = make_examples(
            Sample({"text": text}, CONTEXT, name="t").cut(piece.start, piece.stop), CONTEXT, name="t", limit=ROOM
        )
        np.testing.assert_array_equal(part.token_ids, again.token_ids)


# --- sizes and cuts ---------------------------------------------------------------------------------------------------


def test_sizes_are_counted_after_expansion(media):
    messages = one_form(
        {
            "messages": [user("<image><audio><video>"), said("Ok.", codes=[1, 2, 3])],
            "images": ["cat.png"],
            "audios": ["beep.wav"],
            "videos": ["loud.mp4"],
        },
        media,
    )["messages"]
    example = only(*messages, context=context(use_audio_in_video=True))
    sizes = sizes_of(example, CONFIG)
    clip, track = (mel.shape[1] for mel in example.audio)
    assert clip == 250 and 180 < track < 200
    assert sizes.audio_blocks == 2 + 1
    assert sizes.patches == 24 + 2 * 16  # 2 s at 2 frames a second: two pairs of 56 x 56
    assert sizes.tokens == len(example.token_ids) > 62 + 45 + 6 + 8
    assert sizes.speech == example.reply[0] + 2 + 3
    (piece,), _ = Sample({"messages": messages}, context(use_audio_in_video=True), name="s").pieces(ROOM)
    assert piece.sizes == sizes


def many(count, content="word " * 10):
    return [message for i in range(count) for message in (user(f"{i} {content}"), assistant(f"answer {i}"))]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(40, 160))
def test_long_conversations_are_cut_between_exchanges(lengths, room):
    messages = [system("Be brief.")]
    for i, length in enumerate(lengths):
        messages += [user(f"question {i} " + "word " * length), assistant(f"answer {i}")]
    rejected = []
    parts = examples(*messages, limit=RowShape(room), rejected=rejected)
    begin = tokenizer().encode("system\nBe brief.")
    said_there = []
    for part in parts:
        assert len(part.token_ids) <= room
        assert part.token_ids[1 : 1 + len(begin)].tolist() == begin
        assert part.position_ids[:, 0].tolist() == [0, 0, 0]
        said_there += [int(answer.split()[1]) for answer in learned(part).split("<|im_end|>")[:-1]]
    alone = [len(only(messages[0], *messages[1 + 2 * i : 3 + 2 * i]).token_ids) for i in range(len(lengths))]
    assert said_there == [i for i, size in enumerate(alone) if size <= room]
    assert len(rejected) == len(lengths) - len(said_there)


def test_groups_are_as_large_as_they_can_be():
    messages = many(4)
    total = len(only(*messages).token_ids)
    pair = len(only(*messages[:4]).token_ids)
    assert [len(e.token_ids) for e in examples(*messages, limit=RowShape(total))] == [total]
    assert [learned(e) for e in examples(*messages, limit=RowShape(pair))] == [
        "answer 0<|im_end|>answer 1<|im_end|>",
        "answer 2<|im_end|>answer 3<|im_end|>",
    ]
    assert [e.name for e in examples(*messages, limit=RowShape(pair))] == [
        "sample, exchanges 1-2",
        "sample, exchanges 3-4",
    ]


def test_an_exchange_that_is_too_long_is_named_with_its_sizes_and_the_others_stay():
    messages = [*many(1), user([SOUND, words("?")]), assistant("long"), *many(1)]
    limit = replace(ROOM, audio_blocks=1)
    rejected = []
    parts = examples(*messages, limit=limit, rejected=rejected)
    assert [part.name for part in parts] == ["sample, exchange 1", "sample, exchange 3"]
    assert [(each.name, each.kind) for each in rejected] == [("sample, exchange 2", "too long")]
    assert "2 audio_blocks (at most 1)" in rejected[0].reason
    refused(*messages, limit=limit, kind="too long", words=r"exchange 2: .*2 audio_blocks \(at most 1\)")


@pytest.mark.parametrize(
    "item, kind, over",
    [(IMAGE, "patches", "24 patches"), (FILM, "patches", "64 patches"), (SOUND, "audio_blocks", "2 audio_blocks")],
)
def test_media_that_do_not_fit_are_not_cut(item, kind, over):
    need = getattr(sizes_of(only(user([item]), assistant("a")), CONFIG), kind)
    assert len(examples(user([item]), assistant("a"), limit=replace(ROOM, **{kind: need}))) == 1
    refused(user([item]), assistant("a"), limit=replace(ROOM, **{kind: need - 1}), kind="too long", words=over)


def test_films_that_reach_beyond_the_positions_are_too_long():
    film = {"type": "video", "video": (np.stack([numbered_frame(i, 28, 28) for i in range(4)]), 0.001)}
    refused(user([film]), assistant("a"), kind="too long", words="position")


def test_a_part_without_anything_to_learn_is_reported():
    messages = [*many(1), *many(1)]
    messages[1] = assistant("context", loss=False)
    rejected = []
    (part,) = examples(*messages, limit=RowShape(len(only(*many(1)).token_ids)), rejected=rejected)
    assert learned(part) == "answer 0<|im_end|>"
    assert [(each.name, each.kind) for each in rejected] == [("sample, exchange 1", "empty mask")]


# --- speech -----------------------------------------------------------------------------------------------------------


def test_a_spoken_answer_says_the_words_of_the_last_turn():
    example = only(user("a"), assistant("one"), user("b"), said("Two, three.", codes=np.array([7, 8, 9])))
    assert tokenizer().decode(example.token_ids[slice(*example.reply)]) == "Two, three."
    (answer,) = example.speech
    assert (answer.voice_token, answer.codes.tolist(), answer.codes.dtype) == (VOICES["Chelsie"], [7, 8, 9], np.int32)
    assert learned(example) == "one<|im_end|>Two, three.<|im_end|>"
    assert sizes_of(example, CONFIG).speech == example.reply[0] + 2 + 3


def test_a_spoken_answer_may_be_learned_without_its_words():
    example = only(user("a"), {**said("Two.", codes=[7]), "loss": False})
    assert not example.weights.any() and len(example.speech) == 1


def test_speech_may_be_left_out_of_runs_that_train_the_thinker():
    example = only(user("a"), said("Two.", codes=[7], voice="Nobody"), context=context(with_speech=False))
    assert (example.speech, example.reply, sizes_of(example, CONFIG).speech) == ((), None, 0)
    assert learned(example) == "Two.<|im_end|>"


def test_preferences_hold_two_answers_and_the_reference():
    example = only(user("a"), said("Two.", chosen=[1, 2], rejected=[3, 4, 5], reference=[-1.5, -2]))
    assert [answer.codes.tolist() for answer in example.speech] == [[1, 2], [3, 4, 5]]
    assert example.reference == (-1.5, -2.0)
    sizes = sizes_of(example, CONFIG)
    assert (sizes.speech, sizes.pairs) == (2 * (example.reply[0] + 2) + 5, 1)
    assert only(user("a"), said("Two.", chosen=[1], rejected=[2])).reference is None


def test_speech_stays_with_its_turn_when_a_conversation_is_cut():
    messages = [*many(3), user("b"), said("Two.", codes=[7, 8])]
    limit = replace(ROOM, tokens=len(only(*messages[:4]).token_ids))
    *before, last = examples(*messages, limit=limit)
    assert not any(part.speech or part.reply for part in before)
    assert tokenizer().decode(last.token_ids[slice(*last.reply)]) == "Two."
    assert len(last.speech) == 1
    # the Talker's room alone can make a cut necessary too
    tight = replace(ROOM, speech=sizes_of(only(*messages), CONFIG).speech - 1)
    assert len(examples(*messages, limit=tight)) == 2


def test_reference_log_probabilities_belong_to_the_whole_prompt():
    pair = said("Two.", chosen=[1], rejected=[2], reference=[-1, -2])
    room = replace(ROOM, tokens=len(only(*many(2)).token_ids))
    refused(*many(3), user("b"), pair, limit=room, kind="too long", words="reference")


@pytest.mark.parametrize(
    "message, complaint",
    [
        (said("a", codes=[1, 128]), "code 128 at index 1 is outside 0 … 127"),
        (said("a", codes=[-1]), "code -1 at index 0"),
        (said("a", codes=[]), "must be a list of codes"),
        (said("a", codes=[1.5]), "whole numbers"),
        (said("a", codes=[True]), "whole numbers"),
        (said("a", codes=[1], chosen=[1]), "either 'codes'"),
        (said("a", chosen=[1]), "either 'codes'"),
        (said("a"), "either 'codes'"),
        (said("a", codes=[1], voice="Nobody"), "no voice 'Nobody'. Voices: Chelsie, Ethan"),
        (said("a", codes=[1], speed=2), "unknown key 'speed'"),
        (said("a", codes=[1], reference=[1.0, 2.0]), "'reference'"),
        (said("a", chosen=[1], rejected=[2], reference=[float("nan"), 0.0]), "'reference'"),
        (said("", codes=[1]), "no words"),
        (assistant(""), "no words"),
        (assistant([IMAGE, words("a")]), "item 1: an assistant's turn holds text"),
        (assistant([*said("a", codes=[1])["content"], said("a", codes=[1])["content"][1]]), "2 items 'speech'"),
    ],
)
def test_bad_answers_are_told(message, complaint):
    refused(user("a"), message, kind="malformed", words=complaint)


def test_speech_in_another_place_or_for_a_model_that_is_mute():
    refused(user(said("a", codes=[1])["content"]), assistant("b"), kind="malformed", words="what the assistant says")
    refused(user("a"), said("a", codes=[1]), *many(1), kind="malformed", words="only the last answer")
    mute = ExampleContext(tokenizer(), replace(CONFIG, talker_config=None), PROCESSOR)
    refused(user("a"), said("a", codes=[1]), kind="malformed", words="no Talker", context=mute)
    assert speech_codes(mute.config) == 0 and speech_codes(CONFIG) == 128


# --- roles and media --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages, complaint",
    [
        ([assistant("a")], "message 1 is 'assistant'"),
        ([user("a")], "ends with a user"),
        ([system("a")], "no turn of a user"),
        ([user("a"), user("b"), assistant("c")], "message 2 is 'user'"),
        ([system("s"), user("a"), assistant("b"), system("c"), assistant("d")], "message 4 is 'system'"),
        ([user("a"), {"role": "tool", "content": "b"}], "role 'tool' is not known"),
    ],
)
def test_wrong_roles_are_told(messages, complaint):
    refused(*messages, kind="roles", words=complaint)


@pytest.mark.parametrize(
    "item, kind, complaint",
    [
        ({"type": "image", "image": "none.png"}, "missing media", "message 1, item 1: none.png: no such file"),
        ({"type": "audio", "audio": "https://a.b/c.wav"}, "missing media", "not downloaded"),
        ({"type": "image", "image": "{media}/broken.png"}, "corrupt media", "broken.png"),
        ({"type": "audio", "audio": b"RIFF"}, "corrupt media", "audio of message 1, item 1: media bytes"),
        ({"type": "video", "video": "{media}/silent.mp4", "use_audio": True}, "corrupt media", "no sound track"),
        ({"type": "image", "image": "{media}/cat.png", "size": 3}, "malformed", "unknown key 'size'"),
        ({"type": "smell"}, "malformed", "type 'smell'"),
    ],
)
def test_bad_media_are_told(media, item, kind, complaint):
    item = {key: value.format(media=media) if isinstance(value, str) else value for key, value in item.items()}
    refused(user([item]), assistant("a"), kind=kind, words=complaint)


def test_sound_tracks_are_heard_where_there_are_any(media):
    def clips(name, context, **options):
        item = {"type": "video", "video": str(media / name), **options}
        return len(only(user([item]), assistant("a"), context=context).audio)

    hearing = context(use_audio_in_video=True)
    assert [clips(name, hearing) for name in ("loud.mp4", "silent.mp4")] == [1, 0]
    assert clips("loud.mp4", CONTEXT) == clips("loud.mp4", hearing, use_audio=False) == 0
    assert clips("loud.mp4", CONTEXT, use_audio=True) == 1


def test_media_may_be_files_bytes_or_arrays(media):
    def patches(source):
        return only(user([{"type": "image", "image": source}]), assistant("a")).vision[0].pixels

    file = media / "cat.png"
    np.testing.assert_array_equal(patches(str(file)), patches(file.read_bytes()))
    np.testing.assert_array_equal(patches(str(file)), patches(picture(60, 90)))
    grey = picture(60, 90)[..., :1]
    np.testing.assert_array_equal(patches(grey), patches(np.repeat(grey, 3, axis=2)))


def test_sound_of_64_bits_has_no_scale():
    samples = (tone(1.0, 16000) * 32767).astype(np.int64)
    refused(
        user([{"type": "audio", "audio": (samples, 16000)}]), assistant("a"), kind="corrupt media", words="full scale"
    )


def test_text_that_is_no_unicode_and_media_in_the_system_turn():
    refused(user("\ud800"), assistant("a"), kind="malformed", words="unpaired surrogate")
    refused({"role": "system", "content": [IMAGE]}, *many(1), kind="malformed", words="system turn holds text")


# --- the context ------------------------------------------------------------------------------------------------------


def test_facts_tell_contexts_apart():
    def key(**options):
        return context(**options).facts

    assert key() == key()
    changes = [{"train_on": "last"}, {"default_system": None}, {"use_audio_in_video": True}]
    assert all(key(**change) != key() for change in changes)
    other = replace(PROCESSOR, image_max_pixels=100 * 784)
    assert ExampleContext(tokenizer(), CONFIG, other).facts["processor"] != key()["processor"]
    deeper = replace(CONFIG.thinker_config.text_config, num_hidden_layers=9)
    same = replace(CONFIG, thinker_config=replace(CONFIG.thinker_config, text_config=deeper))
    assert ExampleContext(tokenizer(), same, PROCESSOR).facts["model"] == key()["model"]


def test_a_context_is_checked_when_it_is_made():
    with pytest.raises(ConfigError, match="train_on"):
        context(train_on="first")
    with pytest.raises(ConfigError, match="no rows"):
        ExampleContext(tokenizer(), CONFIG, PROCESSOR, voices={"Far": 10**6})
    thinker = replace(CONFIG.thinker_config, audio_token_id=3)
    with pytest.raises(ConfigError, match="<|AUDIO|>"):
        ExampleContext(tokenizer(), replace(CONFIG, thinker_config=thinker), PROCESSOR)


def test_sizes_line_up_with_the_columns_of_a_source():
    sizes = sizes_of(only(user([SOUND, IMAGE]), said("a", codes=[1])), CONFIG)
    assert astuple(sizes) == (sizes.tokens, sizes.audio_blocks, sizes.patches, sizes.speech, sizes.pairs)
