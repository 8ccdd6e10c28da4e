"""Parity passes where our numbers equal PyTorch's, and finds and names a fault where they do not."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.cli.main import main
from omni_jax.interop import parity, parity_inputs
from omni_jax.interop.parity import Report, run_checks
from omni_jax.interop.parity_encoders import audio_encoder_rows, vision_encoder_rows
from omni_jax.interop.parity_inputs import input_rows
from omni_jax.interop.parity_rows import Row, Step, compare, named_axes
from omni_jax.interop.parity_speech import spoken_rows
from omni_jax.interop.parity_talker import talker_rows
from omni_jax.interop.parity_thinker import greedy_rows, thinker_rows
from omni_jax.interop.parity_token2wav import token2wav_rows
from omni_jax.interop.parity_weights import MemoryWeights
from omni_jax.interop.random_checkpoint import make_random_checkpoint

MODEL_ROWS = [
    "audio encoder",
    "audio encoder, each layer alone",
    "vision encoder",
    "vision encoder, each layer alone",
    "thinker embeddings, media placed",
    "thinker, each layer alone",
    "thinker layers, end to end",
    "thinker final norm",
    "logits",
]
SPEECH_ROWS = [
    "talker input, both tracks projected",
    "talker, each layer alone",
    "talker layers, end to end",
    "talker final norm",
    "talker logits",
    "talker, code by code",
    "speaker encoder",
    "dit, one evaluation",
    "dit, flow of 36 evaluations",
    "bigvgan, waveform of a mel",
]
SPOKEN = ["text", "image", "audio", "film with sound"]
CASES = ["text", "image", "two images", "audio", "film", "film with sound", "mixture"]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return parity.random_subject(tmp_path_factory.mktemp("parity"), "tiny")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published folder as the real ones are: bfloat16, in shards."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    make_random_checkpoint(folder, "tiny", dtype="bfloat16")
    return folder


def with_fault(subject, path: str, index, change: float = 0.5):
    """The subject with one value of one of our parameters moved."""
    *folders, last = path.split("/")
    params = jax.tree.map(lambda x: x, subject.weights.params)  # new dicts, same arrays
    node = params
    for folder in folders:
        node = node[folder]
    node[last] = node[last].at[index].add(change)
    return replace(subject, weights=MemoryWeights(params))


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_a_random_model_agrees_in_every_row(subject):
    rows = run_checks(subject)
    names = ["mel", "image patches", "video patches", "position ids", *MODEL_ROWS]
    names += [f"greedy tokens: {case}" for case in CASES] + SPEECH_ROWS
    names += [f"{what}: {case}" for case in SPOKEN for what in ("greedy codes", "waveform")]
    assert [row.name for row in rows] == names
    assert all(row.passed and row.max_rel <= row.tolerance for row in rows)
    assert all(row.diverges_at is None for row in rows)


@pytest.mark.parametrize(
    "path, index, end_to_end, alone",
    [
        ("conv1/kernel", (1, 5, 7), ".input", None),
        ("layers/attention/query/kernel", (1, 3, 2, 4), ".layers.1 output", "layers.1 alone"),
        ("layers/mlp/up/kernel", (0, 3, 9), ".layers.0 output", "layers.0 alone"),
        ("projection/kernel", (3, 9), " output", None),
    ],
)
def test_a_fault_in_the_audio_encoder_is_named(subject, path, index, end_to_end, alone):
    rows = by_name(run_checks(with_fault(subject, f"audio_encoder/{path}", index), [audio_encoder_rows]))
    assert rows["audio encoder"].diverges_at.startswith(f"audio_encoder{end_to_end}, block ")
    assert rows["audio encoder, each layer alone"].passed == (alone is None)
    if alone:
        assert rows["audio encoder, each layer alone"].diverges_at.startswith(f"audio_encoder.{alone}, block ")


@pytest.mark.parametrize(
    "path, index, end_to_end, alone",
    [
        ("patch_embed/kernel", (100, 7), ".input", None),
        ("layers/attention/out/kernel", (2, 1, 3, 4), ".layers.2 output", "layers.2 alone"),
        ("merger/up/kernel", (3, 9), " output", None),
    ],
)
def test_a_fault_in_the_vision_encoder_is_named(subject, path, index, end_to_end, alone):
    rows = by_name(run_checks(with_fault(subject, f"vision_encoder/{path}", index), [vision_encoder_rows]))
    assert rows["vision encoder"].diverges_at.startswith(f"vision_encoder{end_to_end}, frame ")
    assert rows["vision encoder, each layer alone"].passed == (alone is None)
    if alone:
        assert rows["vision encoder, each layer alone"].diverges_at.startswith(f"vision_encoder.{alone}, frame ")


@pytest.mark.parametrize(
    "path, index, first",
    [
        ("layers/attention/key/kernel", (1, 3, 0, 4), ("thinker, each layer alone", "thinker.layers.1 alone, prompt ")),
        ("layers/mlp_norm/scale", (2, 8), ("thinker, each layer alone", "thinker.layers.2 alone, prompt ")),
        ("final_norm/scale", (8,), ("thinker final norm", "thinker.final_norm output, prompt ")),
        ("lm_head/kernel", (5, 77), ("logits", "logits, prompt ")),
    ],
)
def test_a_fault_in_the_thinker_is_named(subject, path, index, first):
    checks = [audio_encoder_rows, vision_encoder_rows, thinker_rows]
    rows = run_checks(with_fault(subject, f"thinker/{path}", index), checks)
    failed = [row for row in rows if not row.passed]
    assert failed[0].name == first[0]
    assert failed[0].diverges_at.startswith(first[1])
    assert failed[-1].name == "logits"


def test_a_fault_in_one_logit_names_the_id_and_both_values(subject):
    checks = [audio_encoder_rows, vision_encoder_rows, thinker_rows]
    row = run_checks(with_fault(subject, "thinker/lm_head/kernel", (5, 77)), checks)[-1]
    assert "logit of id 77: ours " in row.diverges_at
    assert ", PyTorch " in row.diverges_at


def test_a_fault_in_one_embedding_row_is_found_where_its_token_stands(subject):
    token = subject.requests["image"].token_ids[1]
    checks = [audio_encoder_rows, vision_encoder_rows, thinker_rows]
    rows = by_name(run_checks(with_fault(subject, "thinker/embed/embedding", (int(token), 3)), checks))
    assert "token 1, channel 3" in rows["thinker embeddings, media placed"].diverges_at
    assert rows["thinker, each layer alone"].passed


def test_another_answer_fails_its_row_and_names_the_token(subject):
    rows = run_checks(with_fault(subject, "thinker/final_norm/scale", slice(None, 32), change=-3.0), [greedy_rows])
    failed = [row for row in rows if not row.passed]
    assert failed
    assert failed[0].diverges_at.startswith("token ")
    assert failed[0].max_abs >= 1


@pytest.mark.parametrize(
    "path, index, first, last",
    [
        ("projection/kernel", (3, 9), "talker input, both tracks projected", "talker, code by code"),
        ("layers/attention/value/bias", (1, 0, 4), "talker, each layer alone", "talker, code by code"),
        ("codec_head/kernel", (5, 77), "talker logits", "talker, code by code"),
    ],
)
def test_a_fault_in_the_talker_is_named(subject, path, index, first, last):
    rows = run_checks(with_fault(subject, f"talker/{path}", index), [talker_rows])
    failed = [row for row in rows if not row.passed]
    assert (failed[0].name, failed[-1].name) == (first, last)
    assert failed[0].diverges_at.startswith("talker.")
    assert ", prompt " in failed[0].diverges_at or ", PyTorch " in failed[0].diverges_at


@pytest.mark.parametrize(
    "path, index, first, place",
    [
        ("speaker_encoder/block_2/squeeze/bias", (3,), "speaker encoder", "timbre of Ethan, channel "),
        # code 0 stands for no code in the branch without guidance
        ("dit/codes/embedding", (0, 3), "dit, one evaluation", "dit.layers.0 at t = 0.0, branch 1, frame "),
        ("dit/modulation/kernel", (2, 5, 7), "dit, one evaluation", "dit.layers.2 at t = 0.0, branch "),
        ("dit/output/bias", (7,), "dit, one evaluation", "dit, conditional velocity at t = 0.0, frame "),
        ("bigvgan/block_2_1/dilated_1/bias", (3,), "bigvgan, waveform of a mel", "bigvgan.stages.2, place "),
        ("bigvgan/conv_out/kernel", (3, 0, 0), "bigvgan, waveform of a mel", "bigvgan.waveform, sample "),
    ],
)
def test_a_fault_in_the_sound_is_named(subject, path, index, first, place):
    rows = run_checks(with_fault(subject, path, index), [token2wav_rows])
    failed = [row for row in rows if not row.passed]
    assert failed[0].name == first
    assert failed[0].diverges_at.startswith(place)


def test_other_codes_and_another_sound_fail_their_rows(subject):
    rows = by_name(run_checks(with_fault(subject, "talker/final_norm/scale", slice(None, 24), -3.0), [spoken_rows]))
    failed = [name for name, row in rows.items() if not row.passed]
    assert any(name.startswith("greedy codes: ") for name in failed)
    assert rows[failed[0]].diverges_at.startswith("code ")
    assert all(row.passed for name, row in rows.items() if name.startswith("waveform: "))
    rows = by_name(run_checks(with_fault(subject, "bigvgan/conv_out/kernel", (3, 0, 0)), [spoken_rows]))
    assert all(row.passed for name, row in rows.items() if name.startswith("greedy codes: "))
    assert not any(row.passed for name, row in rows.items() if name.startswith("waveform: "))


def test_a_model_that_cannot_speak_has_no_rows_of_speech(tmp_path):
    config = make_random_checkpoint(tmp_path / "mute", "tiny", talker=False)
    assert not config.speaks
    (tmp_path / "media").mkdir()
    subject = parity.checkpoint_subject(tmp_path / "mute", tmp_path / "media")
    assert run_checks(subject, [talker_rows, token2wav_rows, spoken_rows]) == []


def test_a_wrong_position_is_found(subject):
    request = subject.requests["mixture"]
    moved = request.position_ids.copy()
    moved[1, 30] += 1
    requests = subject.requests | {"mixture": replace(request, position_ids=moved)}
    row = by_name(run_checks(replace(subject, requests=requests), [input_rows]))["position ids"]
    assert not row.passed
    assert row.diverges_at.startswith("position ids of prompt 'mixture', axis 1, token 30: ours ")


def test_wrong_features_are_found(subject, monkeypatch):
    right_mel, right_patches = parity_inputs.log_mel, parity_inputs.video_patches

    def wrong_mel(waveform, processor):
        mel = right_mel(waveform, processor)
        mel[3, 7] += 0.01
        return mel

    def wrong_patches(frames, processor):
        return right_patches(frames[::-1], processor)

    monkeypatch.setattr(parity_inputs, "log_mel", wrong_mel)
    monkeypatch.setattr(parity_inputs, "video_patches", wrong_patches)
    rows = by_name(run_checks(subject, [input_rows]))
    assert rows["mel"].diverges_at.startswith("mel of recording.wav, bin 3, frame 7: ours ")
    assert rows["video patches"].diverges_at.startswith("patches of film.mp4, patch ")
    assert rows["image patches"].passed


def test_a_published_folder_agrees_layer_by_layer_and_keeps_no_weights(published, tmp_path):
    loaded = []
    subject = parity.checkpoint_subject(published, tmp_path, progress=loaded.append)
    rows = run_checks(subject)
    assert all(row.passed for row in rows)
    assert [row.name for row in rows][4:] == [*MODEL_ROWS, "greedy tokens: the first only", *SPEECH_ROWS]
    alone = by_name(rows)["thinker, each layer alone"]
    assert [step.name for step in alone.steps] == [f"thinker.layers.{index} alone" for index in range(3)]
    for model in (subject.reference.model, subject.reference.speech.talker):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert loaded.count("thinker.model.layers.1") == 1
    assert loaded.count("talker.model.layers.1") == 4  # the prompt, and three codes with its cache


def test_a_fault_in_one_layer_of_a_published_folder_is_named(published, tmp_path, monkeypatch):
    subject = parity.checkpoint_subject(published, tmp_path)
    right = subject.weights.layer

    def layer(path, index):
        params = right(path, index)
        return jax.tree.map(lambda x: x * jnp.float32(1.01), params) if index == 1 else params

    monkeypatch.setattr(subject.weights, "layer", layer)
    rows = by_name(run_checks(subject))
    alone, walk = rows["thinker, each layer alone"], rows["thinker layers, end to end"]
    assert alone.diverges_at.startswith("thinker.layers.1 alone, prompt 'mixture', token ")
    assert [step.max_rel > alone.tolerance for step in alone.steps] == [False, True, False]
    assert [step.max_rel > walk.tolerance for step in walk.steps] == [False, True, True]  # ours is carried on
    assert not rows["logits"].passed


def test_the_command_prints_one_object_and_tells_by_its_status(published, monkeypatch, capsys):
    assert main(["parity", "--checkpoint", str(published), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)  # nothing else on standard output
    assert result["pass"] is True
    assert all({"name", "max_abs", "max_rel", "tolerance", "pass"} <= set(row) for row in result["rows"])
    assert "All 24 rows pass." in captured.err

    failed = Report((Row("mel", np.inf, np.inf, 1e-4, False, "mel of a.wav, bin 0, frame 0: ours nan, PyTorch 1"),))
    monkeypatch.setattr(parity, "random_parity", lambda *args, **options: failed)
    assert main(["parity", "--random", "tiny", "--json"]) == 1
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["max_abs"] is None
    assert row["diverges_at"].startswith("mel of a.wav, bin 0")


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--random", "tiny", "--checkpoint", "x"], "exclude each other"),
        (["--checkpoint", "/no/such/folder"], "/no/such/folder"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_bad_arguments_give_status_2(arguments, word, capsys):
    assert main(["parity", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_row_names_the_first_tensor_beyond_its_tolerance_and_the_place_of_its_largest_difference():
    theirs = np.ones((2, 3), np.float32)
    ours = theirs.copy()
    ours[1, 2] += 0.25
    where = named_axes("row", "channel")
    row = compare("x", [Step("a", theirs, theirs, where), Step("b", ours, 2 * theirs, where)], tolerance=0.1)
    assert not row.passed
    assert row.diverges_at == "b, row 0, channel 0: ours 1, PyTorch 2"
    row = compare("x", [Step("a", ours, theirs, where), Step("b", ours, 2 * theirs, where)], tolerance=0.1)
    assert row.diverges_at == "a, row 1, channel 2: ours 1.25, PyTorch 1"
    assert (row.max_abs, row.max_rel) == (1.0, 0.5)
    assert row.worst.name == "b"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails(bad):
    ours = np.array([1.0, bad, 3.0], np.float32)
    for pair in ((ours, np.ones(3, np.float32)), (np.ones(3, np.float32), ours)):
        row = compare("x", [Step("a", *pair, named_axes("place"))], tolerance=1e9)
        assert not row.passed
        assert row.diverges_at.startswith("a, place 1: ours ")
        json.dumps(row.to_json(), allow_nan=False)


def test_shapes_that_differ_fail():
    row = compare("x", [Step("a", np.ones(3), np.ones((3, 1)), named_axes("place"))], tolerance=1.0)
    assert row.diverges_at == "a, shape: ours (3,), PyTorch (3, 1)"


def test_equal_integers_have_no_distance_even_where_all_are_zero():
    row = compare("x", [Step("a", np.zeros(3, int), np.zeros(3, int), named_axes("place"))], tolerance=0.0)
    assert row.passed
    assert row.max_rel == 0
