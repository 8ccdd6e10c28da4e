"""The Thinker's loss does not depend on how conversations are packed, and says what it is made of."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from omni_jax.errors import ConfigError
from omni_jax.interop.weight_table import flatten
from omni_jax.training.thinker_task import ThinkerTask
from tests.training.packed_batches import SHAPE, alone, case, compiled, largest_difference, model_of, pack

NAMES = ("captions", "speech", "chat")


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return model_of(tiny_checkpoint[1])


@pytest.fixture(scope="module")
def task(model):
    return ThinkerTask(model[0], chunk=64, tasks=NAMES)


@pytest.fixture(scope="module")
def rows(model):
    kinds = ("", 2), ("image", 0), ("audio", 1), ("talking", 0), ("film", 1), ("", 2)
    each = [case(model[0], kind, seed=seed, task=task) for seed, (kind, task) in enumerate(kinds)]
    return [each[:3], each[3:]]


@pytest.fixture(scope="module")
def packed(model, task, rows):
    return compiled(task)(model[1], pack(rows, model[0]))


def test_packed_equals_unpacked(model, task, rows, packed):
    config, params = model
    each = rows[0] + rows[1]
    unpacked = alone([pack([[each[i]], [each[i + 1]]], config) for i in range(0, 6, 2)], task, params)
    assert largest_difference(packed, unpacked) < 1e-5


def test_what_lies_in_padding_changes_nothing(model, task, rows, packed):
    config, params = model
    batch, rng = pack(rows, config), np.random.default_rng(0)
    padding = batch.segment_ids == 0
    unheard = np.arange(batch.audio.mel.shape[2]) >= batch.audio.frames[..., None]
    unseen = batch.vision.frame[..., 1] - batch.vision.frame[..., 0] == 1
    assert padding.any() and unheard.any() and unseen.any()
    noisy = replace(
        batch,
        token_ids=np.where(padding, 7, batch.token_ids),
        labels=np.where(batch.weights == 0, rng.integers(-100, 2000, padding.shape), batch.labels).astype(np.int32),
        task_ids=np.where(padding, 1, batch.task_ids),
        audio=replace(batch.audio, mel=batch.audio.mel + unheard[..., None].astype(np.float32)),
        vision=replace(batch.vision, patches=batch.vision.patches + unseen[..., None].astype(np.float32)),
    )
    jax.tree.map(np.testing.assert_array_equal, compiled(task)(params, noisy), packed)


def test_a_label_that_counts_changes_the_loss(model, task, rows, packed):
    config, params = model
    batch = pack(rows, config)
    row, place = np.argwhere(batch.weights > 0)[0]
    batch.labels[row, place] += 1
    assert compiled(task)(params, batch)[0].total.loss != packed[0].total.loss


def test_losses_by_source_and_by_modality_add_up(model, task, rows, packed):
    config, params = model
    losses = packed[0]
    for kind in ("source", "modality"):
        parts = [total for name, total in losses.parts.items() if name.startswith(f"{kind}/")]
        assert sum(total.loss for total in parts) == pytest.approx(float(losses.total.loss), rel=1e-6)
        assert sum(total.weight for total in parts) == pytest.approx(float(losses.total.weight))
    only = compiled(task)(params, pack([[rows[0][1]], [rows[1][1]]], config))[0]  # image, and a silent film
    assert losses.parts["modality/vision"].loss == pytest.approx(float(only.total.loss), rel=1e-5)
    of_film = compiled(task)(params, pack([[rows[1][0]], []], config))[0]
    assert losses.parts["modality/audio_vision"].loss == pytest.approx(float(of_film.total.loss), rel=1e-5)
    for name, kind in (("captions", 0), ("speech", 1), ("chat", 2)):
        weight = sum(each.example.weights.sum() for row in rows for each in row if each.example.task == kind)
        assert losses.parts[f"source/{name}"].weight == weight


def test_a_batch_without_media_leaves_the_encoders_alone(model, task, rows):
    config, params = model
    text = [[rows[0][0]], [rows[1][2]]]
    losses, gradients = compiled(task)(params, pack(text, config))
    for part in ("audio_encoder", "vision_encoder"):
        jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), gradients.pop(part))
    without = replace(task, audio=False, vision=False)
    assert without.components == ("thinker",)
    expected = compiled(without)(params, pack(text, config, replace(SHAPE, audio_blocks=0, patches=0)))
    assert largest_difference((losses.total, gradients), (expected[0].total, expected[1])) < 1e-5
    assert not [name for name in expected[0].parts if "audio" in name or "vision" in name]


def test_every_parameter_of_the_encoders_learns(packed):
    still = {name for name, gradient in flatten(packed[1]) if not np.any(gradient)}
    assert still == {"audio_encoder/bos_eos_embedding"}  # the published model never reads it


def test_batches_of_another_kind_are_refused(model, rows):
    config, params = model
    batch = replace(pack(rows, config), audio=None)
    with pytest.raises(ConfigError, match="made with audio=True, but its batches have no room for it"):
        ThinkerTask(config).loss(params, batch)
    with pytest.raises(ConfigError, match="made with vision=False, but its batches have room for it"):
        ThinkerTask(config, audio=False, vision=False).loss(params, batch)
