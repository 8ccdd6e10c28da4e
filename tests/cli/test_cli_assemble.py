"""omni-jax assemble: says what came from where, and what it writes answers at once."""

import json

import pytest

from omni_jax.cli.main import main
from tests.interop.published_parts import audio_model, language_model, vision_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    for name, make in (("language", language_model), ("vision", vision_model), ("audio", audio_model)):
        make(root / name)
    return root


def test_a_model_from_three_parts_answers(parts, tmp_path, capsys):
    given = [f"--{name}={parts / name}" for name in ("language", "vision", "audio")]
    target = str(tmp_path / "base")
    argv = ["assemble", *given, "--to", target, "--preset", "tiny", "--talker", "none", "--json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert set(result) == {"parameters", "random", "bytes", "seconds"}
    assert set(result["parameters"]) == {"audio_encoder", "vision_encoder", "thinker"}
    assert result["bytes"] == 4 * sum(result["parameters"].values())
    assert all(name.startswith("audio_encoder/") for name in result["random"])
    assert f"thinker          from {parts / 'language'}\n" in captured.err
    assert "projection random" in captured.err

    assert main(["chat", "--checkpoint", target, "--text", "Hello", "--max-new-tokens", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) <= 3


def test_parts_that_are_left_out_are_random(parts, tmp_path, capsys):
    given = [f"--{name}={parts / name}" for name in ("language", "vision")]
    assert main(["assemble", *given, "--to", str(tmp_path / "base"), "--preset", "tiny", "--talker", "none"]) == 0
    out = capsys.readouterr().out
    assert "audio_encoder    random\n" in out and f"vision_encoder   from {parts / 'vision'}\n" in out
    assert "Assembled " in out and "talker" not in out


@pytest.mark.parametrize(
    "options, words",
    [
        ([], ["CheckpointError", "Nothing to assemble"]),
        (["--audio", "nowhere"], ["nowhere does not exist"]),
        (["--vision", "{parts}/audio"], ["'whisper'", "--vision", "qwen2_5_vl"]),
        (["--language", "{parts}/language", "--preset", "huge"], ["ConfigError", "'huge'"]),
        (["--language", "{parts}/language", "--seed", "-3"], ["seed -3"]),
    ],
)
def test_bad_input_is_status_2(parts, tmp_path, capsys, options, words):
    options = [option.format(parts=parts) for option in options]
    assert main(["assemble", "--to", str(tmp_path / "base"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert all(word in captured.err for word in words)
    assert list(tmp_path.iterdir()) == []
