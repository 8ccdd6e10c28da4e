"""The published config.json comes in and goes out without loss, and asks for nothing that is not implemented."""

import copy
import dataclasses
import json

import pytest

from omni_jax.config import ProcessorConfig
from omni_jax.config_json import (
    config_from_dict,
    config_to_dict,
    read_config,
    read_processor_config,
    write_config,
    write_processor_config,
)
from omni_jax.errors import ConfigError
from omni_jax.interop.random_checkpoint import published_dict
from omni_jax.presets import NAMES, preset


@pytest.fixture
def published() -> dict:
    """A file in the published style, with keys that do not touch the mathematics."""
    data = published_dict(preset("tiny"))
    data["thinker_config"]["text_config"]["max_window_layers"] = 28
    data["token2wav_config"]["dit_config"]["enc_global_context"] = True
    data["transformers_version"] = "4.50.0.dev0"
    return data


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_the_file(name, tmp_path):
    write_config(preset(name), tmp_path)
    assert read_config(tmp_path) == preset(name)


def test_what_was_read_is_written_back_unchanged(published):
    assert config_to_dict(config_from_dict(published)) == published


def test_the_file_of_transformers_is_written_back_unchanged():
    from transformers import Qwen2_5OmniConfig

    data = Qwen2_5OmniConfig(**published_dict(preset("tiny"))).to_dict()
    data = json.loads(json.dumps(data))  # as in a file: no tuples
    config = config_from_dict(data)
    assert config == preset("tiny")
    assert config_to_dict(config) == data


def test_a_changed_field_is_written_under_the_name_that_the_file_uses(published):
    config = config_from_dict(published)
    text = dataclasses.replace(config.thinker_config.text_config, rope_theta=5e5)
    thinker = dataclasses.replace(config.thinker_config, text_config=text, audio_token_id=7)
    out = config_to_dict(dataclasses.replace(config, thinker_config=thinker))
    assert out["thinker_config"]["text_config"]["rope_theta"] == 5e5
    assert out["thinker_config"]["audio_token_index"] == 7
    assert "audio_token_id" not in out["thinker_config"]
    assert config_from_dict(out).thinker_config == thinker


@pytest.mark.parametrize(
    "names", [("dim", "depth", "heads"), ("hidden_size", "num_hidden_layers", "num_attention_heads")]
)
def test_the_dit_is_read_under_both_sets_of_names(published, names):
    dit = published["token2wav_config"]["dit_config"]
    for name in {"dim", "depth", "heads", "hidden_size", "num_hidden_layers", "num_attention_heads"} - set(names):
        del dit[name]
    for name, value in zip(names, (96, 5, 6)):
        dit[name] = value
    read = config_from_dict(published).token2wav_config.dit_config
    assert (read.hidden_size, read.num_hidden_layers, read.num_attention_heads) == (96, 5, 6)


def test_what_the_published_dit_leaves_out_has_the_true_values(published):
    dit = published["token2wav_config"]["dit_config"]
    for key in ("block_size", "look_ahead_layers", "look_backward_layers"):
        del dit[key]
    read = config_from_dict(published).token2wav_config.dit_config
    assert (read.block_size, read.look_ahead_layers, read.look_backward_layers) == (24, (10,), (0, 20))


@pytest.mark.parametrize(
    "path",
    [
        ("thinker_config",),
        ("thinker_config", "audio_config", "d_model"),
        ("thinker_config", "vision_config", "fullatt_block_indexes"),
        ("thinker_config", "text_config", "num_key_value_heads"),
        ("talker_config", "embedding_size"),
    ],
)
def test_a_missing_required_key_is_named(published, path):
    *parents, key = path
    place = published
    for parent in parents:
        place = place[parent]
    del place[key]
    with pytest.raises(ConfigError, match=key):
        config_from_dict(published)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("thinker_config", "text_config", "hidden_act"), "gelu"),
        (("thinker_config", "text_config", "use_sliding_window"), True),
        (("thinker_config", "text_config", "rope_scaling", "rope_type"), "yarn"),
        (("thinker_config", "tie_word_embeddings"), True),
        (("thinker_config", "audio_config", "scale_embedding"), True),
        (("thinker_config", "vision_config", "hidden_act"), "quick_gelu"),
        (("token2wav_config", "bigvgan_config", "use_bias_at_final"), True),
        (("quantization_config",), {"bits": 4}),
    ],
)
def test_unsupported_mathematics_is_named(published, path, value):
    place = published
    for parent in path[:-1]:
        place = place[parent]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=path[-1]):
        config_from_dict(published)


def test_parts_that_do_not_fit_each_other_are_refused(published):
    published["thinker_config"]["audio_config"]["output_dim"] = 32
    with pytest.raises(ConfigError, match="output_dim"):
        config_from_dict(published)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"thinker_config": 3}'])
def test_a_damaged_file_is_a_clear_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config"):
        read_config(tmp_path)


def test_a_value_of_the_wrong_type_is_named(published):
    published["thinker_config"]["text_config"]["hidden_size"] = "64"
    with pytest.raises(ConfigError, match="hidden_size"):
        config_from_dict(published)


def test_a_model_that_cannot_speak_has_no_talker(published):
    assert config_from_dict(published).speaks
    silent = copy.deepcopy(published) | {"enable_audio_output": False}
    assert not config_from_dict(silent).speaks


def test_processor_settings_survive_the_file(tmp_path):
    config = dataclasses.replace(ProcessorConfig(), image_max_pixels=784 * 100, video_fps=1.0)
    write_processor_config(config, tmp_path)
    assert read_processor_config(tmp_path) == config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("text_config", "num_attention_heads"), 0),
        (("text_config", "num_hidden_layers"), -1),
        (("text_config", "vocab_size"), 2**31),
        (("text_config", "rope_theta"), float("nan")),
        (("text_config", "rms_norm_eps"), -1e-6),
        (("text_config", "rope_scaling", "mrope_section"), ["a", "b", "c"]),
        (("text_config", "rope_scaling", "mrope_section"), [2, 6]),
        (("text_config", "layer_types"), 5),
        (("vision_config", "num_heads"), 0),
        (("vision_config", "window_size"), 14),
        (("vision_config", "fullatt_block_indexes"), [1.5]),
        (("vision_config", "fullatt_block_indexes"), 3),
        (("audio_config", "n_window"), 0),
        (("audio_token_index",), -1),
    ],
)
def test_a_value_that_no_model_can_have_is_named(published, path, value):
    place = published["thinker_config"]
    for parent in path[:-1]:
        place = place[parent]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=path[-1].removesuffix("_index")):
        config_from_dict(published)


@pytest.mark.parametrize(("name", "value"), [("hop_length", 0), ("image_mean", ["a", 0, 0]), ("image_std", 0.5)])
def test_processor_settings_that_cannot_be_are_named(tmp_path, name, value):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(ConfigError, match=name):
        read_processor_config(tmp_path)
