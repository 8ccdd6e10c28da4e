"""`omni-jax chat` with a voice, its report, and `omni-jax voices`."""

import io
import json
import re
import shutil
import wave
from html.parser import HTMLParser

import numpy as np
import pytest

from omni_jax.cli.main import main
from omni_jax.cli.report import mel_picture
from omni_jax.cli.sound_file import SoundFile
from omni_jax.errors import PromptError
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling.generate import Sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import SpeechOptions
from tests.input_pipeline.media_files import tone, write_audio

FAST = ["--max-new-tokens", "8", "--max-codes", "30", "--solver", "euler", "--steps", "2"]


@pytest.fixture
def omni(tiny_checkpoint, capsys, monkeypatch):
    """Runs a subcommand on the tiny checkpoint: status, JSON objects of standard output, standard error."""

    def run(command, *options, typed=None, checkpoint=tiny_checkpoint[1]):
        if typed is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        status = main([command, "--checkpoint", str(checkpoint), "--json", *map(str, options)])
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run


def read_wav(path):
    with wave.open(str(path)) as stream:
        assert (stream.getnchannels(), stream.getsampwidth(), stream.getframerate()) == (1, 2, 24000)
        return np.frombuffer(stream.readframes(stream.getnframes()), "<i2") / 32767


def test_an_answer_is_spoken_into_a_file(omni, tiny_checkpoint, tmp_path):
    target = tmp_path / "reply.wav"
    status, [answer], _ = omni(
        "chat", "--text", "hello", "--speech-out", target, "--voice", "Ethan", "--seed", 3, *FAST
    )
    assert status == 0 and answer["audio_path"] == str(target)
    assert {"first_text", "first_sound", "decode", "dit", "bigvgan"} <= set(answer["seconds"])
    sampler = Sampler.from_checkpoint(tiny_checkpoint[1])
    speech = Speech.from_checkpoint(tiny_checkpoint[1], sampler)
    request = sampler.prepare([{"role": "user", "content": [{"type": "text", "text": "hello"}]}])
    codes = SamplingOptions(30, temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05, seed=3)
    spoken = SpeechOptions(voice="Ethan", codes=codes, flow=FlowOptions("euler", 2))
    expected = speech.generate([request], SamplingOptions(max_new_tokens=8, seed=3), spoken)[0]
    assert answer["text"] == expected.text and answer["tokens"] == expected.token_ids
    heard = read_wav(target)
    assert len(heard) == 480 * len(expected.codes) > 0
    np.testing.assert_allclose(heard, expected.waveform, atol=1 / 32767)
    assert list(tmp_path.iterdir()) == [target]


def test_each_turn_of_a_conversation_has_a_file(omni, tmp_path):
    typed = "hello\nand now?\n"
    status, answers, err = omni("chat", "--speech-out", tmp_path / "reply.wav", *FAST, typed=typed)
    assert status == 0 and [answer["audio_path"] for answer in answers] == [
        str(tmp_path / "reply.wav"),
        str(tmp_path / "reply-2.wav"),
    ]
    assert all(len(read_wav(answer["audio_path"])) for answer in answers)
    assert "cut off at its limit after 0.6 s" in err


