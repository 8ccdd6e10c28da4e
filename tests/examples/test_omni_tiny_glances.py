"""Glances: a probe reads many pictures beside a few conversations, and leaves nothing of its own in the model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from examples.omni_tiny.album import SQUARE, WIDE, Album, answers, moved
from examples.omni_tiny.chain import CONFIGS
from examples.omni_tiny.glances import GlanceBatch, GlanceData, GlancesStage, GlancesTask, patches_of
from input_pipeline.loader_ahead import Report
from input_pipeline.pack_rows import vision_row
from input_pipeline.patches import image_patches
from input_pipeline.training_batch import RowShape
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.models.vision_encoder import VisionBounds, VisionEncoder
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.lora import LoraConfig
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import load_config
from omni_jax.training.step import Trainer
from tests.training.random_batches import random_batch, random_params

CONFIG = preset("tiny")
SHAPE = RowShape(tokens=48, patches=64)
TASK = GlancesTask(CONFIG, audio=False)
PARAMS = random_params(CONFIG, TASK.components)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=0, total_steps=20)


def album(wide: int = 6, square: int = 10) -> Album:
    from examples.omni_tiny.album import Shown

    rng = np.random.default_rng(3)

    def shown(count, width, questions):
        pixels = rng.integers(0, 256, (count, 56, width, 3)).astype(np.uint8)
        return Shown(pixels, np.stack([rng.integers(0, each, count) for each in questions], axis=1).astype(np.int32))

    return Album(shown(wide, 112, WIDE), shown(square, 56, SQUARE))


def glance_batch() -> GlanceBatch:
    pictures = album()
    return GlanceBatch(random_batch(CONFIG, 1, SHAPE), *pictures.wide.at(0, 2, 0), *pictures.square.at(0, 4, 0))


def trainer(**options) -> Trainer:
    freeze = ["^thinker/"]
    return Trainer(CONFIG, TASK, OPTIMIZER, make_mesh(jax.devices()[:1]), freeze=freeze, **options)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The number eight zero seven one in white.", (9, 1, 8, 2, 7)),
        ("The number one one in red.", (2, 2, 0, 0, 1)),
        ("The number one in black.", (2, 8, 0, 0)),
        ("There is one green diamond.", (0, 3, 6, 1)),
        ("There are three red crosses.", (0, 1, 5, 3)),
        ("There are five blue triangles.", (0, 2, 3, 5)),
    ],
)
def test_captions_answer_the_questions(caption, expected):
    assert answers(caption) == expected
    assert all(told < size for told, size in zip(expected, WIDE if len(expected) == 5 else SQUARE, strict=True))


@pytest.mark.parametrize("caption", ["A cat.", "The number in red.", "There are red circles.", "The number one."])
def test_other_captions_are_refused(caption):
    with pytest.raises(DataError, match="is no caption of digits or shapes"):
        answers(caption)


def test_pictures_are_moved_within_bounds_and_their_edges_go_on():
    pictures = np.zeros((40, 56, 56, 3), np.uint8)
    pictures[:, 20, 30], pictures[:, :, 0] = 200, 50
    found = moved(pictures, np.random.default_rng(0))
    places = {tuple(int(x) for x in np.argwhere(each[..., 0] == 200)[0]) for each in found}
    assert len(places) > 20 and all(17 <= y <= 23 and 27 <= x <= 33 for y, x in places)
    assert all((each[:, 0] == each[0, 0]).all() for each in found)


def test_an_album_is_read_from_captions_and_goes_round_in_a_new_order(tmp_path):
    lines = []
    for number, (caption, width) in enumerate([("The number four in red.", 56), ("The number four two in red.", 112)]):
        Image.new("RGB", (width, 56), (number, 0, 0)).save(tmp_path / f"{number}.png")
        content = [{"type": "image", "image": f"{number}.png"}]
        lines.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": caption}]})
    path = tmp_path / "image_text.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Album.read(path)
    assert found.wide.answers.tolist() == [[5, 3, 0, 0, 1]] and found.square.answers.tolist() == [[5, 1, 0, 0]]
    assert found.wide.pixels.shape == (1, 56, 112, 3) and found.wide.pixels[0, 0, 0, 0] == 1

    many = album(wide=5).wide
    taken = np.concatenate([many.at(step, 3, 7)[1] for step in range(10)])
    rounds = [sorted(map(tuple, taken[first : first + 5].tolist())) for first in range(0, 30, 5)]
    assert all(each == sorted(map(tuple, many.answers.tolist())) for each in rounds)
    assert len({tuple(map(tuple, taken[first : first + 5].tolist())) for first in range(0, 30, 5)}) > 1

    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match="one kind is missing"):
        Album.read(path)
    wrong = json.loads(json.dumps(lines[0]).replace("four", "four two"))
    path.write_text(json.dumps(wrong) + "\n")
    with pytest.raises(DataError, match="image_text.jsonl:1: .* is \\(56, 56, 3\\), not \\(56, 112, 3\\)"):
        Album.read(path)


def test_tokens_at_a_glance_are_those_of_the_encoder():
    pictures, processor = album(), ProcessorConfig()
    vision, config = jax.tree.map(jnp.asarray, PARAMS["vision_encoder"]), CONFIG.thinker_config.vision_config
    wide, square = TASK._tokens(vision, jnp.asarray(pictures.wide.pixels[:2]), jnp.asarray(pictures.square.pixels[:4]))
    for found, pixels in ((wide, pictures.wide.pixels), (square, pictures.square.pixels)):
        for own, picture in zip(found, pixels):
            item = image_patches(picture, processor)
            row, _ = vision_row([item], len(item.pixels), config)
            bounds = VisionBounds(*map(jnp.asarray, (row.coordinates, row.window, row.frame)))
            expected, _ = VisionEncoder(config).apply({"params": vision}, jnp.asarray(row.patches), bounds)
            np.testing.assert_allclose(own, expected[0], atol=2e-5, rtol=1e-4)
    shown = image_patches(pictures.wide.pixels[0], processor).pixels.reshape(-1, 3, 2, 196)
    np.testing.assert_allclose(
        patches_of(jnp.asarray(pictures.wide.pixels[:1]), processor)[0].reshape(-1, 3, 196), shown[:, :, 0], atol=1e-5
    )


def test_the_probe_learns_beside_the_encoder_and_stays_out_of_the_model():
    step, batch = trainer(), glance_batch()
    state = step.start(PARAMS)
    first = jax.tree.map(np.asarray, state.params)
    reports = []
    for _ in range(6):
        state, report = step(state, step.put(batch))
        reports.append(jax.tree.map(float, report))
    assert reports[-1]["loss"] < 0.8 * reports[0]["loss"]
    questions = [np.log(WIDE).sum(), np.log(SQUARE).sum()]  # the probe begins with no opinion
    expected = np.mean(questions) + TASK.talk_weight * reports[0]["part/talk"]
    assert reports[0]["loss"] == pytest.approx(expected, rel=1e-4)
    moved_paths = {path for path, value in state.params.items() if not np.array_equal(value, first[path])}
    assert {path.split("/")[0] for path in moved_paths} == {"vision_encoder", "probe"}
    assert {path for path in moved_paths if path.startswith("probe/")} == set(TASK.auxiliary)
    assert set(step.kept(state)) == set(step.merged(state)) == {"thinker", "vision_encoder"}
    np.testing.assert_array_equal(
        step.merged(state)["vision_encoder"]["merger"]["down"]["kernel"],
        state.params["vision_encoder/merger/down/kernel"],
    )


def test_adapters_beside_a_probe_are_refused():
    with pytest.raises(ConfigError, match="Leave out lora"):
        trainer(lora=LoraConfig(rank=2))


class _Loader:
    """As the loader's contract says: batches that its step alone decides."""

    def __init__(self):
        self.step = 0

    def __iter__(self):
        while True:
            self.step += 1
            yield f"talk {self.step}", Report(1, 1, ("one",), ())

    def state(self):
        return {"step": self.step}

    def restore(self, state):
        assert set(state) == {"step"}
        self.step = state["step"]

    seek = None


