"""`omni-jax demo`: its media are real, and every stage of every scene is told."""

import json

import numpy as np

from input_pipeline.media import load_audio, load_image, load_video
from omni_jax.cli.demo import RANDOM, SCENES
from omni_jax.cli.main import main
from omni_jax.config import ProcessorConfig
from omni_jax.demo_media import write_film, write_picture, write_recording


def test_the_picture(tmp_path):
    image = load_image(write_picture(tmp_path / "a.png"))
    assert image.ndim == 3 and len(np.unique(image.reshape(-1, 3), axis=0)) > 4


def test_the_recording_is_audible_and_does_not_clip(tmp_path):
    sound = load_audio(write_recording(tmp_path / "b.flac"))
    assert len(sound) == 3 * 16000
    assert 0.1 < np.abs(sound).max() < 1.0


def test_the_film_moves_and_its_sound_is_there_when_the_ball_lands(tmp_path):
    film = load_video(write_film(tmp_path / "c.mp4"), ProcessorConfig(), want_audio=True)
    assert np.isclose(film.seconds_per_frame * len(film.frames), 4.0, atol=0.7)
    assert (film.frames[0] != film.frames[1]).any()
    level = [np.abs(film.audio[round(16000 * t) : round(16000 * (t + 0.1))]).mean() for t in (0.3, 0.5, 1.4, 1.5)]
    assert level[0] < 0.01 < level[1] and level[2] < level[3]


def test_every_stage_is_told(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--checkpoint", str(tiny_checkpoint[1]), "--max-new-tokens", "4", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [row["name"] for row in result["rows"]] == [scene.file for scene in SCENES]
    picture, recording, film = (row["seconds"] for row in result["rows"])
    assert "encode_vision" in picture and "encode_audio" not in picture
    assert "encode_audio" in recording and "encode_vision" not in recording
    assert {"decode_media", "features", "encode_audio", "encode_vision", "prefill", "decode"} <= set(film)
    assert all(row["prompt_tokens"] > 50 and row["tokens"] for row in result["rows"])
    for words in ("vision encoder", "tokens/s", "film.mp4", SCENES[0].question):
        assert words in captured.err
    # somebody's own checkpoint is not called random
    assert result["random_weights"] is False and RANDOM not in captured.err


def test_without_a_checkpoint_it_makes_one_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--max-new-tokens", "2"]) == 0
    first = capsys.readouterr().out
    assert RANDOM in first and "make a random checkpoint" in first
    assert main(["demo", "--max-new-tokens", "2"]) == 0
    second = capsys.readouterr().out
    assert RANDOM in second and "make a random checkpoint" not in second