def test_a_turn_whose_file_cannot_be_written_fails_alone(omni, tmp_path):
    (tmp_path / "reply-2.wav").mkdir()
    status, answers, err = omni("chat", "--speech-out", tmp_path / "reply.wav", *FAST, typed="a\nb\nc\n")
    assert status == 0 and "reply-2.wav is a folder" in err
    assert [answer["audio_path"] for answer in answers] == [
        str(tmp_path / name) for name in ("reply.wav", "reply-3.wav")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reply-2.wav", "reply-3.wav", "reply.wav"]


@pytest.mark.parametrize("options", [[], ["--no-speech"]])
def test_without_a_wish_for_speech_no_talker_is_loaded(omni, tiny_checkpoint, tmp_path, options, monkeypatch):
    monkeypatch.setattr(Speech, "__init__", lambda *args, **kwargs: pytest.fail("loaded"))
    silent = tmp_path / "silent"
    shutil.copytree(tiny_checkpoint[1], silent)
    (silent / "spk_dict.pt").unlink()  # not even looked for
    status, [answer], _ = omni("chat", "--text", "hello", "--max-new-tokens", "4", *options, checkpoint=silent)
    assert status == 0 and answer["audio_path"] is None


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_report_shows_everything_and_refers_to_nothing_outside(omni, tmp_path):
    target = tmp_path / "out.html"
    status, [answer], _ = omni("chat", "--text", "a < b & c", "--report", target, *FAST)
    assert status == 0
    page = Tags()
    page.feed(target.read_text())
    names = [tag for tag, _ in page.seen]
    assert names.count("audio") == names.count("img") == 1 and names.count("svg") == 2
    assert names.count("circle") == 30  # codes
    assert "a < b & c" in page.text and re.search(r"First sound after \d", page.text)
    assert all(stage in page.text for stage in ("text tokens", "speech codes", "DiT", "BigVGAN"))
    links = [attrs[key] for _, attrs in page.seen for key in ("src", "href") if key in attrs]
    assert links and all(link.startswith("data:") for link in links)
    assert answer["audio_path"] is None


def test_a_report_without_speech(omni, tmp_path):
    status, _, _ = omni("chat", "--text", "hi", "--report", tmp_path / "out.html", "--no-speech", *FAST)
    assert status == 0 and "<audio" not in (tmp_path / "out.html").read_text()


def test_the_mel_picture_shows_a_tone_where_it_is():
    low, high = (mel_picture(tone(0.5, 24000, hertz=f)).sum(axis=(1, 2)).argmax() for f in (200, 6000))
    assert low > high + 20  # low frequencies at the bottom


def test_voices_are_listed(omni):
    status, [listed], err = omni("voices")
    assert status == 0 and listed == {"voices": ["Ethan", "Chelsie"], "default": "Chelsie"}
    assert "Chelsie  (default)" in err


def test_a_recording_gives_a_voice_its_timbre(omni, tmp_path):
    reference = write_audio(tmp_path / "me.wav", tone(1.0, 16000), 16000)
    plain, like = tmp_path / "plain.wav", tmp_path / "like.wav"
    omni("chat", "--text", "hello", "--speech-out", plain, *FAST)
    status, _, _ = omni("chat", "--text", "hello", "--speech-out", like, "--voice-reference", reference, *FAST)
    assert status == 0 and np.abs(read_wav(plain) - read_wav(like)).max() > 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        (["--speech-out", "reply.wav", "--voice", "Nobody"], "Voices of this checkpoint: Ethan, Chelsie"),
        (["--speech-out", "reply.mp3"], "must end with .wav"),
        (["--speech-out", "missing/reply.wav"], "does not exist"),
        (["--report", "folder.html"], "is a folder"),
        (["--voice", "Ethan"], "Add --speech-out"),
        (["--no-speech", "--speech-out", "reply.wav"], "contradict"),
        (["--speech-out", "reply.wav", "--steps", "1"], "at least 2"),
        (["--speech-out", "reply.wav", "--max-codes", "0"], "max_new_tokens"),
        (["--speech-out", "reply.wav", "--voice-reference", "short.wav"], "at least 0.5 s"),
        (["--speech-out", "reply.wav", "--voice-reference", "none.wav"], "none.wav"),
    ],
)
def test_bad_options_are_told_before_the_weights_are_loaded(omni, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omni_jax.sampling.load.load_sampler", lambda *args, **kwargs: pytest.fail("loaded"))
    (tmp_path / "folder.html").mkdir()
    write_audio(tmp_path / "short.wav", tone(0.2, 16000), 16000)
    status, _, err = omni("chat", "--text", "hello", *options)
    assert status == 2 and message in err
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "reply.wav").exists()


def test_speech_asked_of_a_checkpoint_without_a_talker(omni, tiny_checkpoint, tmp_path):
    mute = tmp_path / "mute"
    shutil.copytree(tiny_checkpoint[1], mute)
    config = json.loads((mute / "config.json").read_text())
    config = {"enable_audio_output": False} | {
        key: value
        for key, value in config.items()
        if key not in ("talker_config", "token2wav_config", "enable_audio_output")
    }
    (mute / "config.json").write_text(json.dumps(config))
    for command, options in (("chat", ["--text", "a", "--speech-out", tmp_path / "a.wav"]), ("voices", [])):
        status, _, err = omni(command, *options, checkpoint=mute)
        assert status == 2 and "cannot speak" in err


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(PromptError, match="No space left"), SoundFile(tmp_path / "a.wav") as file:
        monkeypatch.setattr(file._stream, "writeframes", full)
        file.write(np.zeros(10, np.float32))
    assert not list(tmp_path.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.wav"
    with pytest.raises(ZeroDivisionError), SoundFile(target) as file:
        file.write(np.zeros(10, np.float32))
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), SoundFile(target) as file:
        file.write(np.ones(10, np.float32))
        raise KeyboardInterrupt  # what was heard is kept
    np.testing.assert_array_equal(read_wav(target), np.ones(10))