def test_data_goes_on_with_the_same_pictures():
    def batches(data, count):
        found = iter(data)
        return [next(found)[0] for _ in range(count)]

    whole = batches(GlanceData(_Loader(), album(), 2, 5), 6)
    first = GlanceData(_Loader(), album(), 2, 5)
    batches(first, 4)
    again = GlanceData(_Loader(), album(), 2, 5)
    again.restore(json.loads(json.dumps(first.state())))
    for expected, found in zip(whole[4:], batches(again, 2), strict=True):
        assert found.talk == expected.talk
        for name in ("wide", "wide_answers", "square", "square_answers"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not np.array_equal(whole[0].wide, whole[1].wide)
    with pytest.raises(DataError, match="album"):
        GlanceData(_Loader(), album(wide=7), 2, 5).restore(first.state())


def test_the_configuration_is_of_this_stage_and_trains_the_encoder_alone():
    config = load_config(CONFIGS / "glances.py")
    checkpoint = "omni_jax/assets/omni_tiny"
    task = config.stage.task(dataclasses.replace(config, checkpoint=checkpoint), CONFIG, ("a", "b", "c"))
    assert isinstance(task, GlancesTask) and isinstance(config.stage, GlancesStage)
    trained = Trainer(CONFIG, task, config.optimizer, make_mesh(jax.devices()[:1]), freeze=config.freeze).trained
    assert {path.split("/")[0] for path in trained} == {"vision_encoder", "probe"}
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, shape=RowShape(tokens=512)))
    with pytest.raises(ConfigError, match="Set data.shape.patches above 0"):
        config.stage.task(without, CONFIG, ("a",))
