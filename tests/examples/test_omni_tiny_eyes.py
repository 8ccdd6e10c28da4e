"""Eyes learn from pictures: what is told of one hangs on its own tokens, and on no other picture's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.omni_tiny.chain import CONFIGS
from examples.omni_tiny.eyes import EyesTask, mean_of_pictures
from input_pipeline.training_batch import RowShape
from omni_jax.errors import ConfigError
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.run_config import load_config
from omni_jax.training.step import Trainer
from tests.training.random_batches import random_batch, random_params

CONFIG = preset("tiny")
SHAPE = RowShape(tokens=48, patches=64)
TASK = EyesTask(CONFIG, audio=False)
PARAMS = random_params(CONFIG, TASK.components)


def test_the_configuration_is_of_this_task_and_trains_what_it_reaches():
    config = load_config(CONFIGS / "eyes.py")
    task = config.stage.task(config, CONFIG, ("image_text",))
    assert isinstance(task, EyesTask)
    one = make_mesh(jax.devices()[:1])
    trained = Trainer(CONFIG, task, config.optimizer, one, freeze=config.freeze).trained
    assert {path.split("/")[0] for path in trained} == {"vision_encoder", "thinker"}
    with pytest.raises(ConfigError, match="final_norm/scale is left out of this stage"):
        Trainer(CONFIG, task, config.optimizer, one, freeze=["^thinker/layers/"])


@pytest.mark.parametrize("room", [{"patches": 0}, {"audio_blocks": 1}])
def test_rows_without_pictures_or_with_sound_are_refused(room):
    config = load_config(CONFIGS / "eyes.py")
    shape = dataclasses.replace(config.data.shape, **room)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shape=shape))
    with pytest.raises(ConfigError, match="learns from pictures only"):
        config.stage.task(config, CONFIG, ("image_text",))


def test_each_word_has_the_mean_of_its_own_conversations_pictures():
    batch = jax.tree.map(jnp.asarray, random_batch(CONFIG, 2, SHAPE))
    seen = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 64)), jnp.float32)
    found = np.asarray(mean_of_pictures(seen, batch))
    second = np.asarray(batch.segment_ids == 2)  # the segment that holds a picture, of four tokens
    for row in range(2):
        expected = np.broadcast_to(np.asarray(seen[row, :4]).mean(axis=0), found[row][second[row]].shape)
        np.testing.assert_allclose(found[row][second[row]], expected, rtol=1e-5, atol=1e-6)
    assert not found[~second].any()


def test_many_tokens_are_counted_in_bfloat16_too():
    batch = jax.tree.map(jnp.asarray, random_batch(CONFIG, 1, RowShape(tokens=2048, patches=4096)))
    source = jnp.where(batch.segment_ids == 2, 0, -1)
    seen = jnp.full((1, 1024, 64), 0.5, jnp.bfloat16)
    found = np.asarray(mean_of_pictures(seen, dataclasses.replace(batch, vision_source=source)))
    np.testing.assert_allclose(found[np.asarray(source) == 0], 0.5)


def test_the_loss_reaches_the_encoder_through_conversations_with_pictures_only():
    batch = jax.tree.map(jnp.asarray, random_batch(CONFIG, 2, SHAPE))

    def loss(params, weights):
        return TASK.loss(params, dataclasses.replace(batch, weights=weights)).total.loss

    gradient = jax.jit(jax.grad(loss))
    with_picture, without = (gradient(PARAMS, batch.weights * (batch.segment_ids == n)) for n in (2, 1))
    norm = lambda tree: float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree)))  # noqa: E731
    assert norm(with_picture["vision_encoder"]) > 0
    assert norm(without["vision_encoder"]) == 0 < norm(without["thinker"]["lm_head"])
    assert norm(with_picture["thinker"]["layers"]) == 0, "they are left out"
