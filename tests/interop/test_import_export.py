"""Importing and exporting: exact, strict, whole or nothing, in bounded memory, and ordinary Orbax in between."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration

from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError
from omni_jax.interop import import_checkpoint as I
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop import tables
from omni_jax.interop.export_checkpoint import export_checkpoint
from omni_jax.interop.import_checkpoint import import_checkpoint
from omni_jax.interop.random_checkpoint import make_random_checkpoint
from omni_jax.interop.restore import load_checkpoint_info, restore_params
from omni_jax.interop.tables import COMPONENTS, THINKER_COMPONENTS
from omni_jax.interop.weight_table import flatten, jax_shapes
from omni_jax.sampling.voices import load_speakers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny published folder: bf16 but for Token2Wav, several shards, with the stored rotary table of a release."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    make_random_checkpoint(folder, "tiny", dtype="bfloat16")
    tensors = {name: tensor.read() for name, tensor in st.read_folder(folder).items()}
    tensors["token2wav.code2wav_dit_model.rotary_embed.inv_freq"] = np.linspace(0, 1, 8, dtype=np.float32)
    for path in folder.glob("model*"):
        path.unlink()
    planned = [st.Planned(name, value.dtype, value.shape) for name, value in tensors.items()]
    st.write_folder(folder, st.plan_shards(planned, 1_500_000), iter(tensors.values()))
    return folder


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "tiny"
    import_checkpoint(published, folder)
    return folder


@pytest.fixture
def source(published, tmp_path):
    """A copy of the published folder to damage."""
    return Path(shutil.copytree(published, tmp_path / "source"))


def contents(folder: Path) -> dict[str, tuple]:
    return {
        name: (tensor.dtype, tensor.shape, tensor.read().tobytes()) for name, tensor in st.read_folder(folder).items()
    }


def rewrite(folder: Path, change) -> None:
    """Passes the tensors through `change` and writes them back as one file."""
    tensors = {name: tensor.read() for name, tensor in st.read_folder(folder).items()}
    change(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / st.SINGLE)


def refused(source: Path, destination: Path, **options) -> str:
    """The message of the refusal; nothing may be left behind."""
    before = sorted(destination.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(source, destination, **options)
    assert sorted(destination.parent.iterdir()) == before
    return str(error.value)


# ---- values ----


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_import_then_export_is_bit_identical(published, tmp_path, dtype):
    import_checkpoint(published, tmp_path / "ours", dtype=dtype)
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs", shard_bytes=1_000_000)
    assert contents(tmp_path / "theirs") == contents(published)
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    carried = {path.name for path in published.iterdir() if not path.name.startswith("model")}
    assert {"config.json", "tokenizer.json", "spk_dict.pt", "chat_template.json"} <= carried
    for name in carried:
        assert (tmp_path / "theirs" / name).read_bytes() == (published / name).read_bytes()


def test_what_is_exported_loads_in_pytorch(published, imported, tmp_path):
    export_checkpoint(imported, tmp_path / "theirs", dtype="float32")
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    expected = Qwen2_5OmniForConditionalGeneration.from_pretrained(published).state_dict()
    result = model.state_dict()
    assert result.keys() == expected.keys()
    for name, value in result.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name].float()), name


def test_an_exported_model_gives_the_same_logits_in_pytorch(published, imported, tmp_path):
    export_checkpoint(imported, tmp_path / "theirs")
    ids = torch.arange(24)[None] * 31 % 900
    logits = [
        Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
        for folder in (published, tmp_path / "theirs")
    ]
    assert logits[0].std() > 0.1
    assert torch.equal(*logits)


def test_an_exported_model_speaks_the_same_in_pytorch(published, imported, tmp_path):
    """Voices, logits of codes, timbre and waveform. (PyTorch's convolutions vary in the last bits.)"""
    export_checkpoint(imported, tmp_path / "theirs", dtype="float32")
    spoken = []
    for folder in (published, tmp_path / "theirs"):
        model = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        voice, codes = model.speaker_map["Ethan"], torch.arange(20)[None] * 37 % 128
        heard = torch.linspace(-1, 1, 12 * 64).reshape(1, 12, 64)
        torch.manual_seed(0)
        with torch.no_grad():
            logits = model.talker.codec_head(
                model.talker.model(inputs_embeds=model.talker.thinker_to_talker_proj(heard)).last_hidden_state
            )
            timbre = model.token2wav.code2wav_dit_model.input_embed.spk_encoder(voice["ref_mel"])
            waveform = model.token2wav(codes, voice["cond"], voice["ref_mel"], num_steps=3)
        spoken.append((voice["cond"], voice["ref_mel"], logits, timbre, waveform))
        assert logits.std() > 0.1 and timbre.std() > 0.01 and 0.01 < waveform.std() < 0.9
    for one, other in zip(*spoken):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()


def test_every_speaking_part_travels(published, imported):
    """What the tests of exactness compare is not empty, and holds every part by its published name."""
    names = set(st.read_folder(published))
    speaking = {
        "talker.": "talker",
        "token2wav.code2wav_dit_model.input_embed.spk_encoder.": "speaker_encoder",
        "token2wav.code2wav_dit_model.transformer_blocks.": "dit",
        "token2wav.code2wav_bigvgan_model.": "bigvgan",
    }
    entries = tables.table(read_config(imported))
    for prefix, component in speaking.items():
        theirs = {name for name in names if name.startswith(prefix)}
        ours = {name for entry in entries if entry.component == component for name in entry.torch_names}
        assert len(theirs) > 20 and theirs <= ours
    assert load_checkpoint_info(imported).components == COMPONENTS


def test_voices_travel_with_the_checkpoint(published, imported, tmp_path):
    export_checkpoint(imported, tmp_path / "theirs")
    config = read_config(published)
    folders = [load_speakers(folder, config) for folder in (published, imported, tmp_path / "theirs")]
    expected = torch.load(published / "spk_dict.pt", weights_only=True)
    for speakers in folders:
        assert list(speakers) == list(expected)
        for name, speaker in speakers.items():
            assert speaker.token_id == expected[name]["bos_token"]
            np.testing.assert_array_equal(speaker.vector[None], expected[name]["cond"])
            np.testing.assert_array_equal(speaker.ref_mel[None], expected[name]["ref_mel"])


def test_parameters_are_the_published_values_in_our_layout(published, imported):
    config = read_config(published)
    params = dict(flatten(restore_params(imported, config, dtype="float32")))
    assert {path: value.shape for path, value in params.items()} == jax_shapes(tables.table(config))
    theirs = {name: tensor.read().astype(np.float32) for name, tensor in st.read_folder(published).items()}
    query = theirs["thinker.model.layers.2.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(params["thinker/layers/attention/query/kernel"][2].reshape(64, 64), query.T)
    out = theirs["talker.model.layers.1.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(params["talker/layers/attention/out/kernel"][1].reshape(64, 48), out.T)


def test_reduced_precision_rounds_each_value(published, tmp_path):
    counts = import_checkpoint(published, tmp_path / "ours", dtype="bfloat16")
    assert set(counts) == set(COMPONENTS)
    info = load_checkpoint_info(tmp_path / "ours")
    assert {leaf.dtype for leaf in info.shapes.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert info.num_parameters == sum(counts.values())


def test_layers_of_mixed_precision_are_stored_without_loss_and_come_back(source, tmp_path):
    name = "thinker.model.layers.1.mlp.up_proj.weight"
    rewrite(source, lambda t: t.update({name: t[name].astype(np.float32) / 3}))
    import_checkpoint(source, tmp_path / "ours")
    assert load_checkpoint_info(tmp_path / "ours").shapes["thinker/layers/mlp/up/kernel"].dtype == np.float32
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    assert contents(tmp_path / "theirs") == contents(source)


def test_chosen_components_only(published, tmp_path):
    counts = import_checkpoint(published, tmp_path / "ours", components=["talker", "vision_encoder"])
    assert set(counts) == {"talker", "vision_encoder"}
    params = restore_params(tmp_path / "ours", read_config(published))
    assert set(params) == {"talker", "vision_encoder"}
    assert set(restore_params(tmp_path / "ours", read_config(published), components=["talker"])) == {"talker"}


def test_a_thinker_saved_alone_keeps_its_own_names(published, tmp_path):
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(published)
    whole.thinker.save_pretrained(tmp_path / "alone")
    assert not any(name.startswith("thinker.") for name in st.read_folder(tmp_path / "alone"))
    counts = import_checkpoint(tmp_path / "alone", tmp_path / "ours")
    assert set(counts) == set(THINKER_COMPONENTS)
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    assert contents(tmp_path / "theirs") == contents(tmp_path / "alone")
    Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path / "theirs")


def test_a_checkpoint_without_speech_is_legal_under_a_speaking_configuration(source, tmp_path):
    rewrite(source, lambda t: [t.pop(name) for name in list(t) if not name.startswith("thinker.")])
    assert set(import_checkpoint(source, tmp_path / "ours")) == set(THINKER_COMPONENTS)


# ---- refusals ----


def test_missing_extra_and_misshapen_tensors_are_all_reported_at_once(source, tmp_path):
    def damage(tensors):
        del tensors["thinker.lm_head.weight"]
        for i in (0, 2):
            del tensors[f"thinker.model.layers.{i}.mlp.up_proj.weight"]
        tensors["thinker.visual.surprise"] = np.zeros(3, np.float32)
        tensors["talker.codec_head.weight"] = tensors["talker.codec_head.weight"][:-1]
        tensors["thinker.audio_tower.conv1.bias"] = np.zeros(64, np.int8)

    rewrite(source, damage)
    message = refused(source, tmp_path / "ours")
    assert "6 differences" in message
    assert "missing    thinker.lm_head.weight [1280, 64]" in message
    assert "missing    thinker.model.layers.{i}.mlp.up_proj.weight [128, 64] (i = 0, 2)" in message
    assert "extra      thinker.visual.surprise [3]" in message
    assert "misshapen  talker.codec_head.weight is [159, 48], expected [160, 48]" in message
    assert "not float  thinker.audio_tower.conv1.bias is stored as int8" in message


def test_a_truncated_shard_is_found_before_anything_is_written(source, tmp_path):
    shard = sorted(source.glob("model-*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1)
    assert f"{shard} is truncated" in refused(source, tmp_path / "ours")


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_shard_cut_inside_its_header_is_refused(source, tmp_path, size):
    shard = sorted(source.glob("model-*.safetensors"))[0]
    os.truncate(shard, size)
    assert str(shard) in refused(source, tmp_path / "ours")


def test_an_index_that_does_not_match_its_shards_is_refused(source, tmp_path):
    index = json.loads((source / st.INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    index["weight_map"]["thinker.ghost"] = first
    (source / st.INDEX).write_text(json.dumps(index))
    (source / second).unlink()
    message = refused(source, tmp_path / "ours")
    assert f"{first} lacks what the index places there: thinker.ghost" in message
    assert f"shard {second} is missing" in message


def test_a_folder_without_weights_is_refused(source, tmp_path):
    for path in source.glob("model*"):
        path.unlink()
    assert "spk_dict.pt" in refused(source, tmp_path / "ours")


@pytest.mark.parametrize(
    "name, bad", [("thinker.model.layers.1.mlp.down_proj.weight", np.nan), ("talker.codec_head.weight", -np.inf)]
)
def test_values_that_are_not_finite_are_refused_by_name(source, tmp_path, name, bad):
    def damage(tensors):
        tensors[name][3, 5] = bad

    rewrite(source, damage)
    assert f"tensor {name} holds NaN or infinite values" in refused(source, tmp_path / "ours")


def test_a_full_disk_leaves_nothing_behind(published, imported, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(I.shutil, "copyfile", full)
    assert "disk is full" in refused(published, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="disk is full"):
        export_checkpoint(imported, tmp_path / "theirs")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_values_are_written_leaves_nothing_behind(published, tmp_path):
    """A real failure below TensorStore, in a process that may not write files of more than 50 kB."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
        "from omni_jax.cli.main import main; sys.exit(main(['import', '--from', sys.argv[1], '--to', sys.argv[2]]))"
    )
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
    argv = [sys.executable, "-c", code, str(published), str(tmp_path / "ours")]
    run = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 2, run.stderr
    assert "could not be written" in run.stderr and "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_noticed_before_writing(published, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "GB free" in refused(published, tmp_path / "ours")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_import_leaves_nothing_behind(published, tmp_path, interruption):
    def progress(done, total):
        if done > total // 2:
            raise interruption

    with pytest.raises(interruption):
        import_checkpoint(published, tmp_path / "ours", progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_asked_to_overwrite_it(published, source, tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "config.json").write_text("{}")  # as a checkpoint has
    (ours / "diary.txt").write_text("mine")
    assert "not empty" in refused(published, ours)
    rewrite(source, lambda t: t["talker.codec_head.weight"].fill(np.nan))
    refused(source, ours, overwrite=True)
    assert (ours / "diary.txt").read_text() == "mine"
    import_checkpoint(published, ours, overwrite=True)
    assert not (ours / "diary.txt").exists() and (ours / "params").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "source"]


def test_an_unwritable_destination_is_refused_first(tmp_path, published):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(published, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        import_checkpoint(published, tmp_path / "file" / "ours")


def test_bad_requests_are_refused(published, imported, tmp_path):
    assert "float16" in refused(published, tmp_path / "ours", dtype="float16")
    assert "ears" in refused(published, tmp_path / "ours", components=["ears"])
    with pytest.raises(CheckpointError, match="no Orbax checkpoint"):
        load_checkpoint_info(published)
    with pytest.raises(CheckpointError, match="dit"):
        restore_params(imported, read_config(published), shardings={"thinker": {}})


def test_parameters_that_do_not_fit_the_configuration_are_all_reported(imported, source):
    data = json.loads((source / "config.json").read_text())
    data["thinker_config"]["text_config"]["intermediate_size"] += 16
    (source / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as error:
        restore_params(imported, read_config(source))
    for kernel in ("gate", "up", "down"):
        assert f"misshapen  thinker/layers/mlp/{kernel}/kernel" in str(error.value)


def test_damaged_stored_values_are_reported(imported, tmp_path):
    folder = Path(shutil.copytree(imported, tmp_path / "ours"))
    for chunk in (folder / "params" / "thinker.embed.embedding").glob("*"):
        if not chunk.name.startswith("."):
            chunk.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_params(folder, read_config(folder))


def test_overwriting_removes_nothing_but_a_checkpoint(published, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").write_text("dear diary")
    with pytest.raises(CheckpointError, match="other things than a checkpoint"):
        import_checkpoint(published, home, overwrite=True)
    assert (home / "letters.txt").read_text() == "dear diary"
