"""A batch of pictures in pieces gives the tokens of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.packing import pack_vision
from input_pipeline.patches import Patches
from input_pipeline.vision_pieces import vision_pieces
from omni_jax.models.logical_axes import logical_axes
from omni_jax.models.vision_encoder import VisionEncoder
from omni_jax.presets import preset
from omni_jax.sampling.generate import vision_layout

CONFIG = preset("tiny").thinker_config.vision_config
GRIDS = ((1, 4, 6), (5, 10, 8), (1, 18, 20), (2, 2, 2))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    items = [Patches(rng.normal(size=(t * h * w, 1176)).astype(np.float32), (t, h, w)) for t, h, w in GRIDS]
    return pack_vision(items, CONFIG)


@pytest.mark.parametrize("most", [1, 100, 300, 700])
def test_pieces_hold_whole_frames_in_order(batch, most):
    pieces = vision_pieces(batch, most)
    sizes = [size for t, h, w in GRIDS for size in [h * w] * t]
    held = [[len(frame) for frame in piece.frames()] for piece, _ in pieces]
    assert [size for each in held for size in each] == sizes
    assert all(len(each) == 1 or sum(each) <= most for each in held)
    assert len(pieces) > 1
    patches = np.concatenate([piece.patches[:real] for piece, real in pieces])
    np.testing.assert_array_equal(patches, batch.patches[: len(patches)])
    assert sum(len(piece.rows) for piece, _ in pieces) == len(batch.rows)


def test_tokens_of_the_pieces_are_those_of_the_whole(batch):
    _, shapes = logical_axes(preset("tiny"), ["vision_encoder"])
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape), shapes)["vision_encoder"]

    def tokens(part, real):
        out, _ = VisionEncoder(CONFIG).apply({"params": params}, jnp.asarray(part.patches), vision_layout(part))
        return np.asarray(out)[: real // 4]

    whole = tokens(batch, int(batch.valid.sum()))
    parts = np.concatenate([tokens(*piece) for piece in vision_pieces(batch, 300)])
    np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())


def test_a_small_batch_stays_whole(batch):
    assert vision_pieces(batch, len(batch.patches)) == [(batch, int(batch.valid.sum()))]


def test_a_sampler_answers_the_same_whatever_the_pieces(tiny_checkpoint, monkeypatch):
    from omni_jax.sampling import generate
    from omni_jax.sampling.load import load_sampler
    from omni_jax.sampling.options import SamplingOptions

    sampler = load_sampler(tiny_checkpoint[1], chunk=64)
    rng = np.random.default_rng(0)
    content = [
        {"type": "image", "image": rng.integers(0, 255, size).astype(np.uint8)}
        for size in ((200, 300, 3), (120, 90, 3))
    ]
    request = sampler.prepare([{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}])
    answers = []
    for most in (generate.VISION_PIECE, 64):
        monkeypatch.setattr(generate, "VISION_PIECE", most)
        answers.append(sampler.generate([request], SamplingOptions(max_new_tokens=8))[0].token_ids)
    assert answers[0] == answers[1]
