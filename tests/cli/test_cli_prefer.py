"""`omni-jax prefer`: pairs that training takes, with the log-probabilities that training computes."""

import json
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from input_pipeline.example_context import ExampleContext, speech_codes
from input_pipeline.examples import Sample
from input_pipeline.pack_rows import pack_row
from input_pipeline.sources import JsonlSource
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.training_batch import RowShape
from omni_jax.cli import prefer
from omni_jax.cli.main import main
from omni_jax.cli.prefer_answers import Drawer
from omni_jax.cli.prefer_scorers import Heard, own_scorer, thinker_scorer
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.errors import ConfigError
from omni_jax.interop.restore import restore_params
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech_options import SpeechOptions
from omni_jax.sampling.voices import load_speakers
from omni_jax.training.dpo import DpoTask, PairLogProbs, dpo_loss
from tests.input_pipeline.training_data import assistant, user, write_lines, write_media

TEXT = "Oh, a cat. So?"
# The tiny model is a random one: hot, so that some of its answers end, and short.
FAST = ["--samples", 16, "--batch", 16, "--max-codes", 40, "--max-new-tokens", 4, "--temperature", 3]
FAST += ["--solver", "euler", "--steps", 2, "--voice", "Ethan", "--max-tokens", 200]
EARS = '''
"""A recogniser that hears some of the words of every text."""
import hashlib

WORDS = "oh a cat so".split()

def hear(waveform, sampling_rate):
    assert waveform.dtype == "float32" and waveform.ndim == 1 and sampling_rate == 24000
    return " ".join(WORDS[hashlib.sha256(waveform.tobytes()).digest()[0] % 5 :])

def times(waveform, sampling_rate):
    return [(word, i, i + 0.5) for i, word in enumerate(WORDS)]

def broken(waveform, sampling_rate):
    raise ValueError("no ears")

def silly(waveform, sampling_rate):
    return 3
'''


@pytest.fixture(scope="module")
def omni(tiny_checkpoint, tmp_path_factory):
    """Runs the command in a folder with a module of recognisers: status and JSON result."""
    folder = tmp_path_factory.mktemp("prefer")
    write_media(folder / "data")
    (folder / "prefer_ears.py").write_text(EARS)
    lines = [
        {"messages": [user("What?"), assistant(TEXT)]},
        {"messages": [user("<audio>What?"), assistant(TEXT)], "audios": ["beep.wav"], "voice": "Chelsie"},
        {"messages": [user("no answer yet")]},
        {"messages": [user("What?"), assistant("...")]},
        {"messages": [user("What? " * 200), assistant(TEXT)]},
        "{",
    ]
    write_lines(folder / "data" / "prompts.jsonl", lines)

    def run(*options, checkpoint=tiny_checkpoint[1]):
        return main(["prefer", "--checkpoint", str(checkpoint), *map(str, options)])

    return SimpleNamespace(run=run, folder=folder, prompts=folder / "data" / "prompts.jsonl")


@pytest.fixture(scope="module")
def made(omni):
    """Pairs of the whole file, in another folder than the prompts."""
    target = omni.folder / "pairs.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(omni.folder)
        status = omni.run("--prompts", omni.prompts, "--to", target, "--scorer", "prefer_ears:hear", *FAST)
    assert status == 0
    return target


@pytest.fixture
def again(omni, made, capsys, monkeypatch):
    """The same command once more, with further options: status, JSON result, standard error."""
    monkeypatch.chdir(omni.folder)

    def run(*options, to=made):
        argv = ["--prompts", omni.prompts, "--to", to, "--scorer", "prefer_ears:hear", *FAST, "--json", *options]
        status = omni.run(*argv)
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return run


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def answers_file(pairs):
    return pairs.with_name(f"{pairs.stem}.answers.jsonl")


def speech(line):
    return line["messages"][-1]["content"][-1]


@pytest.fixture(scope="module")
def context(tiny_checkpoint):
    config = read_config(tiny_checkpoint[1])
    voices = {name: each.token_id for name, each in load_speakers(tiny_checkpoint[1], config).items()}
    parts = Tokenizer.load(tiny_checkpoint[1]), config, read_processor_config(tiny_checkpoint[1])
    return ExampleContext(*parts, voices, speech_codes(config), default_system=None)


