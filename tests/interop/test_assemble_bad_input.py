"""Parts that cannot be put together: what is wrong is named, and nothing is left behind."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omni_jax.errors import CheckpointError, ConfigError
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.assemble import assemble_checkpoint
from tests.interop.published_parts import copy, edit, language_model, published_names, three_parts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    parts = three_parts(tmp_path_factory.mktemp("parts"))
    return {option: folder for option, (folder, _) in parts.items()}


def refused(destination: Path, *, error: type = CheckpointError, **options) -> str:
    """The message of the refusal; nothing may be left behind."""
    before = sorted(destination.parent.iterdir())
    with pytest.raises(error) as caught:
        assemble_checkpoint(destination, **{"preset": "tiny", "talker": False} | options)
    assert sorted(destination.parent.iterdir()) == before
    return str(caught.value)


def test_another_kind_of_model_is_named(folders, tmp_path):
    message = refused(tmp_path / "ours", language=folders["audio"])
    assert "'whisper'" in message and "WhisperForConditionalGeneration" in message and "'qwen2'" in message
    assert "'qwen2'" in refused(tmp_path / "ours", vision=folders["language"])
    assert "'qwen2_5_vl'" in refused(tmp_path / "ours", audio=folders["vision"])


def test_a_missing_folder_and_no_folder_are_refused(folders, tmp_path):
    assert "nowhere" in refused(tmp_path / "ours", language=tmp_path / "nowhere", error=ConfigError)
    assert "Nothing to assemble" in refused(tmp_path / "ours")
    assert "Talker" in refused(tmp_path / "ours", language=folders["language"], speech_from=folders["audio"])
    assert "seed -1" in refused(tmp_path / "ours", language=folders["language"], seed=-1)
    assert "preset 'giant'" in refused(
        tmp_path / "ours", language=folders["language"], preset="giant", error=ConfigError
    )


def test_overwriting_what_is_being_read_is_refused(folders, tmp_path):
    source = copy(folders["language"], tmp_path / "home" / "source")
    assert "being read" in refused(tmp_path / "home", language=source, overwrite=True)


def test_tensors_that_do_not_fit_are_all_named(folders, tmp_path):
    language = copy(folders["language"], tmp_path / "language")
    edit(language / "config.json", intermediate_size=144)
    message = refused(tmp_path / "ours", language=language)
    assert "9 differences" in message  # three projections of three layers
    assert "misshapen  model.layers.{i}.mlp.up_proj.weight is [128, 64], expected [144, 64] (i = 0, 1, 2)" in message

    vision = copy(folders["vision"], tmp_path / "vision")
    tensors = load_file(vision / st.SINGLE)
    del tensors["visual.blocks.1.attn.qkv.weight"]
    save_file(tensors | {"visual.surprise": np.zeros(3, np.float32)}, vision / st.SINGLE)
    message = refused(tmp_path / "ours", language=folders["language"], vision=vision)
    assert "2 differences" in message
    assert "missing    visual.blocks.1.attn.qkv.weight [192, 64]" in message and "extra      visual.surprise" in message


@pytest.mark.parametrize(
    "option, keys, words",
    [
        ("language", {"hidden_act": "gelu"}, "hidden_act"),
        ("language", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("language", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("language", {"num_attention_heads": "many"}, "num_attention_heads"),
        ("audio", {"activation_function": "relu"}, "activation_function"),
        ("audio", {"d_model": None}, "d_model"),
        ("vision", {"vision_config": {}}, "out_hidden_size"),
    ],
)
def test_other_mathematics_and_missing_sizes_are_refused_with_the_folder(folders, tmp_path, option, keys, words):
    source = copy(folders[option], tmp_path / "source")
    edit(source / "config.json", **keys)
    message = refused(tmp_path / "ours", **folders | {option: source}, error=ConfigError)
    assert words in message and str(source) in message


def test_positions_that_were_trained_are_refused(folders, tmp_path):
    source = copy(folders["audio"], tmp_path / "source")
    tensors = load_file(source / st.SINGLE)
    tensors["model.encoder.embed_positions.weight"][7, 3] += 0.1
    save_file(tensors, source / st.SINGLE)
    message = refused(tmp_path / "ours", language=folders["language"], audio=source)
    assert "embed_positions.weight differs by up to 0.1" in message


@pytest.mark.parametrize("option", ["language", "vision", "audio"])
def test_a_half_downloaded_shard_is_refused(folders, tmp_path, option):
    source = copy(folders[option], tmp_path / "source")
    shard = sorted(source.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size - 8)
    assert f"{shard} is truncated" in refused(tmp_path / "ours", **folders | {option: source})


def test_values_that_are_not_finite_leave_nothing_behind(folders, tmp_path):
    source = copy(folders["vision"], tmp_path / "source")
    tensors = load_file(source / st.SINGLE)
    tensors["visual.blocks.2.attn.qkv.weight"][3, 5] = np.nan
    save_file(tensors, source / st.SINGLE)
    message = refused(tmp_path / "ours", language=folders["language"], vision=source)
    assert "visual.blocks.2.attn.qkv.weight holds NaN" in message


def test_a_tokenizer_that_uses_an_id_otherwise_is_refused(tmp_path):
    folder = published_names(tmp_path / "qwen", object_ref_start="hello")
    message = refused(tmp_path / "ours", language=folder, preset="qwen2.5-omni-3b")
    assert "id 151646 is <|hello|>" in message and "<|AUDIO|>" in message and "<|object_ref_start|>" in message


def test_ids_that_the_preset_does_not_have_are_refused(folders, tmp_path):
    message = refused(tmp_path / "ours", language=folders["language"], preset="qwen2.5-omni-7b")
    assert "<|AUDIO|> has id 1003" in message and "151646" in message and "preset" in message


def test_a_vocabulary_without_rows_for_the_talker_is_refused(tmp_path):
    language_model(tmp_path / "small", vocab_size=1050)
    message = refused(tmp_path / "ours", language=tmp_path / "small")
    assert "tts_text_pad_token_id = 1100" in message and "1049" in message


def test_a_part_without_a_tokenizer_needs_one(folders, tmp_path):
    assert "No tokenizer" in refused(tmp_path / "ours", audio=folders["audio"])
