"""Bad input at the command line: a message with status 2, never a traceback, and before the weights are loaded."""

import json
import shutil
import wave

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omni_jax.cli.conversation import Answerer
from omni_jax.cli.main import main
from tests.input_pipeline.media_files import numbered_frame, picture, write_film, write_image


@pytest.fixture
def refused(capsys):
    """Asserts that a command fails as it should, and that its message has these words."""

    def check(*argv, words):
        assert main([str(each) for each in argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        for word in [words] if isinstance(words, str) else words:
            assert word in captured.err
        return captured.err

    return check


@pytest.fixture
def chat(refused, tiny_checkpoint, monkeypatch):
    def check(*options, words):
        def too_late(self):
            raise AssertionError("the weights were loaded before the error showed")

        monkeypatch.setattr(Answerer, "sampler", property(too_late))
        return refused("chat", "--checkpoint", tiny_checkpoint[1], *options, words=words)

    return check


MEDIA = [("--image", "png"), ("--image", "jpg"), ("--audio", "wav"), ("--audio", "mp3"), ("--video", "mp4")]


@pytest.mark.parametrize(("option", "suffix"), MEDIA)
def test_missing_empty_and_corrupt_media(chat, tmp_path, option, suffix):
    path = tmp_path / f"bad.{suffix}"
    chat(option, path, "--text", "?", words=["MediaError", path.name, "no such file"])
    path.write_bytes(b"")
    chat(option, path, "--text", "?", words=["MediaError", path.name, "empty"])
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    chat(option, path, "--text", "?", words=["MediaError", path.name])


def test_a_folder_is_not_a_picture(chat, tmp_path):
    chat("--image", tmp_path, words="not a regular file")


def test_sound_of_no_length(chat, tmp_path):
    path = tmp_path / "none.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    chat("--audio", path, words=["MediaError", "none.wav", "length 0 s"])


def test_a_strip_of_a_picture(chat, tmp_path):
    path = write_image(tmp_path / "strip.png", np.zeros((10, 20000, 3), np.uint8))
    chat("--image", path, words=["MediaError", "strip.png", "200"])


def test_a_film_without_a_picture_that_decodes(chat, tmp_path):
    path = tmp_path / "garbage.mkv"
    content = bytearray(write_film(tmp_path / "good.mkv", [picture(48, 64, seed=n) for n in range(6)]).read_bytes())
    first = content.index(b"\x1f\x43\xb6\x75")  # the first cluster, where the pictures are
    content[first + 40 : -200] = b"\xff" * (len(content) - first - 240)
    path.write_bytes(content)
    chat("--video", path, words=["MediaError", "garbage.mkv"])


def test_a_silent_film_cannot_be_heard(chat, tmp_path):
    path = write_film(tmp_path / "silent.mp4", [numbered_frame(number) for number in range(8)])
    chat("--video", path, "--use-audio-in-video", words=["MediaError", "silent.mp4", "no sound track", "Leave"])


def test_a_prompt_longer_than_the_cache(chat):
    chat("--text", "word " * 60000, words=["CapacityError", "32767", "shorter text"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-k", "-3"),
        ("--top-k", "99999999999"),
        ("--max-new-tokens", "0"),
        ("--max-new-tokens", "99999999999"),
        ("--repetition-penalty", "0"),
        ("--seed", "-1"),
    ],
)
def test_options_out_of_range(chat, option, value):
    chat("--text", "hello", option, value, words=["PromptError", option[2:].replace("-", "_"), "Give"])


@pytest.mark.parametrize(("option", "value"), [("--fps", "fast"), ("--dtype", "int8"), ("--max-new-tokens", "many")])
def test_options_of_the_wrong_kind(chat, option, value):
    chat("--text", "hello", option, value, words=option)


@pytest.mark.parametrize("fps", ["0", "-2", "nan", "inf"])
def test_impossible_frame_rates(chat, tmp_path, fps):
    path = write_film(tmp_path / "film.mp4", [numbered_frame(number) for number in range(4)])
    chat("--video", path, "--fps", fps, words="fps")


def test_an_unknown_option(chat):
    chat("--text", "hello", "--tempreature", "1", words="--tempreature")


def test_checkpoint_folders_that_are_not(refused, tmp_path, tiny_checkpoint):
    published, imported = tiny_checkpoint
    refused("chat", "--checkpoint", tmp_path / "none", "--text", "?", words=["CheckpointError", "does not exist"])
    refused("chat", "--checkpoint", imported / "config.json", "--text", "?", words="is a file")
    refused("chat", "--checkpoint", tmp_path, "--text", "?", words="holds no checkpoint")
    refused("chat", "--checkpoint", published, "--text", "?", words=f"omni-jax import --from {published} --to ")
    refused("export", "--from", published, "--to", tmp_path / "out", words="omni-jax import")
    refused("import", "--from", imported, "--to", tmp_path / "out", words="imported checkpoint already")
    refused("import", "--from", tmp_path / "none", "--to", tmp_path / "out", words="does not exist")
    refused("chat", "--checkpoint", tmp_path / ("a" * 300), "--text", "?", words="name too long")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_files(refused, tmp_path, tiny_checkpoint):
    folder = tmp_path / "checkpoint"
    for missing in ("config.json", "tokenizer.json"):
        shutil.copytree(tiny_checkpoint[1], folder)
        (folder / missing).unlink()
        refused("chat", "--checkpoint", folder, "--text", "hello", words=missing)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "<|im_end|>"}'),
        ("generation_config.json", '{"eos_token_id": [1002, null]}'),
        ("preprocessor_config.json", '{"hop_length": 0}'),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": null}'),
        ("import.json", "[]"),
    ],
)
def test_a_checkpoint_with_a_damaged_file(refused, tmp_path, tiny_checkpoint, file, content):
    folder = shutil.copytree(tiny_checkpoint[1], tmp_path / "checkpoint")
    (folder / file).write_text(content)
    refused("chat", "--checkpoint", folder, "--text", "hello", words=file)