def test_training_takes_the_pairs_and_begins_at_log_2(made, context, tiny_checkpoint, tmp_path):
    shape = RowShape(tokens=512, audio_blocks=4, speech=1024, pairs=8)  # another one than that of the command
    source = JsonlSource(made, context, shape, cache=tmp_path)
    assert len(source) == source.total == len(rows(made)) >= 1 and not source.rejected
    examples = [source.example(i) for i in range(len(source))]
    task = DpoTask(context.config, vision=False, remat="none")
    params = restore_params(tiny_checkpoint[1], context.config, components=task.components)
    batch = pack_row(examples, shape, context.config)
    own = jax.jit(task.sequence_log_probs)(params, batch)
    written = np.array([example.reference for example in examples])
    count = len(examples)
    np.testing.assert_allclose(own.chosen[0, :count], written[:, 0], atol=1e-4)
    np.testing.assert_allclose(own.rejected[0, :count], written[:, 1], atol=1e-4)
    losses = dpo_loss(
        own, PairLogProbs(batch.preferences.reference_chosen, batch.preferences.reference_rejected), beta=1
    )
    np.testing.assert_allclose(losses[0][0, :count], math.log(2), atol=1e-4)


def test_pairs_are_what_the_answers_say(made, tiny_checkpoint):
    settings, *answers = rows(answers_file(made))
    assert settings["settings"]["temperature"] == 3
    by_name = {row["name"]: row for row in answers if "answers" in row}
    assert {row["name"]: row["kind"] for row in answers if "kind" in row} == {
        "prompts.jsonl:4": "empty mask",
        "prompts.jsonl:5": "too long",
        "prompts.jsonl:6": "malformed",
    }
    for row in by_name.values():
        assert len({tuple(each["codes"]) for each in row["answers"]}) == 16  # each with a seed of its own
        for each in row["answers"]:
            assert (each["guard"] is None) == (each["transcript"] is not None) == (each["wer"] is not None)
            assert each["guard"] or each["finish_reason"] == "stop"
    for line in rows(made):
        about = line["preference"]
        drawn = {each["seed"]: each for each in by_name[about["from"]]["answers"]}
        chosen, rejected = (drawn[about[side]["seed"]] for side in ("chosen", "rejected"))
        assert (speech(line)["chosen"], speech(line)["rejected"]) == (chosen["codes"], rejected["codes"])
        assert chosen["guard"] is None and chosen["wer"] <= 0.5
        if rejected["guard"] is None:
            assert rejected["wer"] + rejected["pause"] >= chosen["wer"] + chosen["pause"] + 0.1


def test_a_line_may_name_its_voice(made, context):
    """The others have that of --voice. Answers are drawn with it, pairs carry it, and training hears it."""
    drawn = {row["name"]: row["voice"] for row in rows(answers_file(made)) if "answers" in row}
    wanted = {"prompts.jsonl:1": "Ethan", "prompts.jsonl:2": "Chelsie"}
    assert wanted.items() <= drawn.items() and set(drawn.values()) == {"Ethan", "Chelsie"}
    assert {speech(line)["voice"] for line in rows(made)} == {"Ethan", "Chelsie"}
    for line in rows(made):
        assert speech(line)["voice"] == drawn[line["preference"]["from"]]
        sample = Sample({"messages": line["messages"]}, context, name="a pair")
        example = sample.example(0, len(sample))
        assert {answer.voice_token for answer in example.speech} == {context.voices[speech(line)["voice"]]}


def test_the_draw_has_the_voice_of_its_prompt():
    asked = []

    def stream_codes(requests, replies, options):
        asked.extend((option.voice, option.codes.seed) for option in options)
        return [SimpleNamespace(row=row, codes=[*range(10)], finish_reason="stop") for row in range(len(requests))]

    def synthesise(codes, options):
        asked.extend((option.voice, option.codes.seed) for option in options)
        return [np.zeros(480 * len(own), np.float32) for own in codes]

    prompts = [
        SimpleNamespace(index=i, voice=voice, text="a cat", language="en", request=None, reply=np.arange(4))
        for i, voice in enumerate(("Ethan", "Chelsie"))
    ]
    speech = SimpleNamespace(stream_codes=stream_codes, synthesise=synthesise)
    scorer = lambda waveforms, languages: [Heard("a cat") for _ in waveforms]  # noqa: E731
    Drawer(speech, scorer, 3, 6, 0, SpeechOptions(), SamplingOptions(), 100).answers(prompts)
    drawn, sounding = asked[:6], asked[6:]
    assert [voice for voice, _ in drawn] == ["Ethan"] * 3 + ["Chelsie"] * 3
    assert sounding == drawn  # the sound, too, in the same voice and with the same seed


