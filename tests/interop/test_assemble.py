"""A model put together from three published ones computes what they compute."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from input_pipeline.packing import pack_vision
from input_pipeline.patches import Patches
from omni_jax.config_json import read_config
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.assemble import assemble_checkpoint
from omni_jax.interop.restore import restore_params
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.thinker import Thinker
from omni_jax.models.vision_encoder import VisionEncoder
from omni_jax.sampling.generate import vision_layout
from tests.interop.published_parts import (
    audio_model,
    build,
    copy,
    language_model,
    parameters,
    three_parts,
    vision_model,
)


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


def same_logits(folder: Path, model) -> None:
    config = read_config(folder).thinker_config.text_config
    ids = np.random.default_rng(0).integers(0, 1000, (2, 24))
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    positions = jnp.broadcast_to(jnp.arange(24), (3, 2, 24))
    params = restore_params(folder, read_config(folder), components=["thinker"])["thinker"]
    logits = Thinker(config).apply({"params": params}, jnp.asarray(ids), positions)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_logits_for_text_are_those_of_the_language_model(parts, mute):
    same_logits(mute[0], parts["language"][1])


def test_a_head_that_is_tied_to_the_embedding_becomes_a_copy_of_it(folders, tmp_path):
    model = language_model(tmp_path / "tied", tied=True)
    assert "lm_head.weight" not in st.read_folder(tmp_path / "tied")
    folder = build(tmp_path / "ours", **folders | {"language": tmp_path / "tied"})
    ours = parameters(folder)
    np.testing.assert_array_equal(ours["thinker/lm_head/kernel"].T, ours["thinker/embed/embedding"])
    same_logits(folder, model)


@pytest.mark.parametrize("kind", ["with its language model", "alone", "renamed"])
def test_pictures_are_encoded_as_by_the_vision_encoder(parts, folders, mute, tmp_path, kind):
    """Releases call the encoder's tensors visual.* or model.visual.*; saved alone they have no prefix."""
    folder, model = mute[0], parts["vision"][1]
    if kind == "alone":
        model = vision_model(tmp_path / "alone", alone=True, shard="100KB")
        assert "patch_embed.proj.weight" in st.read_folder(tmp_path / "alone")
        folder = build(tmp_path / "ours", **folders | {"vision": tmp_path / "alone"})
    if kind == "renamed":
        source = copy(parts["vision"][0], tmp_path / "renamed")
        tensors = {f"model.{name}": value for name, value in load_file(source / st.SINGLE).items()}
        assert "model.visual.patch_embed.proj.weight" in tensors
        save_file(tensors, source / st.SINGLE)
        folder = build(tmp_path / "ours", **folders | {"vision": source})

    config, rng = read_config(folder).thinker_config.vision_config, np.random.default_rng(0)
    pixels, grid = rng.normal(size=(12 * 20, 1176)).astype(np.float32), (1, 12, 20)
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels), grid_thw=torch.tensor([grid])).pooler_output.numpy()
    batch = pack_vision([Patches(pixels, grid)], config)
    params = restore_params(folder, read_config(folder), components=["vision_encoder"])["vision_encoder"]
    tokens, _ = VisionEncoder(config).apply({"params": params}, jnp.asarray(batch.patches), vision_layout(batch))
    assert expected.std() > 0.1
    np.testing.assert_allclose(np.asarray(tokens)[batch.rows], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("alone", [False, True])
def test_two_seconds_of_sound_are_encoded_as_by_whisper(parts, folders, mute, tmp_path, alone):
    """Every layer's output, and the last norm, which stands after pooling here."""
    folder, encoder = mute[0], parts["audio"][1]
    if alone:
        encoder = audio_model(tmp_path / "alone", alone=True, shard="100KB")
        folder = build(tmp_path / "ours", **folders | {"audio": tmp_path / "alone"})
    mel = np.random.default_rng(0).normal(size=(1, 128, 200)).astype(np.float32)
    with torch.inference_mode():
        x = torch.nn.functional.gelu(encoder.conv1(torch.from_numpy(mel)))
        x = torch.nn.functional.gelu(encoder.conv2(x)).transpose(1, 2) + encoder.embed_positions.weight[:100]
        expected = []
        for layer in encoder.layers:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
            expected.append(x.numpy())
        normed = encoder.layer_norm(x.reshape(1, 50, 2, 64).mean(2)).numpy()

    config = read_config(folder).thinker_config.audio_config
    params = restore_params(folder, read_config(folder), components=["audio_encoder"])["audio_encoder"]
    tokens, layers = AudioEncoder(config, trace=True).apply(
        {"params": params}, jnp.asarray(mel.transpose(0, 2, 1)), jnp.asarray([200])
    )
    assert len(layers) == len(expected) == 2
    for ours, theirs in zip(layers, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    projection = params["projection"]
    tokens_expected = normed @ np.asarray(projection["kernel"]) + np.asarray(projection["bias"])
    np.testing.assert_allclose(tokens, tokens_expected, atol=1e-4 * np.abs(tokens_expected).max())