def test_a_configuration_that_lacks_a_key(refused, tmp_path, tiny_checkpoint):
    folder = shutil.copytree(tiny_checkpoint[0], tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    del config["thinker_config"]["text_config"]["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    refused("import", "--from", folder, "--to", tmp_path / "out", words=["ConfigError", "num_hidden_layers"])
    (folder / "config.json").write_text("{")
    refused("import", "--from", folder, "--to", tmp_path / "out", words=["ConfigError", "not JSON"])


def test_nan_in_a_checkpoint(refused, tmp_path, tiny_checkpoint):
    folder = shutil.copytree(tiny_checkpoint[0], tmp_path / "published")
    shard = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].reshape(-1)[0] = np.nan
    save_file(tensors, shard)
    refused("import", "--from", folder, "--to", tmp_path / "out", words=["CheckpointError", name, "NaN"])
    assert not (tmp_path / "out").exists()


def test_destinations_that_cannot_be_written(refused, tmp_path, tiny_checkpoint):
    published, imported = tiny_checkpoint
    blocked, used = tmp_path / "file", tmp_path / "used"
    blocked.write_text("")
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    for command, source in [("import", published), ("export", imported)]:
        refused(command, "--from", source, "--to", blocked, words="is a file")
        refused(command, "--from", source, "--to", blocked / "below", words="cannot be written")
        refused(command, "--from", source, "--to", used, words="not empty")
        refused(command, "--from", source, "--to", tmp_path / ("a" * 300), words="name too long")
    assert [path.name for path in used.iterdir()] == ["mine.txt"]


def test_overwriting_never_removes_what_is_being_read(refused, tmp_path, tiny_checkpoint):
    for command, source in zip(("import", "export"), tiny_checkpoint):
        outer = tmp_path / command
        inner = shutil.copytree(source, outer / "inner")
        before = sorted(path.name for path in inner.iterdir())
        for target in (inner, outer):
            refused(command, "--from", inner, "--to", target, "--overwrite", words="being read")
        assert sorted(path.name for path in inner.iterdir()) == before
