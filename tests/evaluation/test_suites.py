"""Each family of benchmarks on a few lines whose scores are computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from omni_jax.evaluation.data import read_task
from omni_jax.evaluation.prompts import prompt_text
from omni_jax.evaluation.report import passed, report_rows
from tests.evaluation.scored import media, outcome, rows, task_of, values, write_lines
from tests.input_pipeline.media_files import tone, write_audio

OPTIONS = {"question": "What is it?", "options": ["a red cat", "a blue cat", "a dog", "a bird"]}


def prompt(suite, name, folder, line):
    media(folder)
    task = task_of(suite, name)
    write_lines(folder / task.file, [line])
    return prompt_text(read_task(task, folder).items[0].messages).partition("\n")[2]  # without the system turn


def test_speech_recognition(tmp_path):
    lines = [
        {"audio": "x.wav", "text": "MISTER SMITH HAS TWENTY FIVE CATS"},
        {"audio": "x.wav", "text": "GOOD MORNING"},
    ]
    found = rows(
        task_of("asr", "librispeech_test_clean"),
        tmp_path,
        lines,
        ["Mr. Smith has 25 cats.", "good evening"],
        recognizer=lambda waveform, rate: "good morning",
    )["librispeech_test_clean"]
    # mister smith has 25 cats, good morning: one of seven
    assert found["value"] == pytest.approx(1 / 7) and found["better"] == "lower"
    assert found["floor"] == pytest.approx(5 / 7)  # the recogniser's own, on the same recordings
    assert found["prompt"] == (
        "system: You are a speech recognition model.\n"
        "user: <audio>Transcribe the English audio into text without any punctuation marks."
    )
    assert found["decoding"]["max_new_tokens"] == 256 and found["decoding"]["temperature"] == 0
    assert found["decoding"]["repetition_penalty"] == 1
    lines = [{"audio": "x.wav", "text": "今天二十五度"}]
    assert values("asr", "fleurs_zh", tmp_path, lines, ["今天，25 度吗"]) == {"fleurs_zh": pytest.approx(1 / 6)}


def test_speech_translation(tmp_path):
    lines = [{"audio": "x.wav", "translation": "He is at home today ."}]
    # five of six words in their places; pairs 4 of 5, threes 3 of 4, fours 2 of 3
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    found = values("speech_translation", "covost2_de_en", tmp_path, lines, ["He is at home today !"])
    assert found["covost2_de_en"] == pytest.approx(expected)
    told = prompt("speech_translation", "covost2_en_zh", tmp_path, {"audio": "x.wav", "translation": "你好"})
    assert told.endswith("English speech and produce a translation in Chinese text.")


def test_labels_of_sound(tmp_path):
    lines = [{"audio": "x.wav", "answer": "neutral"}, {"audio": "x.wav", "answer": "joy"}]
    found = values("audio_understanding", "meld", tmp_path, lines, ["Neutral", "joyful"])
    assert found == {"meld": 0.5}
    lines = [{"audio": "x.wav", "answer": "Throat clearing"}]
    assert values("audio_understanding", "vocalsound", tmp_path, lines, ["throat clearing."]) == {"vocalsound": 1}
    lines = [{"audio": "x.wav", "answer": 128}, {"audio": "x.wav", "answer": "100"}]
    found = values("audio_understanding", "giantsteps_tempo", tmp_path, lines, ["About 130 BPM", "no idea"])
    assert found == {"giantsteps_tempo": 0.5}


def test_mmau_counts_by_kind_and_in_all(tmp_path):
    line = {"audio": "x.wav", "answer": "a dog", **OPTIONS}
    lines = [line | {"task": "sound"}, line | {"task": "sound"}, line | {"task": "music"}]
    found = values("audio_understanding", "mmau", tmp_path, lines, ["It is a dog.", "a dog or a bird", "a dog"])
    assert found == {"mmau_sound": 0.5, "mmau_music": 1, "mmau_speech": None, "mmau_avg": pytest.approx(2 / 3)}


def test_spoken_questions(tmp_path):
    lines = [{"audio": "x.wav", "answer": "B"}, {"audio": "x.wav", "answer": "A"}]
    texts = ["The answer is B.", "I do not know."]
    assert values("voicebench", "voicebench_mmsu", tmp_path, lines, texts) == {"voicebench_mmsu": 0.5}
    assert values("spoken_instructions", "spoken_mmlu", tmp_path, lines, texts) == {"spoken_mmlu": 0.5}
    lines = [{"audio": "x.wav", "answer": "72"}]
    assert values("spoken_instructions", "spoken_gsm8k", tmp_path, lines, ["70 + 2 is 72."]) == {"spoken_gsm8k": 1}
    assert prompt("spoken_instructions", "spoken_gsm8k", tmp_path, lines[0]) == "user: <audio>"


@pytest.mark.parametrize("name", ["mmmu", "mmbench_en_dev", "ai2d"])
def test_options_on_pictures(tmp_path, name):
    lines = [{"image": "x.png", "answer": answer, **OPTIONS} for answer in ("B", "a dog", 0)]
    assert values("image_qa", name, tmp_path, lines, ["B", "(C)", "D."]) == {name: pytest.approx(2 / 3)}


def test_short_answers_on_pictures(tmp_path):
    line = {"image": "x.png", "question": "How much?"}
    lines = [line | {"answer": "10"}, line | {"answer": "Spain"}]
    assert values("image_qa", "chartqa", tmp_path, lines, ["Answer: 10.5", "Portugal"]) == {"chartqa": 0.5}
    lines = [line | {"answers": ["abcd", "xyz"]}]
    assert values("image_qa", "docvqa_val", tmp_path, lines, ["abce"]) == {"docvqa_val": 0.75}
    lines = [line | {"answers": ["two"] * 3 + ["three"] * 7}]
    # three people: each of them has two others beside them (2/3), the seven others have three (1)
    assert values("image_qa", "textvqa_val", tmp_path, lines, ["2"]) == {"textvqa_val": pytest.approx(0.9)}
    lines = [{"image": "x.png", "answer": "B", **OPTIONS}, line | {"answer": "12.0"}]
    assert values("image_qa", "mathvista_rules", tmp_path, lines, ["It is B.", "so 6 * 2 = 12"])["mathvista_rules"] == 1
    assert prompt("image_qa", "mmmu", tmp_path, lines[0] | {"hint": "Look."}).startswith("user: <image>Look.\nWhat is")


def test_boxes(tmp_path):
    # the file has 200x100 pixels, the model saw 56x28
    line = {"image": "x.png", "expression": "the cat", "box": [50, 25, 150, 75], "width": 200, "height": 100}
    texts = ['{"bbox_2d": [14, 7, 42, 21]}', '{"bbox_2d": [50, 25, 150, 75]}']
    assert values("grounding", "refcoco_val", tmp_path, [line, line], texts, seen=(56, 28)) == {"refcoco_val": 0.5}
    assert values("grounding", "pointing", tmp_path, [line], ["(28, 14)"], seen=(56, 28)) == {"pointing": 1}


def test_films(tmp_path):
    line = {"video": "x.mp4", "answer": "B", "use_audio": True, **OPTIONS}
    assert values("video_qa", "videomme", tmp_path, [line, line], ["B.", "C"]) == {"videomme": 0.5}
    told = prompt("video_qa", "videomme_subtitles", tmp_path, line | {"subtitles": "Hello."})
    assert told.startswith("user: <video>This video's subtitles are listed below:\nHello.\nWhat is it?\nA. a red cat")
    task = task_of("video_qa", "videomme")
    assert task.messages(line)[0]["content"][0]["use_audio"] is True


def test_omni_average_is_over_questions(tmp_path):
    line = {"image": "x.png", "audio": "x.wav", "answer": "a dog", **OPTIONS}
    lines = [line | {"audio_type": kind} for kind in ("speech", "speech", "sound", "music")]
    found = values("omni", "omnibench", tmp_path, lines, ["C", "C", "A", "A"])
    assert found == {"omnibench_speech": 1, "omnibench_sound": 0, "omnibench_music": 0, "omnibench_avg": 0.5}


def test_text(tmp_path):
    lines = [{"answer": "B", **OPTIONS}, {"answer": "I", "question": "?", "options": list("0123456789")}]
    assert values("text", "mmlu_pro", tmp_path, lines, ["The answer is (B).", "Answer: H"]) == {"mmlu_pro": 0.5}
    lines = [{"question": "Sum?", "answer": "3 * 400 = #### 1,200"}]
    assert values("text", "gsm8k", tmp_path, lines, ["so we get #### 1200."]) == {"gsm8k": 1}


SPOKEN = [tone(0.2, 24000, hertz=200), tone(0.2, 24000, hertz=800)]


def pitch(waveform, rate):
    """A speaker scorer: [share of low, share of high]."""
    crossings = np.sum(np.diff(np.signbit(waveform))) / 2 / (len(waveform) / rate)
    return [1.0, 0.0] if crossings < 400 else [0.0, 1.0]


def test_speech_generation(tmp_path):
    lines = [{"text": "Well, it's a cat.", "prompt_audio": "x.wav"}, {"text": "Go.", "prompt_audio": "x.wav"}]
    found = values(
        "speech_generation",
        "seed_en",
        tmp_path,
        lines,
        ["", ""],
        sounds=SPOKEN,
        recognizer=lambda waveform, rate: "WELL its a cat",
        speaker_scorer=pitch,
        mos_scorer=lambda waveform, rate: 3.5,
    )
    # one of four words, and three added and one replaced of one: the mean of utterances; the prompt has 440 Hz
    assert found == {
        "seed_en_wer": pytest.approx((1 / 4 + 4) / 2),
        "seed_en_sim": pytest.approx(0.5),
        "seed_en_mos": 3.5,
    }
    found = values("speech_generation", "seed_zh", tmp_path, [{**lines[0], "text": "你好"}], [""], sounds=SPOKEN[:1])
    assert found == {"seed_zh_wer": None, "seed_zh_sim": None, "seed_zh_mos": None}


def asked(text="x"):
    return [{"role": "user", "content": [{"type": "audio", "audio": "x.wav"}, {"type": "text", "text": text}]}]


def test_tiny_hears_sees_and_watches(tmp_path):
    lines = [{"messages": asked(), "reference": "four seven", "answer": "four seven", "speaker": "theo"}]
    found = rows(task_of("tiny", "hears_human"), tmp_path, lines, ["47"], recognizer=lambda w, r: "four eight")
    assert found["hears_human"]["value"] == 0 and found["hears_human"]["floor"] == 0.5
    assert found["hears_human"]["goal"] == 0.04 and found["hears_human"]["pass"] is True
    assert values("tiny_left_out", "hears_theo", tmp_path, lines, ["4"])["hears_theo"] == 0.5
    line = {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]}
    lines = [line | {"answer": "four seven"}, line | {"answer": "two"}]
    found = rows(task_of("tiny", "sees_string"), tmp_path, lines, ["The number is 472.", "The number is two."])
    assert found["sees_string"]["value"] == 0.5 and found["sees_string"]["pass"] is False
    line = {"messages": [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}]}
    lines = [line | {"kind": "same", "answer": answer} for answer in ("yes", "no", "no")]
    lines += [line | {"kind": "way", "answer": "left"}]
    found = rows(task_of("tiny", "watches_silenced"), tmp_path, lines, ["Yes."] * 3)["watches_silenced"]
    # of the kind "same" only, whose best constant answer is no
    assert found["value"] == pytest.approx(1 / 3) and found["goal"] == pytest.approx(2 / 3) and found["pass"] is True
    assert found["ablate"] == "no_audio"


def test_tiny_speaks_in_the_right_voice(tmp_path):
    for name, sound in zip(("low", "high"), SPOKEN):
        write_audio(tmp_path / f"{name}.wav", sound, 24000)
    ask = [{"role": "user", "content": "Read aloud: Go."}]
    line = {"messages": ask, "reference": "Go now.", "answer": "go now"}
    lines = [
        line | {"voice": voice, "recording": f"{sound}.wav"} for voice, sound in 2 * [("joe", "low"), ("emma", "high")]
    ]
    found = rows(
        task_of("tiny", "speaks"),
        tmp_path,
        lines,
        [""] * 4,
        sounds=[SPOKEN[0], SPOKEN[1], SPOKEN[1], []],
        recognizer=lambda waveform, rate: "go now",
        speaker_scorer=pitch,
        mos_scorer=lambda waveform, rate: 3.0,
    )
    assert found["speaks_wer"]["value"] == pytest.approx(2 / 8) and found["speaks_wer"]["floor"] == 0
    assert found["speaks_voice"]["value"] == 0.5 and found["speaks_voice"]["floor"] == 1
    assert found["speaks_mos"]["value"] == pytest.approx((3 * 3.0 + 1) / 4)  # silence has the lowest
    assert found["speaks_mos"]["floor"] == 3 and found["speaks_mos"]["pass"] is False


def test_a_recording_is_not_compared_with_itself(tmp_path):
    hertz = {"low": 200, "middle": 440, "high": 800}
    for name, pitch_ in hertz.items():
        write_audio(tmp_path / f"{name}.wav", tone(0.2, 24000, hertz=pitch_), 24000)

    def vector(waveform, rate):
        crossings = np.sum(np.diff(np.signbit(waveform))) / 2 / (len(waveform) / rate)
        return [1.0, 0.0] if crossings < 300 else [1.0, 0.5] if crossings < 600 else [0.0, 1.0]

    line = {"messages": [{"role": "user", "content": "Read aloud: Go."}], "reference": "Go."}
    pairs = [("joe", "low"), ("joe", "high"), ("emma", "middle"), ("emma", "middle")]
    lines = [line | {"voice": voice, "recording": f"{sound}.wav"} for voice, sound in pairs]
    found = rows(task_of("tiny", "speaks"), tmp_path, lines, [""] * 4, sounds=[[]] * 4, speaker_scorer=vector)
    # joe's two are unlike: each is nearer to emma than to the other; with itself the high one would be joe's
    assert found["speaks_voice"]["floor"] == 0.5 and found["speaks_voice"]["value"] == 0


def test_chance_is_what_the_interval_reaches_down_to(tmp_path):
    line = {"messages": [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}], "kind": "same"}
    lines = [line | {"answer": ("yes", "no")[i % 2]} for i in range(40)]
    task = task_of("tiny", "watches_silenced")
    for right, passes in ((22, True), (35, False)):
        texts = [each["answer"] if i < right else "maybe" for i, each in enumerate(lines)]
        found = rows(task, tmp_path, lines, texts)["watches_silenced"]
        assert found["goal"] == 0.5 and found["value"] > 0.5 and found["pass"] is passes


def test_tiny_converses(tmp_path):
    lines = [{"messages": asked(), "answer": "four"}, {"messages": asked(), "answer": "two"}]
    heard = iter(["The number is 4.", "the number is too"])
    found = values(
        "tiny",
        "converses_digit",
        tmp_path,
        lines,
        ["The number is four.", "The number is two."],
        sounds=SPOKEN,
        recognizer=lambda waveform, rate: next(heard),
    )
    assert found == {"converses_digit": 0.5, "converses_digit_written": 1}


def test_tiny_preferences_need_an_earlier_run(tmp_path):
    lines = [{"messages": asked(), "reference": "One one two."}] * 12
    task, ears = task_of("tiny", "speaks_hard"), iter(["one one two"] * 12 + ["one two"] * 12)

    def run():
        sounds = [np.zeros(24000, np.float32)] * 12
        return outcome(task, tmp_path, lines, [""] * 12, sounds=sounds, recognizer=lambda waveform, rate: next(ears))

    after, before = run(), run()
    alone = report_rows([after])
    assert alone[0]["pass"] is None and "--compare" in alone[0]["why"] and passed(alone) is None
    wer, pauses = report_rows([replace(after, before=before.rows)])
    assert wer["value"] == 0 and wer["before"] == pytest.approx(1 / 3) and wer["pass"] is True
    assert wer["difference"] == pytest.approx(-1 / 3) == pytest.approx(wer["difference_interval"][0])
    assert pauses["difference"] == 0 and pauses["pass"] is False
    assert report_rows([replace(before, before=after.rows)])[0]["pass"] is False


def test_tiny_shuffled_time_must_be_worse(tmp_path):
    ask = [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}]
    lines = [{"messages": ask, "answer": ("picture", "sound")[i % 2], "kind": "first"} for i in range(20)]
    right, guess = [line["answer"] for line in lines], ["picture"] * 20
    ordered, shuffled = task_of("tiny", "watches_first"), task_of("tiny", "watches_first_shuffled")
    both = [outcome(ordered, tmp_path, lines, right), outcome(shuffled, tmp_path, lines, guess)]
    first, second = report_rows(both)
    assert first["value"] == 1 and first["pass"] is True
    assert second["value"] == 0.5 and second["goal"] == 1 and second["pass"] is True
    assert report_rows([both[0], outcome(shuffled, tmp_path, lines, right)])[1]["pass"] is False
    hardly = outcome(shuffled, tmp_path, lines, ["sound", *right[1:]])  # one of twenty is worse: that may be chance
    worse = report_rows([both[0], hardly])[1]
    assert worse["value"] == 0.95 and worse["difference_interval"][1] == 0 and worse["pass"] is False
    assert "watches_first" in report_rows(both[1:])[0]["why"]
