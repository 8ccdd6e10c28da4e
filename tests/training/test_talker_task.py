"""The Talker's loss: packing, what flows back into the Thinker, and what its mean is made of."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omni_jax.errors import ConfigError
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.dpo import DpoTask
from omni_jax.training.lora import LoraConfig
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.packed_thinker import own_rows
from omni_jax.training.step import Trainer
from omni_jax.training.talker_task import TalkerTask
from omni_jax.training.thinker_task import ThinkerTask
from tests.training.packed_batches import VOICE, alone, case, compiled, largest_difference, model_of, pack


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return model_of(tiny_checkpoint[1])


@pytest.fixture(scope="module")
def task(model):
    return TalkerTask(model[0], detach=False, chunk=64, tasks=("read", "told"))


@pytest.fixture(scope="module")
def rows(model):
    kinds = ("", 0), ("audio", 0), ("image", 1), ("talking", 1)
    each = [case(model[0], kind, seed=i, codes=(4 + i,), task=task) for i, (kind, task) in enumerate(kinds)]
    return [each[:2], each[2:]]


@pytest.fixture(scope="module")
def packed(model, task, rows):
    return compiled(task)(model[1], pack(rows, model[0]))


def test_packed_speech_equals_unpacked(model, task, rows, packed):
    config, params = model
    unpacked = alone([pack([[a], [b]], config) for a, b in rows], task, params)
    assert largest_difference(packed, unpacked) < 1e-5


def test_only_codes_that_count_change_the_loss(model, task, rows, packed):
    config, params = model
    batch = pack(rows, config)
    speech, rng = batch.speech, np.random.default_rng(0)
    padding = speech.segment_ids == 0
    ignored = replace(
        speech,
        labels=np.where(speech.weights == 0, rng.integers(-100, 200, padding.shape), speech.labels).astype(np.int32),
        text_source=np.where(padding, 3, speech.text_source),
        text_token=np.where(padding, 5, speech.text_token),
        codes=np.where(padding, 9, speech.codes),
    )
    jax.tree.map(np.testing.assert_array_equal, compiled(task)(params, replace(batch, speech=ignored)), packed)
    row, place = np.argwhere(speech.weights > 0)[0]
    speech.labels[row, place] += 1
    assert compiled(task)(params, batch)[0].total.loss != packed[0].total.loss


def test_losses_of_speech_by_source_add_up(packed, rows):
    losses = packed[0]
    parts = losses.parts["source/read"], losses.parts["source/told"]
    assert sum(part.loss for part in parts) == pytest.approx(float(losses.total.loss), rel=1e-6)
    codes = [sum(len(each.example.speech[0].codes) + 1 for row in rows for each in row if each.example.task == task)
             for task in (0, 1)]  # fmt: skip
    assert [part.weight for part in parts] == codes
    assert 0 <= losses.parts["accuracy"].mean <= 1


def test_a_detached_thinker_learns_from_text_alone(model, task, rows, packed):
    config, params = model
    batch = pack(rows, config)
    joint, gradients = compiled(replace(task, detach=True, text_weight=0.5))(params, batch)
    text, of_text = compiled(ThinkerTask(config, chunk=64))(params, batch)
    assert largest_difference(gradients.pop("talker"), packed[1]["talker"]) < 1e-5
    rows_of = [each["thinker"]["embed"]["embedding"] for each in (gradients, packed[1], of_text)]
    ours, of_speech, theirs = map(np.array, rows_of)
    np.testing.assert_allclose(ours[VOICE], of_speech[VOICE], rtol=1e-4, atol=1e-7)  # the voice is the Talker's own
    assert np.abs(ours[VOICE]).max() > 0 and np.abs(theirs[VOICE]).max() == 0
    ours[VOICE] = 0
    gradients["thinker"]["embed"]["embedding"] = ours
    assert largest_difference(gradients, jax.tree.map(lambda x: 0.5 * x, of_text)) < 1e-5
    speech = packed[0].total
    expected = speech.loss + 0.5 * text.total.loss, speech.weight + 0.5 * text.total.weight
    np.testing.assert_allclose((joint.total.loss, joint.total.weight), expected, rtol=1e-5)
    np.testing.assert_allclose(joint.parts["text"].mean, text.total.mean, rtol=1e-5)
    np.testing.assert_allclose(joint.parts["speech"].mean, speech.mean, rtol=1e-5)


def trainer(config, task, weight_decay=0.0, **options):
    optimizer = OptimizerConfig(weight_decay=weight_decay, learning_rate=1e-2, warmup_steps=0)
    return Trainer(config, task, optimizer, make_mesh(jax.devices()[:1]), **options)


def test_rows_without_a_gradient_stay_to_the_last_bit(model):
    """Those of all words, where a voice's row is learnt: see `test_dpo.py` for whose gradient is zero."""
    learning = trainer(model[0], TalkerTask(model[0]), freeze=["_encoder/", "^thinker/(?!embed/)"])
    words = {path: jnp.full((3, 4), 1 / 3) for path in learning.trained}
    state, update = learning.optimizer.init(words), jax.jit(learning.optimizer.update)
    gradients = {path: jnp.zeros((3, 4)).at[1].set(0.1) for path in words}
    for _ in range(2):
        updates, state = update(gradients, state, words)
        words = optax.apply_updates(words, updates)
    changed = np.asarray(words["thinker/embed/embedding"]) != np.float32(1 / 3)
    assert changed.any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (TalkerTask, {}, r"No gradient reaches audio_encoder/.*freeze = \['\^audio_encoder/', '\^thinker/\(\?!embed/"),
        (DpoTask, {"freeze": ["_encoder/", "^thinker/embed/"]}, r"reaches thinker/.*freeze = \['\^thinker/'\]"),
        (TalkerTask, {"lora": LoraConfig(("^thinker/layers/mlp/", "^talker/"))}, "reaches thinker/layers/mlp/"),
        (TalkerTask, {"lora": LoraConfig(("^thinker/embed/", "^talker/"))}, "an adapter would change all other rows"),
        (TalkerTask, {"freeze": ["_encoder/", "^thinker/(?!embed)"], "weight_decay": 0.1}, "weight_decay = 0.1 would"),
        (partial(TalkerTask, text_weight=1.0), {"freeze": ["_encoder/", "^thinker/"]}, "nothing of the Thinker"),
    ],
)
def test_what_no_gradient_reaches_is_not_to_be_trained(model, task, options, message):
    with pytest.raises(ConfigError, match=message):
        trainer(model[0], task(model[0]), **options)


