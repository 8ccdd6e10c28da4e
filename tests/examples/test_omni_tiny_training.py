"""The training of Omni-tiny: its vocabulary, the checkpoint it begins with, and the chain of its steps."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.omni_tiny import chain, files, outset, start, tokenizer, train_all
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.chain import Step, steps
from examples.omni_tiny.join import Args as JoinArgs
from examples.omni_tiny.join import main as join
from examples.omni_tiny.join import mean, with_ears
from examples.omni_tiny.speech import write_sound
from examples.omni_tiny.train_all import Book, locked, selected
from examples.omni_tiny.training import Training
from input_pipeline.clip_files import load_sound
from input_pipeline.speech_mel import MEL_16K, speech_mel
from input_pipeline.tokenizer import Tokenizer
from omni_jax.cli.train import parse
from omni_jax.config_json import config_from_dict, read_processor_config, write_processor_config
from omni_jax.errors import ConfigError, DataError
from omni_jax.interop.random_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS
from omni_jax.interop.weight_table import flatten
from omni_jax.models.logical_axes import logical_axes
from omni_jax.models.speech_tokenizer import BLANK_LOGIT, MEAN_LOG_MEL
from omni_jax.presets import preset, speech_tokenizer_preset
from omni_jax.training.run_config import load_config
from tests.input_pipeline.media_files import tone

FEW = Amounts(
    talker_heart=40, talker_joe=40, talker_kokoro=20, hearing_fast=40, hearing_kokoro=20, questions=1, digits=2,
    human=40, digit_pictures=40, shape_pictures=40, films=20, human_films=24, chats=60, read_aloud=60,
    texts=40, compared=40, picture_chats=40, hard=20, joined=40,
)  # fmt: skip
PARTS = ("speech_tokenizer", "speaker_encoder", "dit", "bigvgan")
LABELS = np.tile(np.arange(10), 120).astype(np.uint8)


@pytest.fixture(scope="module")
def lines():
    return {f"{name}.jsonl": list(found) for name, found in Training(0, FEW, LABELS).lines().items()}


@pytest.fixture(scope="module")
def data(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("omni_tiny")
    for name, found in lines.items():
        files.write_lines(folder / name, found)
    files.write_lines(folder / "test_hears.jsonl", [{"text": "Zwölf Boxkämpfer"}])
    return folder


# The vocabulary


def test_all_texts_come_back_in_few_tokens(data, lines, tmp_path):
    tokenizer.main(tokenizer.Args(data, tmp_path / "tokenizer"))
    made = Tokenizer.load(tmp_path / "tokenizer")
    texts = {text for found in lines.values() for line in found for text in tokenizer.texts_of(line)}
    assert len(texts) > 100
    words = tokens = 0
    for text in texts:
        ids = made.encode(text)
        assert made.decode(ids) == text and max(ids) < FIRST_SPECIAL_ID
        words, tokens = words + len(text.split()), tokens + len(ids)
    assert tokens < 1.4 * words  # words are tokens, for the most part
    control = [made.encode(name, special_tokens=True) for name in SPECIAL_TOKENS]
    assert control == [[FIRST_SPECIAL_ID + place] for place in range(len(SPECIAL_TOKENS))]


def test_tests_are_not_looked_at(data):
    assert not any("Box" in text for text in tokenizer.training_texts(data))


def test_a_text_that_does_not_come_back_is_refused(tmp_path):
    files.write_lines(tmp_path / "text.jsonl", [{"text": "cafe\u0301"}])  # is composed by the tokenizer
    with pytest.raises(DataError, match="comes back from the tokenizer as"):
        tokenizer.main(tokenizer.Args(tmp_path, tmp_path / "tokenizer"))
    assert not (tmp_path / "tokenizer").exists()


# Where training begins


def test_what_is_said_of_the_beginning_is_the_preset():
    found = config_from_dict(start.described(preset("omni-tiny"), seed=0)["config.json"])
    assert found.thinker_config == preset("omni-tiny").thinker_config
    assert found.talker_config == preset("omni-tiny").talker_config
    assert found.token2wav_config == preset("omni-tiny").token2wav_config
    assert found.speech_tokenizer_config == speech_tokenizer_preset("omni-tiny", "scratch")
    assert found.discriminator_config == start.JUDGES


def test_small_frames_stay_small(tmp_path):
    write_processor_config(start.processor(), tmp_path)
    found = read_processor_config(tmp_path)
    assert found.image_min_pixels == found.video_min_pixels == 56 * 56


def test_voices_have_rows_that_nothing_else_uses(tmp_path):
    write_sound(tmp_path / "a.flac", tone(4.5, 24_000), 24_000)
    vector = np.arange(192.0).tolist()
    told = {name: {"speaker": vector, "reference": "a.flac"} for name in chain.VOICES}
    (tmp_path / "voices.json").write_text(json.dumps(told))
    voices = start.read_voices(tmp_path)
    assert list(voices) == ["heart", "joe", "emma", "onyx"]
    talker, rows = preset("omni-tiny").talker_config, [voice["bos_token"] for voice in voices.values()]
    used = {talker.tts_text_start_token_id, talker.tts_text_end_token_id, talker.tts_text_pad_token_id}
    assert len({*rows, *used}) == 7 and min(rows) > FIRST_SPECIAL_ID + len(SPECIAL_TOKENS)
    assert voices["joe"]["cond"].shape == (1, 192) and voices["joe"]["ref_mel"].shape == (1, 400, 80)


def test_outputs_begin_as_their_means(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 0.5)):
        write_sound(tmp_path / f"{name}.flac", tone(seconds, 24_000), 24_000)
    spoken = [{"audio": "a.flac", "text": "aab"}, {"audio": "b.flac", "text": "b"}]
    for name in ("transcribed", "recordings"):
        files.write_lines(tmp_path / f"{name}.jsonl", spoken)
    found = outset.output_biases(tmp_path)
    wanted = logical_axes(config_from_dict(start.described(preset("omni-tiny"), seed=0)["config.json"]), PARTS)[1]
    shapes = {path: leaf.shape for path, leaf in flatten(wanted)}
    assert {path: value.shape for path, value in found.items()} == {path: shapes[path] for path in found}

    letters = found["speech_tokenizer/text_head/bias"] + np.eye(257)[0] * BLANK_LOGIT
    shares = np.exp(letters) / np.exp(letters).sum()
    a, b = (1 + ord(letter) for letter in "ab")
    assert shares[[0, a, b]] == pytest.approx([0.7, 0.15, 0.15], abs=0.01)
    sounds = [load_sound(line, tmp_path, 16_000) for line in spoken]
    mel = np.concatenate([speech_mel(sound, MEL_16K) for sound in sounds]).mean(axis=0)
    assert found["speech_tokenizer/mel_decoder/conv_out/bias"] + MEAN_LOG_MEL == pytest.approx(mel, abs=1e-4)


def test_ears_are_the_lower_layers_of_the_speech_tokenizer():
    encoder = {
        "conv1": np.zeros(3), "conv2": np.zeros(3), "projection": np.zeros(2), "layers": {"a": np.zeros((4, 2))},
    }  # fmt: skip
    hears = {"conv1": np.ones(3), "conv2": np.ones(3), "quantize_in": np.ones(5), "layers": {"a": np.ones((2, 2))}}
    import jax.numpy as jnp

    encoder["layers"]["a"] = jnp.asarray(encoder["layers"]["a"])
    found = with_ears(encoder, hears)
    assert set(found) == set(encoder)
    assert found["conv1"].all() and found["conv2"].all() and not found["projection"].any()
    assert found["layers"]["a"].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    # a checkpoint in bfloat16 rounds nothing
    encoder["layers"]["a"] = encoder["layers"]["a"].astype(jnp.bfloat16)
    hears["layers"]["a"] = jnp.full((2, 2), 1.0001, jnp.float32)
    assert (with_ears(encoder, hears)["layers"]["a"][:2] == hears["layers"]["a"]).all()


# The steps and their configurations


def test_each_step_comes_after_those_that_it_reads():
    done = set()
    for step in steps():
        assert set(step.after) <= done
        done.add(step.name)
    beside = chain.left_out("theo", model=chain.Given("/model", "0" * 16))
    configs = {step.config for step in (*steps(), *beside) if step.config is not None}
    assert configs == set(chain.CONFIGS.glob("*.py"))


def test_configurations_begin_with_what_is_made_before_and_learn_from_what_there_is(lines):
    by_name = {step.name: step for step in steps()}
    made = {step.result: step.name for step in steps()}
    for step in steps():
        if step.config is None:
            continue
        config = load_config(step.config)
        assert config.output == f"runs/{step.name}" and step.result == f"{config.output}/model"
        assert made[config.checkpoint] in step.after
        for source in config.data.sources:
            assert source.path in lines or made[source.path] in step.after
        assert {source.path for source in config.held_out} <= {"held_out_recordings.jsonl"}
        assert config.dtype == "float32"
    for voice in ("voiced", *(f"spoken_{voice}" for voice in chain.VOICES)):
        name = voice.removeprefix("spoken_")
        assert f"{voice}.jsonl" in by_name[f"codes_{name}"].options and f"{voice}.jsonl" in lines


def before(step: Step, all_steps: list[Step]) -> set[str]:
    """Names of all steps that have ended when this one begins."""
    after = {each.name: each.after for each in all_steps}
    found, open_names = set(), list(step.after)
    while open_names:
        name = open_names.pop()
        found.add(name)
        open_names.extend(after[name])
    return found


def test_a_model_is_trained_further_by_the_stages_that_can_go_on():
    one = chain.Given("/model", "0123456789abcdef")
    done, given = set(), steps(model=one)
    for step in given:
        assert set(step.after) <= done
        done.add(step.name)
    whole = {step.name: step for step in steps()}
    assert done - whole.keys() == {"codes_before", "recoded"} and given[-1] == whole["omni-tiny"]
    begun = {step.name for step in given if "/model" in step.options}
    assert begun == {"speech_tokenizer", "codes_before", "recoded", "vocoder", "senses"}
    made = {step.result for step in given}
    for step in given:  # nothing is read that only the whole chain makes
        follows = dict(zip(step.options, step.options[1:]))
        start = follows.get("--checkpoint") or (load_config(step.config).checkpoint if step.config else None)
        assert start in {None, "/model", *made}
        reads = set(follows.values()) | {word.partition("=")[2] for word in step.options if "=" in word}
        makers = {each.name for each in given if each.result in reads and each is not step}
        assert makers <= before(step, given) and follows.get("--base") in {None, "/model", *made}
    for chain_ in (whole, {step.name: step for step in given}):  # what the Talker reads has passed all stages
        tongue = chain_["tongue"].options
        assert tongue[tongue.index("--base") + 1] == chain_["phones"].result and "phones" in chain_["tongue"].after
    assert {"talker=recoded", "speech_tokenizer=runs/speech_tokenizer/model"} < set(tongue)
    # a model that is moved is the same one, another one is not, and learns from other batches
    moved, other = (steps(model=chain.Given("/new", digest)) for digest in (one.digest, "f" * 64))
    assert [step.fingerprint for step in moved] == [step.fingerprint for step in given]
    differ = {a.name for a, b in zip(other, given) if a.fingerprint != b.fingerprint}
    assert differ == begun | {"token2wav", "pretrain2", "sight", "glances", "phones", "listening", "sft", "talker_icl"}


def test_the_stages_of_a_model_that_is_given_are_read_by_the_command():
    one = chain.Given("/model", "0123456789abcdef")
    for step in steps(model=one, scale=0.5):
        if step.name in ("speech_tokenizer", "token2wav", "pretrain2", "talker_icl"):
            config = parse(step.options[1:]).run
            usual = load_config(step.config)
            assert config.seed == config.data.seed == one.seed != usual.seed
            assert config.optimizer.learning_rate == pytest.approx(usual.optimizer.learning_rate / 2)
            assert config.model_dtype == "float32" and config.checkpoint in ("/model", "recoded", "senses", "tongue")


def test_a_trial_makes_runs_short_and_nothing_else():
    whole, short = ({step.name: step for step in steps(scale=scale)} for scale in (1.0, 0.01))
    assert short["prefer"] == whole["prefer"]
    assert whole["sft"].options == ("train", "--config", str(chain.CONFIGS / "sft.py"))
    total = load_config(chain.CONFIGS / "sft.py").optimizer.total_steps
    assert short["sft"].options[3:5] == ("--optimizer.total-steps", str(round(total / 100)))
    assert short["sft"].fingerprint != whole["sft"].fingerprint


def test_where_things_lie_is_no_other_setting():
    one, other = (steps(data=("--fsdd", folder, "--scale", "0.1"))[0] for folder in ("/a", "/b"))
    assert one.fingerprint == other.fingerprint != steps()[0].fingerprint
    assert one.fingerprint == steps(data=("--scale", "0.1"))[0].fingerprint


def test_steps_are_chosen_by_name():
    names = [step.name for step in steps()]
    assert [step.name for step in selected(steps(), None, None, None)] == names
    assert [step.name for step in selected(steps(), "sft", None, None)] == ["sft"]
    chosen = [step.name for step in selected(steps(), None, "sft", "talker_icl")]
    assert chosen == ["sft", "sight", "glances", "phones", "tongue", "talker_icl"]
    with pytest.raises(ConfigError, match="no step 'stf'"):
        selected(steps(), "stf", None, None)
    with pytest.raises(ConfigError, match="sft comes after start"):
        selected(steps(), None, "sft", "start")


# Going on after a fault


def fake(name: str, *after: str) -> Step:
    return Step(name, after, "nothing", (), f"{name}/model", name)


FAKES = fake("first"), fake("second", "first"), fake("third", "second")


def writing(step: Step, text: str = "") -> list[str]:
    return [sys.executable, "-c", f"import os; os.makedirs({step.place!r}); open({step.result!r}, 'w').write({text!r})"]


def make(book: Book, *wanted: Step) -> None:
    with locked(book.folder) as lock:
        for step in wanted:
            assert not book.finished(step)
            book.make(step, writing(step), lock)
            assert book.finished(step)


def test_what_has_ended_is_not_done_again_and_what_failed_is(tmp_path):
    first, second, _ = FAKES
    book = Book(tmp_path, FAKES)
    make(book, first)
    with locked(tmp_path) as lock:
        with pytest.raises(DataError, match="second failed with status 3"):
            book.make(second, [sys.executable, "-c", "raise SystemExit(3)"], lock)
        with pytest.raises(DataError, match="second was stopped. The same command goes on"):
            book.make(second, [sys.executable, "-c", ""], lock)  # a run that is asked to stop ends so
    again = Book(tmp_path, FAKES)
    assert again.finished(first) and not again.finished(second)
    make(again, second)
    told = json.loads((tmp_path / "steps" / "second.json").read_text())
    assert told["inputs"].keys() == {"first"} and told["made"] and told["processor_seconds"] < 60


def test_a_step_waits_for_what_it_reads(tmp_path):
    with pytest.raises(DataError, match="second needs first, whose first/model is not there"):
        Book(tmp_path, FAKES).finished(FAKES[1])


def test_results_of_other_inputs_are_not_taken_unasked(tmp_path):
    first, second, third = FAKES
    book = Book(tmp_path, FAKES)
    make(book, first, second, third)
    for path in (tmp_path / "first").iterdir():
        path.unlink()
    (tmp_path / "first").rmdir()
    make(book, first)
    with pytest.raises(DataError, match=r"second was made with other first than there are now\. Remove .*second to"):
        book.finished(second)
    assert book.finished(third)  # of the second that is there
    accepting = Book(tmp_path, FAKES, accept_changes=True)
    assert accepting.finished(second) and Book(tmp_path, FAKES).finished(second)
    other = replace(second, options=("--scale", "2"))
    with pytest.raises(DataError, match="second was made with other settings"):
        Book(tmp_path, (first, other, third)).finished(other)


def test_a_result_that_was_finished_without_us_is_taken(tmp_path):
    first, second, _ = FAKES
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "model").touch()
    book = Book(tmp_path, FAKES)
    assert book.finished(first)
    make(book, second)
    assert Book(tmp_path, FAKES).finished(second)


def test_being_stopped_stops_the_step_and_says_so(tmp_path):
    """The command is asked as we are; it saves and ends well, but has no result."""
    program = (
        "import signal, sys, time\n"
        "def stop(number, frame):\n    open('saved', 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    us = (
        "import sys\n"
        "from pathlib import Path\n"
        "from examples.omni_tiny.train_all import Book, locked, make_all\n"
        "from examples.omni_tiny.chain import Step\n"
        "from omni_jax.errors import DataError\n"
        "step = Step('first', (), 'nothing', (), 'first/model', 'first')\n"
        f"with locked(Path({str(tmp_path)!r})) as lock:\n"
        "    try:\n"
        f"        book = Book(Path({str(tmp_path)!r}), [step])\n"
        f"        make_all(book, [step], lambda step: [sys.executable, '-c', {program!r}], lock)\n"
        "    except DataError as error:\n"
        "        sys.exit(str(error))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", us], cwd=train_all.ROOT, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    wait_for(tmp_path / "ready", process)
    with pytest.raises(DataError, match="works in"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "first was stopped. The same command goes on." in said
    assert (tmp_path / "saved").exists()


def test_steps_that_do_not_read_each_other_run_side_by_side(tmp_path):
    """Each of two waits until the other has begun; the third reads both."""
    one, other, last = fake("one"), fake("other"), fake("last", "one", "other")

    def command(step: Step) -> list[str]:
        wait = "" if step is last else f"while not os.path.exists({({'one': 'other', 'other': 'one'})[step.name]!r}): 0"
        there = f"assert os.path.exists('one/model') == os.path.exists('other/model') == {step is last}"
        lines = "import os", there, f"os.mkdir({step.name!r})", wait, f"open({step.result!r}, 'w').close()"
        return [sys.executable, "-c", "\n".join(lines)]

    book = Book(tmp_path, (one, other, last))
    with locked(tmp_path) as lock:
        train_all.make_all(book, (one, other, last), command, lock, jobs=2)
    assert all(book.finished(step) for step in (one, other, last))
    told = json.loads((tmp_path / "steps" / "one.json").read_text())
    assert 0 < told["processor_seconds"] <= 2 * told["seconds"]


def test_what_runs_beside_a_failure_is_asked_to_stop(tmp_path):
    sleeps = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), sys.exit(0)))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    fails = "import os, time\nwhile not os.path.exists('ready'): time.sleep(0.05)\nraise SystemExit(3)"
    one, other, later = fake("one"), fake("other"), fake("later")
    programs = {"one": sleeps, "other": fails, "later": "open('begun', 'w').close()"}
    with locked(tmp_path) as lock, pytest.raises(DataError, match="other failed with status 3"):
        train_all.make_all(
            Book(tmp_path, (one, other, later)),
            (one, other, later),
            lambda step: [sys.executable, "-c", programs[step.name]],
            lock,
            jobs=2,
        )
    assert (tmp_path / "saved").exists() and not (tmp_path / "begun").exists()


def test_what_nothing_can_run_beside_is_alone():
    whole = steps()
    alone = [step.name for place, step in enumerate(whole) if train_all.is_alone(step, whole[place + 1 :])]
    assert alone[:3] == ["data", "tokenizer", "start"] and "speech_tokenizer" not in alone
    assert alone[-4:] == ["prefer", "talker_dpo", "talker_speaker", "omni-tiny"]


def test_processors_are_shared_out():
    assert train_all.shares([0, 1, 2, 3], 2) == [(0, 2), (1, 3)]
    assert train_all.shares([4, 5], 1) == [(4, 5)] and train_all.shares([0], 2) == [(0,), (0,)]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


def test_the_mean_of_parts_that_began_alike_is_taken(tiny_checkpoint, tmp_path):
    import jax
    import jax.numpy as jnp

    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import restore_params

    one = {"a": jnp.array([1, 3], jnp.bfloat16), "b": jnp.array([1e-3], jnp.float32)}
    other = {"a": jnp.array([2, 5], jnp.bfloat16), "b": jnp.array([3e-3], jnp.float32)}
    found = mean([one, other])
    assert found["a"].dtype == jnp.bfloat16 and found["a"].tolist() == [1.5, 4]
    np.testing.assert_allclose(found["b"], [2e-3], rtol=1e-6)

    base = tiny_checkpoint[1]
    model = read_config(base)
    before = restore_params(base, model, components=("vision_encoder",))["vision_encoder"]
    join(JoinArgs(base=base, to=tmp_path / "out", take=(f"vision_encoder={base}+{base}",)))
    after = restore_params(tmp_path / "out", model, components=("vision_encoder",))["vision_encoder"]
    jax.tree.map(np.testing.assert_array_equal, after, before)
