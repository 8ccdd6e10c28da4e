"""`omni-jax chat`: one answer, or a conversation."""

import io
import json

import numpy as np
import pytest

from omni_jax.cli.conversation import Answerer
from omni_jax.cli.main import main
from omni_jax.sampling.options import SamplingOptions
from tests.input_pipeline.media_files import numbered_frame, picture, tone, write_audio, write_film, write_image

OPTIONS = SamplingOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_image(folder / "a.png", picture(56, 84))
    write_audio(folder / "b.wav", tone(0.5, 16000), 16000)
    write_film(folder / "c.mp4", [numbered_frame(number) for number in range(10)], sound=tone(1.0, 48000))
    return folder


@pytest.fixture
def chat(tiny_checkpoint, capsys, monkeypatch):
    """Runs `omni-jax chat`: status, JSON objects of standard output, standard error."""

    def run(*options, typed=None):
        if typed is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        argv = ["chat", "--checkpoint", str(tiny_checkpoint[1]), "--max-new-tokens", "6", "--json", *map(str, options)]
        status = main(argv)
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run


def user(*content):
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


def test_one_answer_as_json(chat, tiny_checkpoint):
    status, [answer], _ = chat("--text", "hello")
    assert status == 0
    assert set(answer) == {"text", "tokens", "audio_path", "seconds"}
    expected = Answerer(tiny_checkpoint[1]).answer([user(text("hello"))], OPTIONS)
    assert answer["tokens"] == expected.token_ids and len(expected.token_ids) == 6
    assert answer["text"] == expected.text
    assert answer["audio_path"] is None
    assert {"tokenize", "load_checkpoint", "prefill", "decode"} <= set(answer["seconds"])
    assert all(value >= 0 for value in answer["seconds"].values())


def test_media_come_before_the_text_in_a_fixed_order(chat, media, tiny_checkpoint):
    given = ["--text", "one", "--video", media / "c.mp4", "--audio", media / "b.wav", "--text", "two"]
    status, [answer], _ = chat(*given, "--image", media / "a.png", "--system", "Be brief.", "--fps", 4)
    assert status == 0
    content = [
        {"type": "image", "image": str(media / "a.png")},
        {"type": "audio", "audio": str(media / "b.wav")},
        {"type": "video", "video": str(media / "c.mp4"), "fps": 4.0},
        text("one"),
        text("two"),
    ]
    messages = [{"role": "system", "content": "Be brief."}, user(*content)]
    assert answer["tokens"] == Answerer(tiny_checkpoint[1]).answer(messages, OPTIONS).token_ids
    assert {"encode_audio", "encode_vision"} <= set(answer["seconds"])


def test_sound_of_a_film_is_heard_on_request(chat, media):
    _, [deaf], _ = chat("--video", media / "c.mp4", "--text", "well?")
    _, [hearing], _ = chat("--video", media / "c.mp4", "--text", "well?", "--use-audio-in-video")
    assert "encode_audio" not in deaf["seconds"] and "encode_audio" in hearing["seconds"]
    assert deaf["tokens"] != hearing["tokens"]


def test_sampling_options_arrive(chat):
    hot = ["--text", "hello", "--temperature", "5"]
    first, again, other = (chat(*hot, "--seed", seed)[1][0]["tokens"] for seed in (1, 1, 2))
    assert first == again != other
    assert chat(*hot, "--seed", 2, "--top-k", 1)[1][0]["tokens"] == chat("--text", "hello")[1][0]["tokens"]


def test_streamed_text_is_the_text(tiny_checkpoint, capsys):
    argv = ["chat", "--checkpoint", str(tiny_checkpoint[1]), "--max-new-tokens", "6", "--text", "hello"]
    assert main(argv) == 0
    whole = capsys.readouterr()
    assert main([*argv, "--stream"]) == 0
    streamed = capsys.readouterr()
    assert whole.out == streamed.out and whole.out.strip()
    assert whole.err == streamed.err == ""


def test_a_conversation_remembers(chat, tiny_checkpoint):
    status, [first, second], _ = chat(typed="hello\nand now\n")
    assert status == 0
    history = [user(text("hello")), {"role": "assistant", "content": first["text"]}, user(text("and now"))]
    assert second["tokens"] == Answerer(tiny_checkpoint[1]).answer(history, OPTIONS).token_ids
    assert "load_checkpoint" in first["seconds"] and "load_checkpoint" not in second["seconds"]


def test_a_conversation_takes_files(chat, media):
    _, [attached], _ = chat(typed=f"/image {media / 'a.png'}\n/audio {media / 'b.wav'}\nwell?\n/quit\nunheard\n")
    _, [given], _ = chat("--image", media / "a.png", "--audio", media / "b.wav", "--text", "well?")
    assert attached["tokens"] == given["tokens"]
    _, [alone], _ = chat(typed=f"\n/video {media / 'c.mp4'}\n\n")
    assert alone["tokens"] == chat("--video", media / "c.mp4")[1][0]["tokens"]


def test_paths_are_taken_as_people_type_them(chat, media, monkeypatch):
    monkeypatch.setenv("HOME", str(media))
    tokens = [chat(typed=f"/image {path}\n\n")[1][0]["tokens"] for path in (f'"{media / "a.png"}"', "~/a.png")]
    assert tokens == [chat("--image", media / "a.png")[1][0]["tokens"]] * 2


def test_bytes_that_are_no_text_do_not_end_the_conversation(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"h\xffi\nhello\n"), encoding="utf-8"))
    assert main(["chat", "--checkpoint", str(tiny_checkpoint[1]), "--max-new-tokens", "6", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_ctrl_c_at_the_prompt_gives_up_the_line_only(chat, monkeypatch):
    def typing(prompt):
        event = next(events)
        if isinstance(event, str):
            return event
        raise event

    events = iter(["hello", KeyboardInterrupt(), "and now", EOFError()])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", typing)
    status, answers, err = chat()
    assert status == 0 and len(answers) == 2 and "/quit" in err


def test_reset_forgets(chat, media):
    status, [first, second], _ = chat(typed=f"hello\n/image {media / 'a.png'}\n/reset\nhello\n")
    assert status == 0 and first["tokens"] == second["tokens"]


def test_a_failed_turn_leaves_no_trace(chat, media, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    failing = f"/image /nowhere.png\n/nonsense\n/audio\n/image {broken}\nwhat is this?\n"
    status, answers, err = chat(typed=f"hello\n{failing}and now\n")
    assert status == 0
    assert [answer["tokens"] for answer in answers] == [a["tokens"] for a in chat(typed="hello\nand now\n")[1]]
    assert "no such file" in err and "/nonsense" in err and "PATH" in err and "broken.png" in err
    assert "Traceback" not in err


def test_ctrl_c_stops_only_the_turn(chat, monkeypatch):
    answer, calls = Answerer.answer, []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(Answerer, "answer", interrupted)
    status, [only], err = chat(typed="something\nhello\n")
    assert status == 0 and "Stopped" in err
    monkeypatch.undo()
    assert only["tokens"] == chat("--text", "hello")[1][0]["tokens"]


def test_help_within_a_conversation(chat):
    status, answers, err = chat(typed="/help\n")
    assert (status, answers) == (0, []) and "/reset" in err


def test_an_empty_conversation_is_fine(chat):
    assert chat(typed="")[:2] == (0, [])


def test_bfloat16_is_taken(chat):
    status, [answer], _ = chat("--text", "hello", "--dtype", "bfloat16")
    assert status == 0 and np.all(np.array(answer["tokens"]) >= 0)
