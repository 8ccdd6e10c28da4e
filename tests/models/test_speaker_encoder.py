"""The speaker encoder equals the published one, and its weight table is complete."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omni_jax.config import DiTConfig
from omni_jax.interop import table_token2wav
from omni_jax.interop.weight_table import flatten, jax_shapes, torch_shapes
from omni_jax.models.speaker_encoder import SpeakerEncoder
from tests.models.token2wav_reference import DIT, meta_state, our_params, published_model

SPEAKER = table_token2wav.DIT + "input_embed.spk_encoder."


@pytest.fixture(scope="module")
def pair():
    model = published_model(DIT)
    return model.input_embed.spk_encoder, {"params": our_params(model, DIT)["speaker_encoder"]}


@pytest.mark.parametrize("frames", [5, 40])
def test_matches_the_published_encoder(pair, frames):
    theirs, ours = pair
    mel = np.random.default_rng(0).normal(-4, 3, (2, frames, DIT.mel_dim)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(mel)).numpy()
    np.testing.assert_allclose(SpeakerEncoder(DIT).apply(ours, jnp.asarray(mel)), want, atol=1e-4 * np.abs(want).max())


def test_a_silent_reference_has_a_finite_vector_and_gradient(pair):
    _, ours = pair
    silent = jnp.zeros((1, 12, DIT.mel_dim))
    vector, gradient = jax.value_and_grad(lambda mel: SpeakerEncoder(DIT).apply(ours, mel).sum())(silent)
    assert np.isfinite(vector)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("config", [DIT, DiTConfig()], ids=["small", "published"])
def test_the_table_covers_every_tensor_and_no_other(config):
    table = table_token2wav.speaker_encoder(config)
    published = {name: shape for name, shape in meta_state(config).items() if name.startswith(SPEAKER)}
    assert torch_shapes(table) == published

    mel = jax.ShapeDtypeStruct((1, 16, config.mel_dim), jnp.float32)
    tree = jax.eval_shape(SpeakerEncoder(config).init, jax.random.key(0), mel)["params"]
    tree = jax.tree.map(lambda box: box.value.shape, tree, is_leaf=lambda leaf: hasattr(leaf, "names"))
    assert {f"speaker_encoder/{path}": shape for path, shape in flatten(tree)} == jax_shapes(table)


def test_the_published_size():
    table = table_token2wav.speaker_encoder(DiTConfig())
    assert (len(torch_shapes(table)), sum(entry.size for entry in table)) == (40, 1_729_280)
