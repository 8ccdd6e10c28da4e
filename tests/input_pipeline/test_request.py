"""Messages become a request whose tokens, positions and features agree with each other."""

import dataclasses

import numpy as np
import pytest

from input_pipeline import request as request_module
from input_pipeline.chat import placeholder_ids, render
from input_pipeline.mel import log_mel
from input_pipeline.patches import Patches, image_patches
from input_pipeline.request import VideoFeatures, assemble, audio_tokens, prepare
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import ProcessorConfig
from omni_jax.errors import CapacityError, ConfigError, MediaError, PromptError
from omni_jax.presets import preset
from tests.input_pipeline import tiny_tokenizer
from tests.input_pipeline.media_files import numbered_frame, tone, write_film

CONFIG = preset("tiny")
IDS = CONFIG.thinker_config
AREA = 28 * 28
PROCESSOR = ProcessorConfig(
    image_min_pixels=AREA, image_max_pixels=64 * AREA, video_min_pixels=4 * AREA, video_max_pixels=16 * AREA
)
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)  # 2 x 3 cells
SOUND = tone(1.0, 16000)
FRAMES = (np.stack([numbered_frame(i, 56, 56) for i in range(8)]), 2.0)  # 4 s


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    frames = [numbered_frame(i, 56, 56) for i in range(30)]
    loud = write_film(folder / "loud.mp4", frames, fps=10, sound=tone(3.0, 48000))
    return {"loud": loud, "silent": write_film(folder / "silent.mp4", frames, fps=10)}


def item(kind, source, **options):
    return {"type": kind, kind: source, **options}


def user(*items):
    return [{"role": "user", "content": list(items)}]


WORDS = item("text", "What is this?")


def count(request, token):
    return int((request.token_ids == token).sum())


def test_text_alone_counts_from_zero(tokenizer):
    made = prepare(user(WORDS), tokenizer, CONFIG, PROCESSOR)
    assert made.token_ids.tolist() == placeholder_ids(render(user(WORDS), tokenizer), tokenizer)
    assert made.token_ids.dtype == made.position_ids.dtype == made.audio_row.dtype == made.vision_row.dtype == np.int32
    np.testing.assert_array_equal(
        made.position_ids, np.broadcast_to(np.arange(len(made.token_ids)), (3, len(made.token_ids)))
    )
    assert made.next_position == len(made.token_ids)
    assert made.audio == made.vision == ()
    assert set(made.stage_seconds) == {"text", "load", "features", "layout"}


def test_media_come_in_order_of_appearance_with_one_row_per_token(tokenizer):
    messages = user(
        item("audio", SOUND), WORDS, item("video", FRAMES), item("image", PICTURE), item("audio", SOUND[:8000])
    )
    made = prepare(messages, tokenizer, CONFIG, PROCESSOR)
    assert [mel.shape for mel in made.audio] == [(128, 100), (128, 50)]
    assert [patches.grid for patches in made.vision] == [(4, 4, 4), (1, 4, 6)]
    assert count(made, IDS.audio_token_id) == 25 + 12
    assert (count(made, IDS.video_token_id), count(made, IDS.image_token_id)) == (16, 6)
    np.testing.assert_array_equal(made.audio_row[made.audio_row >= 0], np.arange(37))
    np.testing.assert_array_equal(made.vision_row[made.vision_row >= 0], np.arange(22))
    np.testing.assert_array_equal(made.vision_row >= 16, made.token_ids == IDS.image_token_id)
    np.testing.assert_array_equal(made.audio[1], log_mel(SOUND[:8000], PROCESSOR))
    np.testing.assert_array_equal(made.vision[1].pixels, image_patches(PICTURE, PROCESSOR).pixels)


