"""`omni-jax speech-pairs`, `speech-codes`, `speech-report`: data for the stages of speech, and how good it is."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from input_pipeline.example_context import ExampleContext
from input_pipeline.examples import Sample
from input_pipeline.jsonl import JsonLines
from input_pipeline.speech_batch import CodedSpeech, VoicedCodes
from input_pipeline.tokenizer import Tokenizer
from omni_jax.cli.main import main
from omni_jax.cli.speech_pairs import shuffled
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.sampling.voices import load_speakers
from omni_jax.training.run import Rows
from omni_jax.training.run_clips import CodedClips, OpenClips, VoicedClips
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import SpeechTokenizerStage
from tests.input_pipeline.media_files import write_audio
from tests.speech_data import PAIRS, TEXTS, add_tokenizer, linked_checkpoint, make_pairs, read_lines, write_lines
from tests.training.spoken_sounds import voice

FAST = ["--solver", "euler", "--steps", "2"]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint, tmp_path_factory):
    """A checkpoint that also has a speech tokenizer."""
    return add_tokenizer(tiny_checkpoint[1], tmp_path_factory.mktemp("tokenizer") / "model")


@pytest.fixture
def omni(tokenizer, capsys):
    """Runs a subcommand: status, the JSON object of standard output, standard error."""

    def run(command, *options, checkpoint=tokenizer):
        status = main([command, "--checkpoint", str(checkpoint), "--json", *map(str, options)])
        out, err = capsys.readouterr()
        return status, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return run


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# pairs


def test_each_text_is_spoken_in_each_voice_and_the_sound_is_of_its_codes(speech_pairs, tiny_checkpoint):
    clips = read_lines(speech_pairs / "clips.jsonl")
    spoken = [(clip["text"], clip["voice"]) for clip in clips if not clip.get("shuffled")]
    assert spoken == [(text, name) for text in TEXTS for name in ("Ethan", "Chelsie")]
    for clip in clips:
        info = soundfile.info(speech_pairs / clip["audio"])
        assert (info.samplerate, info.channels, info.frames) == (24000, 1, 480 * len(clip["codes"]))
    assert len({tuple(clip["codes"]) for clip in clips}) == len(clips)
    speakers = load_speakers(tiny_checkpoint[1], read_config(tiny_checkpoint[1]))
    for clip in clips:
        assert np.array_equal(np.load(speech_pairs / clip["speaker"]), speakers[clip["voice"]].vector)
        assert np.array_equal(np.load(speech_pairs / clip["reference"]), speakers[clip["voice"]].ref_mel)


def test_some_codes_sound_once_more_in_another_order(speech_pairs):
    clips = read_lines(speech_pairs / "clips.jsonl")
    mixed = [(before, clip) for before, clip in pairwise(clips) if clip.get("shuffled")]
    assert 0 < len(mixed) < 4
    for before, clip in mixed:
        assert sorted(clip["codes"]) == sorted(before["codes"]) and clip["codes"] != before["codes"]
        assert "text" not in clip and clip["noise"] != before["noise"]


def test_shuffled_codes_stay_together_in_pieces():
    codes = list(range(100))
    mixed = shuffled(codes, np.random.default_rng(0))
    assert sorted(mixed) == codes and mixed != codes
    assert sum(b == a + 1 for a, b in pairwise(mixed)) > 75


@pytest.mark.parametrize(("kind", "batch"), [(CodedClips, CodedSpeech), (VoicedClips, VoicedCodes)])
def test_training_reads_the_pairs(speech_pairs, tiny_checkpoint, kind, batch):
    data = DataConfig((SourceConfig(str(speech_pairs / "clips.jsonl")),), rows=4, clip_seconds=2)
    config = RunConfig(SpeechTokenizerStage(size="tiny"), str(tiny_checkpoint[1]), "out", data)
    clips = OpenClips(config, read_config(tiny_checkpoint[1]), read_processor_config(tiny_checkpoint[1]), kind)
    rows, report = next(clips(data.sources, Rows(4, slice(0, 4), 1)))
    assert isinstance(rows, batch) and not report.skipped
    if kind is VoicedClips:
        voices = load_speakers(tiny_checkpoint[1], read_config(tiny_checkpoint[1])).values()
        lengths = {len(each.ref_mel) for each in voices}
        assert rows.ref_mel.shape[1] == 400 and lengths <= {400}
        assert all(any(np.array_equal(mel, each.ref_mel) for each in voices) for mel in rows.ref_mel)


def test_a_run_that_was_stopped_goes_on_to_the_same_pairs(speech_pairs, tiny_checkpoint, tmp_path, capsys):
    """As after a crash while the second group was written: its rows are cut short, one of its sounds is missing."""
    folder, texts = tmp_path / "pairs", tmp_path / "texts.txt"
    shutil.copytree(speech_pairs, folder)
    shutil.copyfile(speech_pairs.parent / "texts.txt", texts)
    (folder / "clips.jsonl").unlink()
    (folder / "sound" / "0000" / "0000003.wav").unlink()
    head, *rows = (folder / "made.jsonl").read_text().splitlines(keepends=True)
    (folder / "made.jsonl").write_text("".join([head, *rows[:3], rows[3][:30]]))
    assert make_pairs(tiny_checkpoint[1], texts, folder, *PAIRS, "--json") == 0
    assert files(folder) == files(speech_pairs)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    codes = [code for clip in read_lines(folder / "clips.jsonl") for code in clip["codes"]]
    assert (report["codes"], report["distinct"]) == (len(codes), len(set(codes)))
    assert report["sound_seconds"] == len(codes) / 50 and report["left_out"] == 0
    # a finished one only says so again; one with other options is another one
    assert make_pairs(tiny_checkpoint[1], texts, folder, *PAIRS) == 0
    assert make_pairs(tiny_checkpoint[1], texts, folder, *PAIRS, "--max-codes", "41") == 2
    assert "was begun with another max_codes (40, now 41)" in capsys.readouterr().err
    assert files(folder) == files(speech_pairs)


def test_conversations_without_an_answer_are_left_out_by_name(tiny_checkpoint, tmp_path, capsys):
    user = {"role": "user", "content": "Hello?"}
    lines = [{"messages": [user]}, "{", {"messages": [user, {"role": "assistant", "content": " "}]}]
    texts = write_lines(tmp_path / "talk.jsonl", lines)
    assert make_pairs(tiny_checkpoint[1], texts, tmp_path / "pairs", *PAIRS, "--json") == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["clips"], report["left_out"]) == (0, 6)  # in two voices
    for name, reason in (("talk.jsonl:1", "not an assistant's"), ("talk.jsonl:2", "not JSON"), ("jsonl:3", "no words")):
        assert any(name in each and reason in each for each in report["reasons"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--voices", "Nobody"], "There is no voice 'Nobody'. Voices of this checkpoint:"),
        (["--voices", "Ethan", "Ethan"], "named twice"),
        (["--samples", "0"], "--samples 0 is out of range"),
        (["--shuffled-codes", "1.5"], "--shuffled-codes 1.5 is out of range"),
        (["--max-codes", "3"], "--max-codes 3 is out of range"),
        (["--temperature", "-1"], "temperature = -1.0 is out of range"),
        (["--to", "texts.txt/pairs"], "texts.txt/pairs cannot be written: Not a directory"),
        (["--to", "texts.txt"], "texts.txt is a file"),
    ],
)
def test_bad_options_of_pairs_show_before_the_work(tiny_checkpoint, tmp_path, monkeypatch, options, message, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("Hello.\n")
    paths = ["--texts", "texts.txt", "--to", "pairs"]
    assert main(["speech-pairs", "--checkpoint", str(tiny_checkpoint[1]), *paths, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pairs" / "made.jsonl").exists()


# codes


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with recordings of 0.5 to 4.5 s."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, (seconds, rate) in enumerate(((0.5, 24000), (4.5, 16000), (2.0, 44100))):
        write_audio(folder / f"{number}.wav", voice(seconds, rate, seed=number), rate)
    return folder


def test_recordings_get_codes_and_keep_what_else_their_lines_say(omni, recordings, tmp_path):
    lines = [{"audio": f"{n}.wav", "text": "Oh.", "speaker": "v.npy", "reference": "0.wav", "id": n} for n in range(3)]
    data, target = write_lines(recordings / "clips.jsonl", lines), tmp_path / "coded.jsonl"
    status, report, _ = omni("speech-codes", "--data", data, "--to", target, "--batch", 2)
    coded = read_lines(target)
    assert status == 0 and [len(line["codes"]) for line in coded] == [25, 225, 100]
    for line, before in zip(coded, lines):
        moved = {key: str(recordings / before[key]) for key in ("audio", "speaker", "reference")}
        assert {key: line[key] for key in line if key != "codes"} == before | moved
    every = [code for line in coded for code in line["codes"]]
    assert (report["codes"], report["distinct"], report["num_codes"]) == (350, len(set(every)), 128)
    assert [path.name for path in tmp_path.iterdir()] == ["coded.jsonl"]
    # beside the data paths stay short; how many are encoded at a time changes nothing
    beside = recordings / "beside.jsonl"
    assert omni("speech-codes", "--data", data, "--to", beside)[0] == 0
    assert read_lines(beside) == [before | {"codes": line["codes"]} for before, line in zip(lines, coded)]


def test_recorded_answers_become_codes_that_the_talker_trains_on(omni, recordings, tokenizer, tmp_path):
    def talk(spoken):
        answer = [{"type": "text", "text": "Oh."}, {"type": "speech", "voice": "Ethan", **spoken}]
        asked = [{"type": "audio", "audio": "1.wav"}, {"type": "text", "text": "What?"}]
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}

    lines = [talk({"audio": "0.wav"}), talk({"codes": [5, 6]}), {"text": "Only text."}]
    data = write_lines(recordings / "talk.jsonl", lines[:2])
    assert omni("speech-codes", "--data", data, "--to", tmp_path / "coded.jsonl")[0] == 0
    clip = write_lines(recordings / "clip.jsonl", [{"audio": "0.wav"}])
    assert omni("speech-codes", "--data", clip, "--to", tmp_path / "clip.jsonl")[0] == 0
    (expected,) = (line["codes"] for line in read_lines(tmp_path / "clip.jsonl"))

    config = read_config(tokenizer)
    voices = {name: each.token_id for name, each in load_speakers(tokenizer, config).items()}
    context = ExampleContext(
        Tokenizer.load(tokenizer), config, read_processor_config(tokenizer), voices=voices, num_codes=128
    )
    done = JsonLines(tmp_path / "coded.jsonl")
    for index, codes in enumerate((expected, [5, 6])):
        sample = Sample(done.read(index), context, name="talk")
        (answer,) = sample.example(0, len(sample)).speech
        assert answer.codes.tolist() == codes
    with pytest.raises(Exception, match="omni-jax speech-codes"):
        Sample(JsonLines(data).read(0), context, name="talk")


def test_lines_that_cannot_be_used_are_left_out_by_name(omni, recordings, tmp_path):
    spoken = {"role": "assistant", "content": [{"type": "speech", "voice": "Ethan", "audio": "nowhere.wav"}]}
    lines = [
        {"audio": "0.wav"},
        "{",
        {"audio": "nowhere.wav"},
        {"sound": "0.wav"},
        {"messages": [{"role": "user", "content": "?"}, spoken]},
    ]
    (recordings / "empty.wav").write_bytes(b"")
    data = write_lines(recordings / "bad.jsonl", [*lines, {"audio": "empty.wav"}])
    target = tmp_path / "coded.jsonl"
    status, report, err = omni("speech-codes", "--data", data, "--to", target)
    assert status == 2 and "--max-rejected 0.1" in err
    assert (report["lines"], report["left_out"], len(read_lines(target))) == (6, 5, 1)
    for number, reason in ((2, "not JSON"), (3, "nowhere.wav"), (4, '{"audio"'), (5, "nowhere.wav"), (6, "empty")):
        assert any(f"bad.jsonl:{number}: " in each and reason in each for each in report["reasons"])
    options = ["--data", data, "--to", target, "--max-rejected", 1]
    assert "exists. Give another name, or --overwrite" in omni("speech-codes", *options)[2]
    assert omni("speech-codes", *options, "--overwrite")[0] == 0


def test_encoding_goes_on_where_it_was_stopped(omni, recordings, tokenizer, tmp_path, monkeypatch):
    from omni_jax.cli.prefer_file import AnswerFile

    data = write_lines(recordings / "three.jsonl", [{"audio": f"{n}.wav"} for n in range(3)])
    whole, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    assert omni("speech-codes", "--data", data, "--to", whole, "--batch", 2)[0] == 0
    add, added = AnswerFile.add, []

    def broken(self, rows):
        if added:
            raise KeyboardInterrupt
        added.append(len(rows))
        add(self, rows)

    monkeypatch.setattr(AnswerFile, "add", broken)
    assert omni("speech-codes", "--data", data, "--to", again, "--batch", 2)[0] == 130
    assert not again.exists() and added == [2]
    monkeypatch.setattr(AnswerFile, "add", lambda self, rows: (added.append(len(rows)), add(self, rows)))
    assert omni("speech-codes", "--data", data, "--to", again, "--batch", 2)[0] == 0
    assert added == [2, 1] and read_lines(again) == read_lines(whole)


@pytest.mark.parametrize("command", ["speech-codes", "speech-report"])
def test_a_checkpoint_without_a_tokenizer_is_refused(omni, tiny_checkpoint, recordings, tmp_path, command):
    data = write_lines(recordings / "one.jsonl", [{"audio": "0.wav"}])
    options = ["--data", data] + (["--to", tmp_path / "out.jsonl"] if command == "speech-codes" else [])
    status, _, err = omni(command, *options, checkpoint=tiny_checkpoint[1])
    assert status == 2 and "has no speech tokenizer. Train one with configs/speech_tokenizer_inversion.py" in err
    options[1] = recordings / "nowhere.jsonl"
    status, _, err = omni(command, *options)
    assert status == 2 and "nowhere.jsonl: no such file" in err


# report


def test_a_report_compares_codes_and_sound(omni, speech_pairs, tmp_path, monkeypatch):
    """An untrained tokenizer: what is told is checked, not how good it is."""
    data = speech_pairs / "clips.jsonl"
    clips = read_lines(data)
    assert omni("speech-codes", "--data", data, "--to", tmp_path / "coded.jsonl")[0] == 0
    made = read_lines(tmp_path / "coded.jsonl")
    (tmp_path / "report_ears.py").write_text("def hear(waveform, rate):\n    return 'oh a dog'\n")
    monkeypatch.chdir(tmp_path)
    status, report, _ = omni("speech-report", "--data", data, "--scorer", "report_ears:hear", *FAST)
    assert status == 0 and report["clips"] == len(clips) and report["left_out"] == 0
    same = [a == b for clip, line in zip(clips, made) for a, b in zip(clip["codes"], line["codes"])]
    assert report["accuracy"] == pytest.approx(np.mean(same))
    _, often = np.unique([code for line in made for code in line["codes"]], return_counts=True)
    share = often / often.sum()
    assert (report["codes"], report["distinct"], report["usage"]) == (often.sum(), len(often), len(often) / 128)
    assert report["perplexity"] == pytest.approx(np.prod(share**-share))
    again = report["resynthesis"]
    assert again["mel_l1"] > 0 and again["cepstral_db"] > 0 and 0 <= again["cycle_accuracy"] <= 1
    # a word of three is wrong in each clip of the first text, all are wrong, and none of three right, in the second
    wrong = [{TEXTS[0]: 1 / 3, TEXTS[1]: 1}[clip["text"]] for clip in clips if "text" in clip]
    assert set(wrong) == {1 / 3, 1}
    assert again["wer_original"] == again["wer"] == pytest.approx(np.mean(wrong))


def test_codes_that_a_tokenizer_finds_again_are_all_right(omni, speech_pairs, tmp_path):
    data = speech_pairs / "clips.jsonl"
    assert omni("speech-codes", "--data", data, "--to", tmp_path / "coded.jsonl")[0] == 0
    status, report, _ = omni("speech-report", "--data", tmp_path / "coded.jsonl", "--no-resynthesis", "--most", 2)
    assert status == 0 and report["accuracy"] == 1 and report["resynthesis"] is None and report["clips"] == 2


def test_recordings_that_cannot_be_reported_on_are_named(omni, recordings):
    lines = ["{", {"audio": "nowhere.wav"}, {"audio": "0.wav", "codes": [1, 2, 3]}, {"audio": "0.wav", "codes": "x"}]
    data = write_lines(recordings / "worse.jsonl", lines)
    status, report, _ = omni("speech-report", "--data", data, "--no-resynthesis")
    assert status == 1 and (report["clips"], report["left_out"], report["accuracy"]) == (0, 4, None)
    for number, reason in (
        (1, "not JSON"),
        (2, "nowhere.wav"),
        (3, "has 3 codes, but sound for 25"),
        (4, 'no "codes"'),
    ):
        assert any(f"worse.jsonl:{number}: " in each and reason in each for each in report["reasons"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scorer", "nowhere:hear"], "--scorer 'nowhere:hear' cannot be imported"),
        (["--scorer", "thinker", "--no-resynthesis"], "leave --no-resynthesis out"),
        (["--steps", "1"], "--steps 1 is out of range"),
        (["--voice", "Nobody"], "There is no voice 'Nobody'"),
    ],
)
def test_bad_options_of_the_report_show_before_the_work(omni, recordings, options, message):
    data = write_lines(recordings / "one.jsonl", [{"audio": "0.wav"}])
    status, _, err = omni("speech-report", "--data", data, *options)
    assert status == 2 and message in err


def test_codes_that_token2wav_does_not_have_are_told(omni, tokenizer, recordings, tmp_path):
    content = json.loads((tokenizer / "config.json").read_text())["speech_tokenizer_config"]
    other = linked_checkpoint(tokenizer, tmp_path / "other", speech_tokenizer_config=content | {"num_codes": 8192})
    data = write_lines(recordings / "one.jsonl", [{"audio": "0.wav"}])
    status, _, err = omni("speech-report", "--data", data, checkpoint=other)
    assert status == 2 and "has 8192 codes, Token2Wav 129" in err and "--no-resynthesis" in err