def test_what_a_gradient_reaches_may_be_trained(model):
    config = model[0]
    assert trainer(config, TalkerTask(config, detach=False), 0.1).trained
    assert trainer(config, TalkerTask(config, text_weight=0.5), 0.1).trained
    assert trainer(config, DpoTask(config), 0.1, freeze=["_encoder/", "^thinker/"]).trained
    assert trainer(config, TalkerTask(config), 0.1, lora=LoraConfig(("^talker/",))).trained


def test_each_place_reads_its_own_rows_table_or_zeros():
    table = jnp.arange(12.0).reshape(2, 3, 2)
    read, back = jax.vjp(lambda table: own_rows(table, jnp.asarray([[2, -1, 0, 2], [-1, 1, -1, -1]])), table)
    np.testing.assert_array_equal(read[0], [[4, 5], [0, 0], [0, 1], [4, 5]])
    np.testing.assert_array_equal(read[1], [[0, 0], [8, 9], [0, 0], [0, 0]])
    np.testing.assert_array_equal(back(jnp.ones_like(read))[0][..., 0], [[1, 0, 2], [0, 1, 0]])


def test_speech_needs_a_talker_and_spoken_answers(model, rows):
    config, params = model
    with pytest.raises(ConfigError, match="has no Talker"):
        TalkerTask(replace(config, talker_config=None))
    with pytest.raises(ConfigError, match="The batch has no speech"):
        TalkerTask(config).loss(params, replace(pack(rows, config), speech=None))