@pytest.mark.parametrize("voice", ["Nobody", 3])
def test_a_voice_that_nobody_has_is_named_before_anything_is_drawn(omni, tmp_path, capsys, monkeypatch, voice):
    monkeypatch.setattr(prefer, "_drawer", lambda *_: pytest.fail("drawn"))
    said = [user("What?"), assistant(TEXT)]
    write_lines(tmp_path / "lines.jsonl", [{"messages": said}, {"messages": said, "voice": voice}])
    assert omni.run("--prompts", tmp_path / "lines.jsonl", "--to", tmp_path / "pairs.jsonl") == 2
    error = capsys.readouterr().err
    assert f"lines.jsonl:2: there is no voice {voice!r}. Voices of this checkpoint: " in error and "--voice" in error
    assert [each.name for each in tmp_path.iterdir()] == ["lines.jsonl"]


def test_conversations_stay_what_they_were(made, omni):
    answers = [row for row in rows(answers_file(made)) if "answers" in row]
    system, question, answer = answers[0]["messages"]
    assert system["role"] == "system" and question == user("What?")  # the usual system turn is written out
    assert answer == assistant([{"type": "text", "text": TEXT}])
    heard = answers[1]["messages"][1]["content"][0]
    assert heard == {"type": "audio", "audio": str(omni.folder / "data" / "beep.wav")}
    assert [row["name"] for row in answers[:2]] == ["prompts.jsonl:1", "prompts.jsonl:2"]
    written = [row for row in rows(answers_file(made)) if row.get("name") == "prompts.jsonl:3"]
    assert "answers" not in written[0] or written[0]["messages"][-1]["content"][0]["text"]


def test_pairs_are_chosen_anew_without_drawing(again, made, monkeypatch):
    before = made.read_bytes()
    monkeypatch.setattr(prefer, "_drawer", lambda *_: pytest.fail("drawn again"))
    status, report, _ = again("--overwrite")
    assert status == 0 and made.read_bytes() == before
    assert report["pairs"] == len(rows(made)) and report["prompts"] == 6
    assert sum(report["dropped_prompts"].values()) >= 3 and report["answers"] % 16 == 0
    assert sum(report["guarded"].values()) < report["answers"]
    status, _, err = again()
    assert status == 2 and "pairs.jsonl exists" in err
    other = made.with_name("other.jsonl")
    shutil.copy(answers_file(made), answers_file(other))
    status, one, _ = again("--pairs-per-prompt", 1, "--margin", 9, to=other)
    assert status == 0 and one["pairs"] == len(rows(other)) <= report["pairs"]
    assert all(line["preference"]["rejected"]["guard"] for line in rows(other))


def test_a_stopped_run_goes_on_and_gives_the_same(again, made):
    whole, cut = answers_file(made).read_text().splitlines(keepends=True), made.with_name("cut.jsonl")
    answers_file(cut).write_text("".join(whole[:2]) + whole[2][:50])
    status, *_ = again(to=cut)
    assert status == 0 and cut.read_bytes() == made.read_bytes()
    assert sorted(answers_file(cut).read_text().splitlines(keepends=True)) == sorted(whole)


def test_other_options_do_not_mix_with_old_answers(again, made):
    status, _, err = again("--overwrite", "--seed", 7)
    assert status == 2
    assert "pairs.answers.jsonl was begun with another seed (0, now 7)" in err
    old = made.with_name("old.jsonl")  # begun when a string of digits was one word
    first, *others = rows(answers_file(made))
    del first["settings"]["word_errors"]
    write_lines(answers_file(old), [first, *others])
    status, _, err = again(to=old)
    assert status == 2 and not old.exists()
    assert "old.answers.jsonl was begun with another word_errors (None, now 'each digit is a word')" in err
    answers_file(made.with_name("bad.jsonl")).write_text("{}\n")
    status, _, err = again(to=made.with_name("bad.jsonl"))
    assert status == 2 and "line 1 is damaged" in err


