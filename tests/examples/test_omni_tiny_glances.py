"""Glances: a probe reads many pictures beside a few conversations, and leaves nothing of its own in the model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from examples.omni_tiny.album import SQUARE, WIDE, Album, Shown, answers, moved
from examples.omni_tiny.chain import CONFIGS
from examples.omni_tiny.glances import GlanceBatch, GlancesStage, GlancesTask, patches_of, with_pictures
from input_pipeline.pack_rows import vision_row
from input_pipeline.patches import image_patches
from input_pipeline.training_batch import RowShape
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.models.vision_encoder import VisionBounds, VisionEncoder
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import SourceConfig, load_config
from omni_jax.training.step import Trainer
from tests.examples.probed_runs import NumberedLoader, check_run
from tests.training.random_batches import random_batch, random_params

CONFIG = preset("tiny")
SHAPE = RowShape(tokens=48, patches=64)
TASK = GlancesTask(CONFIG, audio=False)
PARAMS = random_params(CONFIG, TASK.components)
# an even rate, so that a shorter run is the beginning of a longer one
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=0, total_steps=20, final_fraction=1.0)


def album(wide: int = 6, square: int = 10) -> Album:
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
    pictures = np.random.default_rng(1).integers(0, 256, (40, 8, 9, 3)).astype(np.uint8)
    found, places = moved(pictures, np.random.default_rng(0)), set()
    for picture, own in zip(pictures, found, strict=True):
        y, x = np.mgrid[:8, :9]
        fits = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if np.array_equal(own, picture[np.clip(y + down, 0, 7), np.clip(x + right, 0, 8)])
        ]
        assert len(fits) == 1
        places.update(fits)
    assert len(places) > 20 and {y for y, _ in places} == {x for _, x in places} == set(range(-3, 4))


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
    with pytest.raises(DataError, match="there must be pictures of several digits and others"):
        Album.read(path)
    wrong = json.loads(json.dumps(lines[0]).replace("four", "four two"))
    path.write_text(json.dumps(wrong) + "\n" + json.dumps(lines[0]) + "\n")
    with pytest.raises(
        DataError, match=r"image_text.jsonl:1: 0.png is \(56, 56, 3\), its caption is of \(56, 112, 3\)"
    ):
        Album.read(path)


@pytest.mark.parametrize(
    "line", ["no json", '{"messages": [{"role": "system", "content": "Be."}, {}, {}]}', '{"messages": [{}, {}]}']
)
def test_lines_that_are_no_picture_with_its_caption_are_named(tmp_path, line):
    path = tmp_path / "image_text.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="image_text.jsonl:1: not a picture and its caption"):
        Album.read(path)
    with pytest.raises(DataError, match="Start in the folder of the data"):
        Album.read(tmp_path / "other.jsonl")


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


def test_shares_are_of_pictures_of_their_kind():
    batch = jax.tree.map(jnp.asarray, glance_batch())
    told = jnp.array([[3, 1, 0, 0], [3, 2, 0, 0], [0, 1, 5, 2], [0, 1, 5, 3]])
    batch = dataclasses.replace(batch, square_answers=told, wide_answers=jnp.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]))
    auxiliary = {path: value.copy() for path, (_, value) in TASK.auxiliary.items()}

    def tell(name, answers, questions):
        starts = np.cumsum([0, *questions[:-1]])
        auxiliary[f"probe/{name}/bias"][starts + np.array(answers)] = 50

    tell("square", (3, 1, 0, 0), SQUARE)  # of the first digit all is right, of the second the colour is wrong
    tell("wide", (1, 2, 3, 4, 6), WIDE)
    params = jax.tree.map(jnp.asarray, PARAMS | {"probe": unflatten_dict(auxiliary, sep="/")["probe"]})
    parts = TASK.loss(params, batch).parts
    assert {name: float(parts[name].mean) for name in ("wide", "digit", "shapes")} == {
        "wide": 0.5, "digit": 0.5, "shapes": 0
    }  # fmt: skip


def test_data_goes_on_with_the_same_pictures():
    def batches(data, count):
        found = iter(data)
        return [next(found)[0] for _ in range(count)]

    whole = batches(with_pictures(NumberedLoader(), album(), 2, 5), 6)
    first = with_pictures(NumberedLoader(), album(), 2, 5)
    batches(first, 4)
    again = with_pictures(NumberedLoader(), album(), 2, 5)
    again.restore(json.loads(json.dumps(first.state())))
    for expected, found in zip(whole[4:], batches(again, 2), strict=True):
        assert found.talk == expected.talk
        for name in ("wide", "wide_answers", "square", "square_answers"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not np.array_equal(whole[0].wide, whole[1].wide)
    with pytest.raises(DataError, match="album"):
        with_pictures(NumberedLoader(), album(wide=7), 2, 5).restore(first.state())


def test_the_configuration_is_of_this_stage_and_trains_the_encoder_alone():
    config = load_config(CONFIGS / "glances.py")
    task = config.stage.task(config, CONFIG, ("a", "b", "c"))
    assert isinstance(task, GlancesTask) and isinstance(config.stage, GlancesStage)
    trained = Trainer(CONFIG, task, config.optimizer, make_mesh(jax.devices()[:1]), freeze=config.freeze).trained
    assert {path.split("/")[0] for path in trained} == {"vision_encoder", "probe"}
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, shape=RowShape(tokens=512)))
    with pytest.raises(ConfigError, match="data.shape.patches is 0, and this stage learns by it"):
        config.stage.task(without, CONFIG, ("a",))
    with pytest.raises(ConfigError, match="nothing that is held out"):
        config.stage.task(dataclasses.replace(config, eval_every=10, held_out=config.data.sources), CONFIG, ("a",))
    with pytest.raises(ConfigError, match="at least one picture"):
        GlancesStage(wide=0)


def test_a_run_goes_on_where_it_was_and_its_model_has_no_probe(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for number, (caption, width) in enumerate([("The number four in red.", 56), ("The number one two in red.", 112)]):
        Image.fromarray(album().wide.pixels[number, :, :width]).save(f"{number}.png")
        content = [{"type": "image", "image": f"{number}.png"}]
        lines.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": caption}]})
    (tmp_path / "image_text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    usual = load_config(CONFIGS / "glances.py")

    def config(output, steps):
        sources, shape = (SourceConfig("image_text.jsonl"),), RowShape(tokens=256, patches=64)
        data = dataclasses.replace(usual.data, sources=sources, shape=shape, workers=0)
        stage, optimizer = GlancesStage(wide=2), dataclasses.replace(OPTIMIZER, total_steps=steps)
        return dataclasses.replace(
            usual, stage=stage, checkpoint=str(tiny_checkpoint[1]), output=output, data=data, optimizer=optimizer,
            freeze=("^thinker/",), save_every=2,
        )  # fmt: skip

    check_run(config, "vision_encoder")