def test_both_doors_lead_to_the_same_request(tokenizer):
    messages = user(item("image", PICTURE), WORDS, item("video", FRAMES), item("audio", SOUND))
    made = prepare(messages, tokenizer, CONFIG, PROCESSOR)
    image, video = made.vision
    again = assemble(
        placeholder_ids(render(messages, tokenizer), tokenizer),
        CONFIG,
        audio=made.audio,
        images=[image],
        videos=[VideoFeatures(video, 1.0)],
    )
    for name in ("token_ids", "position_ids", "audio_row", "vision_row"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert again.next_position == made.next_position
    assert again.vision[0] is image and again.vision[1] is video


def test_time_in_a_film_follows_its_own_frame_rate(tokenizer):
    frames = FRAMES[0]
    for fps, step in ((2.0, 25), (1.0, 50)):
        made = prepare(user(item("video", (frames, fps), fps=fps)), tokenizer, CONFIG, PROCESSOR)
        times = np.unique(made.position_ids[0, made.token_ids == IDS.video_token_id])
        assert np.diff(times).tolist() == [step] * 3


def test_a_film_is_heard_when_asked(tokenizer, films):
    deaf = prepare(user(item("video", films["loud"])), tokenizer, CONFIG, PROCESSOR)
    assert deaf.audio == () and count(deaf, IDS.audio_token_id) == 0
    by_option = prepare(user(item("video", films["loud"])), tokenizer, CONFIG, PROCESSOR, use_audio_in_video=True)
    by_item = prepare(user(item("video", films["loud"], use_audio=True)), tokenizer, CONFIG, PROCESSOR)
    np.testing.assert_array_equal(by_option.token_ids, by_item.token_ids)
    assert count(by_item, IDS.audio_token_id) == audio_tokens(by_item.audio[0].shape[1]) > 70
    ids = by_item.token_ids.tolist()
    first = ids.index(IDS.vision_start_token_id)
    assert ids[first : first + 3] == [IDS.vision_start_token_id, IDS.audio_start_token_id, IDS.video_token_id]
    assert by_item.position_ids[0, first] == by_item.position_ids[0, first + 1]
    heard = np.isin(by_item.token_ids, [IDS.audio_token_id, IDS.video_token_id])
    kinds = by_item.token_ids[heard]
    assert 3 <= np.count_nonzero(np.diff(kinds)) <= 4  # pictures, sound, pictures, sound


def test_a_film_in_particular_may_stay_unheard(tokenizer, films):
    messages = user(item("video", films["silent"], use_audio=False), item("video", films["loud"]))
    made = prepare(messages, tokenizer, CONFIG, PROCESSOR, use_audio_in_video=True)
    assert len(made.vision) == 2 and len(made.audio) == 1


def test_a_silent_film_cannot_be_heard(tokenizer, films):
    with pytest.raises(MediaError, match="silent.mp4 has no sound track, but --use-audio-in-video"):
        prepare(user(item("video", films["silent"])), tokenizer, CONFIG, PROCESSOR, use_audio_in_video=True)


def test_a_placeholder_in_user_text_is_text(tokenizer):
    made = prepare(user(item("text", "<|IMAGE|>"), item("image", PICTURE)), tokenizer, CONFIG, PROCESSOR)
    assert len(made.vision) == 1 and count(made, IDS.image_token_id) == 6
    assert "<|IMAGE|>" in tokenizer.decode(made.token_ids)


def test_clips_too_short_for_a_token_are_named(tokenizer):
    with pytest.raises(MediaError, match="audio of message 1, item 2: 2 mel frames"):
        prepare(user(WORDS, item("audio", SOUND[:320])), tokenizer, CONFIG, PROCESSOR)


# Capacity


def test_a_prompt_over_the_limit_lists_its_parts_and_remedies(tokenizer):
    messages = user(item("audio", SOUND), item("video", FRAMES))
    fits = len(prepare(messages, tokenizer, CONFIG, PROCESSOR).token_ids)
    prepare(messages, tokenizer, CONFIG, PROCESSOR, max_tokens=fits)
    with pytest.raises(CapacityError) as error:
        prepare(messages, tokenizer, CONFIG, PROCESSOR, max_tokens=fits - 1)
    text = str(error.value)
    assert f"{fits} tokens" in text and f"max_tokens = {fits - 1}" in text
    assert "27  audio of message 1, item 1" in text and "18  video of message 1, item 2" in text
    assert "lower fps" in text and "shorter clip" in text


def test_sizes_are_counted_before_features_are_made(tokenizer, monkeypatch):
    def never(*args, **options):
        raise AssertionError("features were computed")

    monkeypatch.setattr(request_module, "log_mel", never)
    monkeypatch.setattr(request_module, "image_patches", never)
    with pytest.raises(CapacityError):
        prepare(user(item("audio", SOUND), item("image", PICTURE)), tokenizer, CONFIG, PROCESSOR, max_tokens=50)


def test_text_over_the_limit_stops_before_media_are_read(tokenizer):
    with pytest.raises(CapacityError, match="shorter text"):
        prepare(user(WORDS, item("image", "not there.png")), tokenizer, CONFIG, PROCESSOR, max_tokens=5)


def short_model(positions):
    text = dataclasses.replace(IDS.text_config, max_position_embeddings=positions)
    return dataclasses.replace(CONFIG, thinker_config=dataclasses.replace(IDS, text_config=text))


def test_the_model_itself_limits_tokens_and_positions(tokenizer):
    with pytest.raises(CapacityError, match="20 positions"):
        assemble([1] * 21, short_model(20), max_tokens=100)
    grid = (3, 2, 2)
    film = VideoFeatures(Patches(np.zeros((12, 1176), np.float32), grid), 2.0)
    ids = [IDS.vision_start_token_id, IDS.video_token_id, IDS.vision_end_token_id]
    with pytest.raises(CapacityError, match="5 tokens, .* position 103"):
        assemble(ids, short_model(100), videos=[film])


# Placeholders and media


IMAGE = Patches(np.zeros((4, 1176), np.float32), (1, 2, 2))
TRIPLE = [IDS.vision_start_token_id, IDS.image_token_id, IDS.vision_end_token_id]


@pytest.mark.parametrize(
    "ids, media, complaint",
    [
        (TRIPLE, {"images": [IMAGE, IMAGE]}, "1 image placeholders, 2 given"),
        (TRIPLE * 2, {"images": [IMAGE]}, "2 image placeholders, 1 given"),
        ([1], {"audio": [np.zeros((128, 9), np.float32)]}, "0 audio placeholders, 1 given"),
        (
            TRIPLE,
            {"videos": [VideoFeatures(IMAGE, 1.0)]},
            "1 image placeholders, 0 given; 0 video placeholders, 1 given",
        ),
    ],
)
def test_placeholders_and_media_must_match_in_number_and_kind(ids, media, complaint):
    with pytest.raises(PromptError, match=complaint):
        assemble(ids, CONFIG, **media)


@pytest.mark.parametrize("ids", [[TRIPLE[1]], [1, TRIPLE[1], TRIPLE[2]], [TRIPLE[0], TRIPLE[1], TRIPLE[1], TRIPLE[2]]])
def test_a_placeholder_outside_its_markers_is_refused(ids):
    with pytest.raises(PromptError, match="belongs between the markers 1009 and 1010"):
        assemble(ids, CONFIG, images=[IMAGE] * ids.count(TRIPLE[1]))


def test_a_tokenizer_of_another_checkpoint_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"<\|AUDIO\|> is 1003 in the tokenizer but 151646"):
        prepare(user(WORDS), tokenizer, preset("qwen2.5-omni-7b"), PROCESSOR)
