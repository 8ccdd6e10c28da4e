"""The encoders: blocks and pictures do not know their neighbours, padding changes nothing, and traces are true."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.packing import pack_audio, pack_vision
from input_pipeline.patches import Patches
from omni_jax.errors import ConfigError
from omni_jax.interop import reference
from omni_jax.models.audio_encoder import AudioEncoder, sinusoids
from omni_jax.models.vision_encoder import VisionBounds, VisionEncoder
from omni_jax.sampling.generate import vision_layout
from omni_jax.sampling.load import load_sampler


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    """Our parameters and configuration, and the PyTorch Thinker, of one random checkpoint."""
    sampler = load_sampler(tiny_checkpoint[1], unrolled=False)
    return sampler.params, sampler.config.thinker_config, reference.load_thinker(tiny_checkpoint[0])


def mel(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(128, frames)).astype(np.float32)


def encode_audio(models, *clips):
    params, config, _ = models
    batch = pack_audio(list(clips), config.audio_config)
    tokens, _ = AudioEncoder(config.audio_config).apply(
        {"params": params["audio_encoder"]}, jnp.asarray(batch.mel), jnp.asarray(batch.frames)
    )
    return np.asarray(tokens).reshape(-1, tokens.shape[-1])[batch.rows]


def pictures(*grids):
    rng = np.random.default_rng(0)
    return [Patches(rng.normal(size=(t * h * w, 1176)).astype(np.float32), (t, h, w)) for t, h, w in grids]


def encode_vision(models, items):
    params, config, _ = models
    batch = pack_vision(items, config.vision_config)
    tokens, _ = VisionEncoder(config.vision_config).apply(
        {"params": params["vision_encoder"]}, jnp.asarray(batch.patches), vision_layout(batch)
    )
    return np.asarray(tokens)[batch.rows]


@pytest.mark.parametrize("frames", [3, 7, 100, 199, 200, 201, 203, 450])
def test_audio_tokens_equal_those_of_transformers(models, frames):
    import torch

    clip = mel(frames)
    with torch.inference_mode():
        expected = models[2].get_audio_features(torch.from_numpy(clip)[None], torch.ones(1, frames, dtype=torch.long))
    expected = expected.last_hidden_state.numpy()
    ours = encode_audio(models, clip)
    assert ours.shape == expected.shape == ((frames + 1) // 4, expected.shape[1])
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_a_clip_is_encoded_block_by_block_and_does_not_hear_its_neighbours(models):
    clip, other = mel(450), mel(333, seed=1)
    whole = encode_audio(models, clip)
    parts = [encode_audio(models, clip[:, first : first + 200]) for first in (0, 200, 400)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    np.testing.assert_allclose(encode_audio(models, other, clip)[-len(whole) :], whole, atol=1e-5)


def test_sinusoids_have_the_printed_values():
    row = np.asarray(sinusoids(2, 1280))[1]
    np.testing.assert_allclose(row[[0, 1, 640]], [0.841471, 0.833653, 0.540302], atol=1e-6)


@pytest.mark.parametrize(
    "grids",
    [[(1, 4, 6)], [(1, 12, 20)], [(1, 16, 16)], [(2, 10, 10)], [(1, 4, 6), (2, 10, 10)], [(1, 2, 2), (1, 30, 4)]],
)
def test_vision_tokens_equal_those_of_transformers(models, grids):
    import torch

    items = pictures(*grids)
    with torch.inference_mode():
        pixels = torch.from_numpy(np.concatenate([item.pixels for item in items]))
        expected = models[2].visual(pixels, grid_thw=torch.tensor(grids)).pooler_output.numpy()
    ours = encode_vision(models, items)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_a_picture_does_not_see_its_neighbours(models):
    small, large = pictures((1, 6, 8), (1, 14, 22))
    alone = encode_vision(models, [small])
    np.testing.assert_allclose(encode_vision(models, [large, small])[-len(alone) :], alone, atol=1e-5)


def test_other_layers_are_chosen_for_whole_frames_by_configuration(models):
    params, config, model = models
    (item,) = pictures((1, 14, 22))
    before = encode_vision(models, [item])
    windowed = dataclasses.replace(
        config, vision_config=dataclasses.replace(config.vision_config, fullatt_block_indexes=())
    )
    after = encode_vision((params, windowed, model), [item])
    assert np.abs(after - before).max() > 1e-3


def test_a_trace_holds_each_layers_output(models):
    params, config, _ = models
    batch = pack_audio([mel(200)], config.audio_config)
    _, layers = AudioEncoder(config.audio_config, trace=True).apply(
        {"params": params["audio_encoder"]}, jnp.asarray(batch.mel), jnp.asarray(batch.frames)
    )
    assert layers.shape[:3] == (config.audio_config.encoder_layers, len(batch.mel), 100)


def test_parameters_carry_logical_axes():
    from omni_jax.presets import preset

    config = preset("tiny").thinker_config.audio_config
    boxed = AudioEncoder(config).init(jax.random.key(0), jnp.zeros((1, 200, 128)), jnp.array([200]))["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert leaves and all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves)


def bounds_of(batch) -> tuple[np.ndarray, np.ndarray]:
    """[P, 2]: the window and the frame of each patch of a packed batch; padding sees itself."""
    place = np.arange(len(batch.patches))
    itself = np.stack([place, place + 1], axis=1)
    window, frame = itself.copy(), itself.copy()
    for runs, table in ((window, batch.window_slots), *((frame, each) for each in batch.frame_slots)):
        for held in table:
            held = held[held < len(place)]
            if len(held):
                runs[held] = held[0], held[-1] + 1
    return window, frame


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_rows_of_a_batch_are_encoded_as_each_alone(models, remat):
    """Training packs pictures row by row and gives bounds; answering packs all and gives tables."""
    params, config, _ = models
    variables = {"params": params["vision_encoder"]}
    packed = [pack_vision(pictures(*grids), config.vision_config) for grids in ([(1, 4, 6), (2, 8, 4)], [(1, 10, 8)])]
    rows = [
        np.asarray(VisionEncoder(config.vision_config).apply(variables, jnp.asarray(b.patches), vision_layout(b))[0])
        for b in packed
    ]
    bounds = [bounds_of(batch) for batch in packed]
    layout = VisionBounds(
        jnp.asarray(np.stack([batch.coordinates for batch in packed])),
        *(jnp.asarray(np.stack([each[kind] for each in bounds])) for kind in range(2)),
    )
    together, _ = VisionEncoder(config.vision_config, remat=remat).apply(
        variables, jnp.asarray(np.stack([batch.patches for batch in packed])), layout
    )
    for ours, alone, batch in zip(np.asarray(together), rows, packed):
        np.testing.assert_allclose(ours[batch.rows], alone[batch.rows], atol=1e-5)


def test_an_unknown_remat_policy_is_refused(models):
    with pytest.raises(ConfigError, match="no remat policy 'some'. Policies: none, dots, full"):
        encoder = AudioEncoder(models[1].audio_config, remat="some")
        encoder.apply({"params": models[0]["audio_encoder"]}, jnp.zeros((1, 200, 128)), jnp.ones(1, jnp.int32))
