"""Sound and pictures from real files: what comes out of them. Films are in test_media_video.py, bad files in
test_media_bad.py."""

import base64

import numpy as np
import pytest
from PIL import Image

from input_pipeline.media import has_audio_track, load_audio, load_image
from omni_jax.errors import MediaError
from tests.input_pipeline.media_files import (
    AUDIO_CODECS,
    numbered_frame,
    picture,
    tone,
    write_audio,
    write_film,
    write_image,
)

# What coding and resampling may change, after the first and before the last 0.1 s.
SOUND_TOLERANCE = {"wav": 1e-3, "flac": 1e-3, "mp3": 0.05, "ogg": 0.05, "m4a": 0.05}


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("suffix", AUDIO_CODECS)
def test_every_kind_of_sound_file_becomes_16_khz_mono(tmp_path, suffix, rate):
    path = write_audio(tmp_path / f"speech.{suffix}", tone(1, rate), rate)
    waveform = load_audio(path)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert 16000 <= len(waveform) <= 16000 + 1600
    middle = slice(1600, 14400)
    np.testing.assert_allclose(waveform[middle], tone(1, 16000)[middle], atol=SOUND_TOLERANCE[suffix])
    assert has_audio_track(path)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(1, 16000), np.zeros(16000, np.float32)], 1)
    path = write_audio(tmp_path / "stereo.wav", stereo, 16000)
    np.testing.assert_allclose(load_audio(path), tone(1, 16000) / 2, atol=1e-4)


def test_all_sources_of_sound_agree(tmp_path):
    path = write_audio(tmp_path / "speech.wav", tone(0.5, 16000), 16000)
    content = path.read_bytes()
    expected = load_audio(path)
    url = "data:audio/wav;base64," + base64.b64encode(content).decode()
    for source in (str(path), content, url, path.as_uri()):
        np.testing.assert_array_equal(load_audio(source), expected)
    np.testing.assert_allclose(load_audio(tone(0.5, 16000)), expected, atol=1e-4)
    np.testing.assert_allclose(load_audio((tone(0.5, 48000), 48000))[800:-800], expected[800:-800], atol=1e-3)


def test_integer_and_two_channel_arrays():
    wave = tone(0.1, 16000)
    np.testing.assert_allclose(load_audio(((wave * 32767).astype(np.int16), 16000)), wave, atol=1e-4)
    for array in (np.stack([wave, wave]), np.stack([wave, wave], 1)):
        np.testing.assert_allclose(load_audio((array, 16000)), wave, atol=1e-6)
    assert not has_audio_track((np.zeros((4, 8, 8, 3), np.uint8), 2.0))
    assert has_audio_track((wave, 16000))


def test_another_rate_can_be_asked_for(tmp_path):
    path = write_audio(tmp_path / "speech.wav", tone(1, 16000), 16000)
    assert len(load_audio(path, sampling_rate=24000)) == 24000


def test_the_sound_of_a_film_can_be_loaded_alone(tmp_path):
    path = write_film(tmp_path / "clip.mp4", [numbered_frame(i) for i in range(10)], sound=tone(1, 48000))
    assert abs(len(load_audio(path)) - 16000) < 1600


def test_too_long_sound_stops_at_the_limit(tmp_path):
    path = write_audio(tmp_path / "long.wav", tone(2, 16000), 16000)
    assert len(load_audio(path, max_seconds=2)) == 32000
    for source in (path, tone(2, 16000)):
        with pytest.raises(MediaError, match=r"limit of 1\.5 s"):
            load_audio(source, max_seconds=1.5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
        ((np.array([0.0, np.inf]), 8000), "infinite"),
        ((np.zeros(100), 0), "positive"),
        ((np.zeros(100), None), "positive"),
        ((np.zeros(100),), "tuple"),
        (np.zeros((2, 2, 2)), "not sound"),
        (np.array(["a"]), "not sound"),
    ],
)
def test_unusable_sound_arrays_are_refused(source, message):
    with pytest.raises(MediaError, match=f"audio array.*{message}"):
        load_audio(source)


def test_lossless_images_come_back_exactly(tmp_path):
    image = picture(31, 45)
    for path in (
        write_image(tmp_path / "photo.png", image),
        write_image(tmp_path / "photo.webp", image, lossless=True),
        write_image(tmp_path / "photo.bmp", image),
    ):
        loaded = load_image(path)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, image)
        np.testing.assert_array_equal(load_image(path.read_bytes()), image)
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    np.testing.assert_array_equal(load_image(url), image)
    np.testing.assert_array_equal(load_image(image), image)


def test_jpeg_is_near_its_original(tmp_path):
    image = picture(64, 80)
    loaded = load_image(write_image(tmp_path / "photo.jpg", image, quality=95, subsampling=0))
    assert np.abs(loaded.astype(int) - image).mean() < 4


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_turns_the_image_upright(tmp_path, orientation, turns):
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    image = corners.repeat(16, axis=0).repeat(24, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(write_image(tmp_path / "phone.jpg", image, quality=95, exif=exif))
    expected = np.rot90(image, turns)
    assert loaded.shape == expected.shape
    assert np.abs(loaded.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_transparency_becomes_white(tmp_path, suffix):
    image = np.zeros((16, 16, 4), np.uint8)
    image[..., 2], image[:, 8:, 3] = 200, 255  # left half transparent, right half blue
    options = {"lossless": True} if suffix == "webp" else {}
    loaded = load_image(write_image(tmp_path / f"logo.{suffix}", image, **options))
    assert (loaded[:, :8] == 255).all()
    assert np.abs(loaded[:, 8:].astype(int) - [0, 0, 200]).max() <= 8


def test_half_transparent_pixels_mix_with_white():
    loaded = load_image(np.full((4, 4, 4), [0, 0, 0, 128], np.uint8))
    assert np.abs(loaded.astype(int) - 127).max() <= 1


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (50, 200)]
    frames[0].save(tmp_path / "anim.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(tmp_path / "anim.gif"), np.full((8, 8, 3), 50))


def test_grey_images_of_8_and_16_bits(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(ramp[..., None], 3, -1)
    np.testing.assert_array_equal(load_image(ramp), expected)
    deep = write_image(tmp_path / "deep.png", ramp.astype(np.uint16) * 257)
    np.testing.assert_array_equal(load_image(deep), expected)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8, 3), np.uint8), np.zeros(5, np.uint8)]
)
def test_arrays_that_are_no_image_are_refused(array):
    with pytest.raises(MediaError, match="image array"):
        load_image(array)


def test_a_single_pixel_is_an_image(tmp_path):
    assert load_image(write_image(tmp_path / "dot.png", np.full((1, 1, 3), 9, np.uint8))).shape == (1, 1, 3)
