"""A model put together from published parts is a checkpoint like any other; what has no source is random."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5OmniForConditionalGeneration

from input_pipeline.tokenizer import Tokenizer
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.errors import CheckpointError
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.assemble import assemble_checkpoint
from omni_jax.interop.assemble_random import INITIALISERS, random_leaves
from omni_jax.interop.assemble_tokenizer import RENAMED, omni_tokenizer
from omni_jax.interop.export_checkpoint import export_checkpoint
from omni_jax.interop.import_checkpoint import import_checkpoint
from omni_jax.interop.restore import load_checkpoint_info
from omni_jax.interop.tables import COMPONENTS, THINKER_COMPONENTS, table
from omni_jax.interop.weight_table import flatten, jax_shapes
from omni_jax.presets import preset
from tests.interop.published_parts import (
    audio_model,
    build,
    copy,
    language_model,
    parameters,
    published_names,
    three_parts,
    vision_model,
)

ADAPTER = ("audio_encoder/bos_eos_embedding", "audio_encoder/projection/kernel", "audio_encoder/projection/bias")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def parts(root):
    """Option -> (folder, PyTorch model)."""
    return three_parts(root)


@pytest.fixture(scope="module")
def folders(parts):
    return {option: folder for option, (folder, _) in parts.items()}


@pytest.fixture(scope="module")
def mute(folders, root):
    """A model of all three parts without a voice: (folder, what was assembled)."""
    return root / "mute", assemble_checkpoint(root / "mute", **folders, preset="tiny", talker=False)


# ---- what is random ----


def test_only_the_projection_of_sound_is_random_when_all_parts_are_given(mute):
    folder, assembled = mute
    assert set(assembled.random) == set(ADAPTER)
    assert set(assembled.parameters) == set(assembled.sources) == set(THINKER_COMPONENTS)
    assert "projection random" in assembled.origin("audio_encoder")
    assert "random" not in assembled.origin("thinker")
    kernel = parameters(folder)["audio_encoder/projection/kernel"]
    assert 0.01 < kernel.std() < 0.04  # the module's own normal(0.02)
    assert json.loads((folder / "import.json").read_text())["random"] == list(assembled.random)


def draw(*paths: str, seed: int = 0) -> dict[str, np.ndarray]:
    leaves = random_leaves(preset("tiny"), paths, seed=seed, dtype=np.dtype(np.float32))
    return {leaf.path: np.stack(list(leaf.slices())) for leaf in leaves}


def test_what_is_random_follows_the_seed_and_nothing_else():
    query, key, projection = (f"{name}/kernel" for name in (
        "vision_encoder/layers/attention/query", "vision_encoder/layers/attention/key", "audio_encoder/projection"
    ))  # fmt: skip
    alone, together, other = draw(query), draw(query, key, projection), draw(query, seed=1)
    np.testing.assert_array_equal(alone[query], together[query])
    assert alone[query].shape == (4, 64, 4, 16) and set(together) == {query, key, projection}
    assert not np.array_equal(alone[query], other[query])
    assert not np.array_equal(together[query], together[key])
    assert not np.array_equal(alone[query][0], alone[query][1])


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_can_be_drawn_as_its_table_says(component):
    config = preset("tiny")
    drawn = jax.eval_shape(partial(INITIALISERS[component], config), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in flatten({component: nn.unbox(drawn)})}
    assert shapes == jax_shapes([entry for entry in table(config) if entry.component == component])


def test_a_merger_of_another_width_is_made_anew(folders, tmp_path):
    vision_model(tmp_path / "wide", out_hidden_size=80)
    given = folders | {"vision": tmp_path / "wide"}
    assembled = assemble_checkpoint(tmp_path / "ours", **given, preset="tiny", talker=False)
    new = {path for path in assembled.random if path.startswith("vision_encoder/")}
    assert new == {path for path in parameters(tmp_path / "ours") if path.startswith("vision_encoder/merger/")}
    assert "merger random (the published one gives a width of 80)" in assembled.origin("vision_encoder")
    assert parameters(tmp_path / "ours")["vision_encoder/merger/down/kernel"].shape == (256, 64)


def test_a_voice_is_taken_from_a_published_model_and_the_talker_is_random(folders, tiny_checkpoint, tmp_path):
    assembled = assemble_checkpoint(tmp_path / "ours", **folders, speech_from=tiny_checkpoint[0], preset="tiny")
    assert tuple(assembled.parameters) == COMPONENTS
    assert assembled.origin("talker") == "random" and "from" in assembled.origin("dit")
    ours, theirs = parameters(tmp_path / "ours"), parameters(tiny_checkpoint[1])
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        if path.startswith(("dit/", "speaker_encoder/", "bigvgan/")):
            np.testing.assert_array_equal(ours[path], value)
    assert (tmp_path / "ours" / "spk_dict.pt").read_bytes() == (tiny_checkpoint[0] / "spk_dict.pt").read_bytes()


# ---- a checkpoint like any other ----


def test_the_export_of_an_assembled_model_loads_in_pytorch(parts, mute, tmp_path):
    export_checkpoint(mute[0], tmp_path / "theirs")
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    ids = torch.arange(24)[None] * 31 % 900
    with torch.inference_mode():
        logits = [each(input_ids=ids).logits for each in (model.thinker, parts["language"][1])]
    assert not model.has_talker
    np.testing.assert_allclose(*logits, atol=1e-4 * float(logits[1].abs().max()))


def test_export_and_import_give_the_same_folder(mute, tmp_path):
    export_checkpoint(mute[0], tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {path.name for path in mute[0].iterdir()}
    first, second = parameters(mute[0]), parameters(tmp_path / "ours")
    assert first.keys() == second.keys()
    assert all(np.array_equal(value, second[path]) for path, value in first.items())
    infos = [load_checkpoint_info(folder) for folder in (mute[0], tmp_path / "ours")]
    assert infos[0].source_dtypes == infos[1].source_dtypes


def test_every_part_keeps_its_dtype_unless_another_is_asked_for(folders, tmp_path):
    half = copy(folders["language"], tmp_path / "half")
    for shard in half.glob("*.safetensors"):
        save_file({name: value.astype(np.float16) for name, value in load_file(shard).items()}, shard)
    for dtype, expected in ((None, {"float16", "float32"}), ("bfloat16", {"bfloat16"})):
        target = tmp_path / str(dtype)
        build(target, language=half, audio=folders["audio"], dtype=dtype)
        assert {leaf.dtype.name for leaf in load_checkpoint_info(target).shapes.values()} == expected
    assert json.loads((tmp_path / "None" / "config.json").read_text())["torch_dtype"] == "float16"


def test_configuration_follows_the_parts(folders, tmp_path):
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
    language_model(tmp_path / "language", num_hidden_layers=1, hidden_size=96, rope_theta=1e4, **heads)
    vision_model(tmp_path / "vision", out_hidden_size=96, window_size=56)
    audio_model(tmp_path / "audio", num_mel_bins=80, encoder_layers=1)
    names = ("language", "vision", "audio")
    folder = build(tmp_path / "ours", **{name: tmp_path / name for name in names})
    config = read_config(folder)
    text = config.thinker_config.text_config
    assert (text.num_hidden_layers, text.rope_theta, text.mrope_section) == (1, 1e4, (4, 6, 6))
    assert config.thinker_config.vision_config.window_size == 56
    assert config.thinker_config.audio_config.num_mel_bins == 80
    assert config.thinker_config.audio_config.output_dim == 96
    assert read_processor_config(folder).num_mel_bins == 80
    parameters(folder)  # fits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sines_in_half_precision_are_taken(folders, tmp_path, dtype):
    source = copy(folders["audio"], tmp_path / "source")
    tensors = load_file(source / st.SINGLE)
    save_file({name: value.astype(jnp.dtype(dtype)) for name, value in tensors.items()}, source / st.SINGLE)
    folder = build(tmp_path / "ours", **folders | {"audio": source})
    assert load_checkpoint_info(folder).shapes["audio_encoder/conv1/kernel"].dtype == dtype


def test_an_existing_folder_is_kept_and_an_interruption_leaves_nothing(folders, mute, tmp_path):
    ours = copy(mute[0], tmp_path / "ours")
    with pytest.raises(CheckpointError, match="not empty"):
        build(ours, **folders)

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(ours, **folders, overwrite=True, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]
    assert parameters(ours).keys() == parameters(mute[0]).keys()
    build(ours, **folders, overwrite=True, seed=5)
    assert json.loads((ours / "import.json").read_text())["seed"] == 5
    before, after = parameters(mute[0]), parameters(ours)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in ADAPTER if not path.endswith("bias")}  # biases begin at zero


# ---- the tokenizer ----


def test_control_tokens_have_the_names_and_ids_of_the_omni_model(folders, mute):
    ours, theirs = Tokenizer.load(mute[0]), Tokenizer.load(folders["language"])
    thinker = read_config(mute[0]).thinker_config
    for name, (old, field) in RENAMED.items():
        assert ours.token_id(name) == theirs.token_id(old) == getattr(thinker, field)
        with pytest.raises(CheckpointError):
            ours.token_id(old)
    text = "What do you hear? 你好 <tool_call>"
    assert ours.encode(text) == theirs.encode(text)
    fast = AutoTokenizer.from_pretrained(mute[0])
    assert fast.convert_tokens_to_ids("<|AUDIO|>") == thinker.audio_token_id
    question = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]
    assert "<|audio_bos|><|AUDIO|><|audio_eos|>" in fast.apply_chat_template(question, tokenize=False)
    assert json.loads((mute[0] / "generation_config.json").read_text()) == {
        "eos_token_id": [1002, 1000],
        "pad_token_id": 1000,
    }


def test_the_published_ids_are_those_of_the_published_configuration(tmp_path):
    folder, config = published_names(tmp_path / "qwen"), preset("qwen2.5-omni-7b")
    files = omni_tokenizer(folder, config)
    contents = {token["id"]: token["content"] for token in files.json["tokenizer.json"]["added_tokens"]}
    assert contents == {
        **{151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151646: "<|AUDIO|>"},
        **{151647: "<|audio_bos|>", 151648: "<|audio_eos|>", 151649: "<|box_end|>", 151650: "<|quad_start|>"},
        **{151651: "<|quad_end|>", 151652: "<|vision_bos|>", 151653: "<|vision_eos|>", 151654: "<|vision_pad|>"},
        **{151655: "<|IMAGE|>", 151656: "<|VIDEO|>", 151657: "<tool_call>"},
    }
    assert files.ends == {"bos_token_id": 151644, "eos_token_id": 151645, "pad_token_id": 151643}
    assert "additional_special_tokens" not in files.json["tokenizer_config.json"]
