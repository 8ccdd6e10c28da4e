"""Bad files: each one ends in a MediaError that names it, never in a library's own error, never in a hang."""

import contextlib
import struct
import time

import numpy as np
import pytest
from PIL import Image

from input_pipeline.media import has_audio_track, load_audio, load_image, load_video
from omni_jax.config import ProcessorConfig
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

CFG = ProcessorConfig()
IMAGES = ["png", "jpg", "webp", "gif"]
FILMS = ["mp4", "webm", "mkv"]
KINDS = [*AUDIO_CODECS, *IMAGES, *FILMS]


def load_film(source):
    return load_video(source, CFG, want_audio=False)


def loader(suffix: str):
    return load_audio if suffix in AUDIO_CODECS else load_image if suffix in IMAGES else load_film


def write_any(folder, suffix: str):
    path = folder / f"good.{suffix}"
    if suffix in AUDIO_CODECS:
        return write_audio(path, tone(0.5, 16000), 16000)
    if suffix in IMAGES:
        return write_image(path, picture(40, 50))
    return write_film(path, [numbered_frame(number) for number in range(8)], sound=tone(0.8, 48000))


def refused(load, path, message: str | None = None) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        load(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("suffix", KINDS)
def test_files_that_are_not_what_they_say(tmp_path, suffix):
    path = tmp_path / f"bad.{suffix}"
    refused(loader(suffix), path, "no such file")
    path.write_bytes(b"")
    refused(loader(suffix), path, "empty")
    for content in (b"just some text\n" * 200, bytes(4000), np.random.default_rng(0).bytes(4000)):
        path.write_bytes(content)
        refused(loader(suffix), path)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_cut_off_in_its_head(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(write_any(tmp_path, suffix).read_bytes()[:30])
    refused(loader(suffix), path)


@pytest.mark.parametrize("suffix", IMAGES)
def test_a_truncated_image_is_an_error(tmp_path, suffix):
    content = write_any(tmp_path, suffix).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: len(content) * 2 // 3])
    refused(load_image, path, "cannot be read as a picture")


@pytest.mark.parametrize("suffix", ["mp4", "m4a"])
def test_a_file_cut_off_before_its_index_is_an_error(tmp_path, suffix):
    content = write_any(tmp_path, suffix).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: len(content) // 2])
    refused(loader(suffix), path, "cut short")


@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_bytes_end_in_a_result_or_a_media_error(tmp_path, suffix):
    content = np.frombuffer(write_any(tmp_path, suffix).read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    start = time.perf_counter()
    for attempt in range(12):
        damaged = content.copy()
        reach = min(len(damaged), 300) if attempt % 2 else len(damaged)
        where = rng.integers(0, reach, 4 if attempt % 2 else len(damaged) // 20)
        damaged[where] = rng.integers(0, 256, len(where))
        with contextlib.suppress(MediaError):
            loader(suffix)(damaged.tobytes())
    assert time.perf_counter() - start < 20


def test_a_film_whose_frames_are_garbage(tmp_path):
    path = tmp_path / "garbage.mkv"
    frames = [picture(48, 64, seed=seed) for seed in range(6)]
    content = bytearray(write_film(tmp_path / "good.mkv", frames).read_bytes())
    first = content.index(b"\x1f\x43\xb6\x75")  # the first cluster: everything in it that is picture
    for block in range(first + 40, len(content) - 200):
        content[block] = 0xFF
    path.write_bytes(content)
    refused(load_film, path)


def test_sound_and_pictures_given_for_each_other(tmp_path):
    silent = write_film(tmp_path / "silent.mp4", [numbered_frame(number) for number in range(8)])
    refused(load_audio, silent, "film has no sound track")
    refused(lambda path: load_video(path, CFG, want_audio=True), silent, "no sound track")
    speech = write_audio(tmp_path / "speech.m4a", tone(0.5, 16000), 16000)
    photo = write_image(tmp_path / "photo.png", picture(20, 20))
    refused(load_film, speech, "no picture track")
    refused(load_film, photo)
    refused(load_audio, photo)
    refused(load_image, speech)
    refused(load_image, silent)
    refused(has_audio_track, photo)


def test_the_cover_of_a_song_is_not_a_film(tmp_path):
    cover = write_image(tmp_path / "cover.jpg", picture(32, 32)).read_bytes()
    apic = b"\0image/jpeg\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">I", len(apic)) + b"\0\0" + apic
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    song = tmp_path / "song.mp3"
    song.write_bytes(
        b"ID3\x03\0\0" + size + frame + write_audio(tmp_path / "plain.mp3", tone(1, 44100), 44100).read_bytes()
    )
    assert len(load_audio(song)) > 15000
    refused(load_film, song, "no picture track")


def wav(samples: bytes, *, kind: int, bits: int) -> bytes:
    """A mono file at 16 kHz; kind 1 is integers, 3 floats."""
    form = struct.pack("<IHHIIHH", 16, kind, 1, 16000, 16000 * bits // 8, bits // 8, bits)
    data = b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 12 + len(form) + len(data)) + b"WAVEfmt " + form + data


def test_sound_of_no_length(tmp_path):
    path = tmp_path / "empty.wav"
    path.write_bytes(wav(b"", kind=1, bits=16))
    refused(load_audio, path, "audio track is empty")


def test_a_wav_of_infinite_floats(tmp_path):
    path = tmp_path / "loud.wav"
    path.write_bytes(wav(np.full(1000, np.inf, "<f4").tobytes(), kind=3, bits=32))
    refused(load_audio, path, "NaN or infinite")


def test_a_strip_names_its_file(tmp_path):
    refused(load_image, write_image(tmp_path / "strip.png", np.zeros((10, 20000, 3), np.uint8)), "200 to 1")


def test_an_image_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = write_image(tmp_path / "bomb.png", np.zeros((200, 200, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)  # PIL refuses above twice this
    refused(load_image, path, "too large")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # PIL only warns
    with pytest.warns(Image.DecompressionBombWarning):
        refused(load_image, path, "too large")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "not a regular file"),
        ("/", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("a\0b", "no such file"),
        ("x" * 5000, "cannot be used as a path"),
        (b"", "empty"),
        ("data:audio/wav;base64,", "empty"),
        ("data:audio/wav;base64,@@@", "base64"),
        ("data:audio/wav,abc", "not base64"),
        ("https://example.com/a.wav", "not downloaded"),
        (None, "NoneType"),
        (3, "int"),
    ],
)
def test_sources_that_lead_nowhere(source, message):
    for load in (load_audio, load_image, load_film, has_audio_track):
        with pytest.raises(MediaError, match=message):
            load(source)


def test_play_lists_are_not_followed(tmp_path):
    speech = write_audio(tmp_path / "speech.wav", tone(0.5, 16000), 16000)
    concat, hls = tmp_path / "list.ffconcat", tmp_path / "list.m3u8"
    concat.write_text(f"ffconcat version 1.0\nfile {speech.name}\n")
    hls.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{speech.name}\n#EXT-X-ENDLIST\n")
    refused(load_audio, concat)
    refused(load_audio, hls)