def test_references_of_pairs_that_are_there_already(omni, made, tmp_path, capsys):
    bare = tmp_path / "bare.jsonl"
    lines = rows(made)
    for line in lines:
        speech(line)["reference"] = [-1.0, -2.0]
    write_lines(bare, lines)
    assert omni.run("--reference-only", bare, "--to", tmp_path / "new.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == len(lines)
    assert (tmp_path / "new.jsonl").read_bytes() == made.read_bytes()
    assert omni.run("--reference-only", bare) == 0  # in place
    assert bare.read_bytes() == made.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bare.jsonl", "new.jsonl"]


def test_without_any_pair_the_status_is_1(again, made):
    target = made.with_name("none.jsonl")
    status, report, err = again("--max-codes", 1, to=target)
    assert status == 1 and report["pairs"] == 0 and report["to"] is None
    assert not target.exists() and "No pair was found" in err
    assert report["dropped_pairs"] == {"no answer to choose": report["answers"] // 16}


def test_the_model_can_listen_to_itself(again, made):
    target, one = made.with_name("own.jsonl"), made.with_name("one.jsonl")
    write_lines(one, [{"messages": [user("What?"), assistant(TEXT)]}])
    status, report, _ = again("--prompts", one, "--scorer", "thinker", to=target)
    assert status in (0, 1)
    heard = [each for row in rows(answers_file(target)) for each in row.get("answers", ()) if each["guard"] is None]
    assert heard and all(isinstance(each["transcript"], str) and each["wer"] > 0 for each in heard)
    assert report["wer"]["all"] == pytest.approx(np.mean([each["wer"] for each in heard]))


def test_the_model_is_asked_as_in_the_published_evaluation():
    asked = []

    def generate(requests, options):
        assert options.temperature == 0 and options.max_new_tokens == 256
        return [SimpleNamespace(text=f"answer {i}") for i in range(len(requests))]

    score = thinker_scorer(SimpleNamespace(prepare=lambda messages: asked.append(messages), generate=generate))
    waveform = np.ones(100, np.float32)
    assert [heard.text for heard in score([waveform, waveform], ["en", "zh"])] == ["answer 0", "answer 1"]
    system, question = asked[0]
    assert system == {"role": "system", "content": "You are a speech recognition model."}
    assert question["content"][0] == {"type": "audio", "audio": (waveform, 24000)}
    english = "Transcribe the English audio into text without any punctuation marks."
    assert question["content"][1] == {"type": "text", "text": english}
    assert asked[1][1]["content"][1]["text"] == "请将这段中文语音转换为纯文本，去掉标点符号。"


def test_a_recogniser_of_ones_own(omni, monkeypatch):
    monkeypatch.chdir(omni.folder)
    waveform = np.ones(100, np.float32)
    heard = own_scorer("prefer_ears:times")([waveform], ["en"])[0]
    assert heard.text == "oh a cat so" and heard.words[1] == ("a", 1.0, 1.5)
    cases = (("prefer_ears:broken", "failed on a recording: ValueError: no ears"), ("prefer_ears:silly", "found 3"))
    for name, words in cases:
        with pytest.raises(ConfigError, match=words):
            own_scorer(name)([waveform], ["en"])
    for name in ("prefer_ears", "prefer_ears:nothing", "no_such_module:hear"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            own_scorer(name)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--samples", 1], "--samples 1 is out of range"),
        (["--batch", 64], "--batch 64"),
        (["--temperature", 0], "--temperature 0 gives the same"),
        (["--margin", -1], "must not be negative"),
        (["--voice", "Nobody"], "no voice 'Nobody'"),
        (["--reference-only", "x.jsonl"], "either --prompts"),
        (["--to", "nowhere/x.jsonl"], "its folder is missing"),
    ],
)
def test_bad_options(omni, tmp_path, capsys, options, words):
    assert omni.run("--prompts", omni.prompts, "--to", tmp_path / "pairs.jsonl", *options) == 2
    assert words in capsys.readouterr().err


def test_bad_places(omni, tmp_path, tiny_checkpoint, capsys):
    for options, words in (
        (["--prompts", omni.prompts], "Say where the pairs"),
        (["--prompts", tmp_path / "x", "--to", tmp_path / "y"], "no such file"),
        (["--prompts", omni.prompts, "--to", omni.prompts, "--overwrite"], "holds the prompts"),
        (["--reference-only", omni.prompts, "--to", tmp_path / "y"], "prompts.jsonl:1: holds no pair"),
    ):
        assert omni.run(*options) == 2
        assert words in capsys.readouterr().err
    assert omni.run("--prompts", omni.prompts, "--to", tmp_path / "y", checkpoint=tiny_checkpoint[0]) == 2
    assert "Import it first" in capsys.readouterr().err
