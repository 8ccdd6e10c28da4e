"""Voices are read from the checkpoint's file without PyTorch; a file that is not what it should be is an error."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError, PromptError
from omni_jax.presets import preset
from omni_jax.sampling.voices import choose_speaker, load_speakers, read_torch_file

CONFIG = preset("tiny")


def entry(**changes):
    dit = CONFIG.token2wav_config.dit_config
    mel = torch.zeros(1, 40, dit.mel_dim)
    return {"bos_token": 1111, "cond": torch.ones(1, dit.enc_emb_dim), "ref_mel": mel} | changes


def saved(folder, content):
    torch.save(content, folder / "spk_dict.pt")
    return folder


def test_voices_equal_what_pytorch_reads(tiny_checkpoint):
    speakers = load_speakers(tiny_checkpoint[1], read_config(tiny_checkpoint[1]))
    theirs = torch.load(tiny_checkpoint[0] / "spk_dict.pt", weights_only=True)
    assert list(speakers) == list(theirs) == ["Ethan", "Chelsie"]
    for name, speaker in speakers.items():
        assert speaker.name == name and speaker.token_id == theirs[name]["bos_token"]
        np.testing.assert_array_equal(speaker.vector, theirs[name]["cond"][0])
        np.testing.assert_array_equal(speaker.ref_mel, theirs[name]["ref_mel"][0])


def test_pytorch_is_not_needed(tiny_checkpoint):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from omni_jax.sampling.voices import read_torch_file\n"
        f"print(*read_torch_file({str(tiny_checkpoint[1] / 'spk_dict.pt')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Ethan", "Chelsie"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type_and_stride_are_read(tmp_path, dtype):
    whole = torch.randn(6, 8).to(dtype)
    content = {"turned": whole.T, "part": whole[1:4, 2:7:2], "number": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    torch.save(content | {"list": [1, 2.5, "a", None, True]}, tmp_path / "file.pt")
    ours = read_torch_file(tmp_path / "file.pt")
    for name, tensor in content.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], tensor.float().numpy())
    assert ours["list"] == [1, 2.5, "a", None, True]


def test_the_default_voice(tmp_path):
    both = load_speakers(saved(tmp_path, {"Ethan": entry(), "Chelsie": entry(bos_token=1113)}), CONFIG)
    assert choose_speaker(both).name == "Chelsie"
    assert choose_speaker(both, "Ethan").name == "Ethan"
    assert choose_speaker({"Nora": both["Ethan"]}) is both["Ethan"]  # a fine-tuned checkpoint's only voice


def test_an_unknown_voice_lists_the_voices(tmp_path):
    speakers = load_speakers(saved(tmp_path, {"Ethan": entry(), "Chelsie": entry()}), CONFIG)
    with pytest.raises(PromptError, match="'chelsie'.*Ethan, Chelsie"):
        choose_speaker(speakers, "chelsie")


def test_a_mute_model_has_no_voices(tmp_path):
    mute = dataclasses.replace(CONFIG, talker_config=None, token2wav_config=None)
    with pytest.raises(CheckpointError, match="cannot speak"):
        load_speakers(saved(tmp_path, {"Ethan": entry()}), mute)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"spk_dict\.pt is missing"):
        load_speakers(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cond": torch.ones(1, 5)}, r"cond of shape \[1, 5\], not \[1, 192\]"),
        ({"ref_mel": torch.ones(1, 40, 79)}, r"ref_mel of shape \[1, 40, 79\]"),
        ({"ref_mel": torch.full((1, 40, 80), torch.nan)}, "ref_mel without finite values"),
        ({"bos_token": 5000}, "bos_token 5000"),
        ({"bos_token": "Ethan"}, "bos_token 'Ethan'"),
        ({"cond": 3.0}, "cond without finite values"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=f"Ethan.*{message}"):
        load_speakers(saved(tmp_path, {"Ethan": entry(**changes)}), CONFIG)


@pytest.mark.parametrize("content", [{}, [1, 2], {"Ethan": {"cond": torch.ones(1, 192)}}, {"Ethan": 3}])
def test_other_content_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"holds no voices|lacks bos_token"):
        load_speakers(saved(tmp_path, content), CONFIG)


class _Call:
    """Pickles into a call of `os.system`."""

    def __reduce__(self):
        return os.system, ("echo harm",)


@pytest.mark.parametrize(
    "content, named",
    [({"Ethan": _Call()}, "system"), ({"a": torch.ones(3, dtype=torch.int64)}, "LongStorage"), ({"a": 1j}, "complex")],
)
def test_a_pickle_that_asks_for_anything_else_is_refused(tmp_path, content, named, capfd):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=f"asks for .*{named}"):
        read_torch_file(tmp_path / "file.pt")
    assert "harm" not in capfd.readouterr().out


def rewritten(source, target, change):
    """A copy of a zip, with `change(name, data)` in place of each file's data; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda name, data: data[:-4] if "/data/" in name else data,  # a short tensor
        lambda name, data: None if "/data/" in name else data,
        lambda name, data: None if name.endswith("data.pkl") else data,
        lambda name, data: data[:50] if name.endswith("data.pkl") else data,
        lambda name, data: b"" if name.endswith("data.pkl") else data,
        lambda name, data: data.replace(b"K\x00K\x01K\x04\x86", b"K\x00K\x01K\x05\x86"),  # a tensor beyond its storage
        lambda name, data: data.replace(b"K\x00K\x01K\x04\x86", b"K\x02K\x01K\x04\x86"),  # one that starts too late
        lambda name, data: pickle.dumps(3) * 400_000 if name.endswith("data.pkl") else data,
    ],
)
def test_a_damaged_archive_is_refused_with_its_name(tmp_path, change):
    torch.save({"a": torch.arange(4.0).reshape(1, 4)}, tmp_path / "whole.pt")
    assert read_torch_file(tmp_path / "whole.pt")["a"].shape == (1, 4)
    with pytest.raises(CheckpointError, match=r"damaged\.pt"):
        read_torch_file(rewritten(tmp_path / "whole.pt", tmp_path / "damaged.pt", change))


def test_big_endian_files_are_read(tmp_path):
    def swap(name, data):
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(data, np.float32).byteswap().tobytes() if "/data/" in name else data

    torch.save({"a": torch.arange(4.0)}, tmp_path / "little.pt")
    ours = read_torch_file(rewritten(tmp_path / "little.pt", tmp_path / "big.pt", swap))
    np.testing.assert_array_equal(ours["a"], np.arange(4.0))


def test_other_kinds_of_file_are_refused(tmp_path, tiny_checkpoint):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    shutil.copy(tiny_checkpoint[1] / "spk_dict.pt", tmp_path / "cut.pt")
    with open(tmp_path / "cut.pt", "r+b") as file:
        file.truncate(100_000)
    for name in ("old.pt", "cut.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_torch_file(tmp_path / name)
