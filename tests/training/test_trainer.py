"""The training step: what is frozen stays, parts add up, bad steps leave no trace, and a mesh changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from input_pipeline.training_batch import RowShape
from omni_jax.errors import ConfigError, ShardingError
from omni_jax.presets import preset
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.lora import LoraConfig
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.step import Guard, Trainer
from omni_jax.training.thinker_task import ThinkerTask
from tests.training.eight_devices import run_on_eight_devices
from tests.training.random_batches import random_batch, random_params

CONFIG = preset("tiny")
SHAPE = RowShape(tokens=48)
TASK = ThinkerTask(CONFIG, audio=False, vision=False, chunk=16, tasks=("one", "two"))
# The true gradient of a key's bias is zero: an epsilon above its rounding error keeps Adam from blowing it up.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, epsilon=1e-5)
PARAMS = random_params(CONFIG, TASK.components)


def trainer(**options) -> Trainer:
    optimizer = options.pop("optimizer", OPTIMIZER)
    return Trainer(CONFIG, TASK, optimizer, make_mesh(jax.devices()[:1]), **options)


def batch(rows: int = 2, seed: int = 0):
    return random_batch(CONFIG, rows, SHAPE, seed)


def run(model: Trainer, *batches):
    """Parameters by path, and the metrics of each step."""
    state, reports = model.start(PARAMS), []
    for each in batches:
        state, metrics = model(state, model.put(each))
        reports.append({name: float(value) for name, value in metrics.items()})
    return jax.tree.map(np.asarray, state.params), reports


def equal(one, other) -> bool:
    return bool(np.array_equal(one, other))


@pytest.fixture(scope="module")
def plain():
    return run(trainer(), batch(), batch(seed=1))


def test_a_step_makes_the_loss_smaller_and_moves_every_parameter():
    params, reports = run(trainer(), *[batch()] * 4)
    assert reports[-1]["loss"] < reports[0]["loss"]
    before = flatten_dict(PARAMS, sep="/")
    still = [path for path, value in params.items() if equal(value, before[path])]
    assert not still


def test_frozen_parameters_stay_to_the_last_bit_and_the_others_move():
    params, _ = run(trainer(freeze=["^thinker/layers/attention/", "norm/scale$"]), batch(), batch(seed=1))
    before = flatten_dict(PARAMS, sep="/")
    for path, value in params.items():
        frozen = "/attention/" in path or path.endswith("norm/scale")
        assert equal(value, before[path]) == frozen, path


def test_frozen_parameters_have_no_moments():
    everything, some = (trainer(freeze=patterns) for patterns in ([], ["^thinker/layers/"]))

    def sizes(model):
        return sum(leaf.size for leaf in jax.tree.leaves(model.state_shapes.optimizer_state))

    trained = sum(some.shapes[path].size for path in some.trained)
    assert sizes(some) == pytest.approx(2 * trained, abs=10)
    assert sizes(some) < sizes(everything) * 0.7


def test_a_factor_scales_the_step_of_the_paths_it_names(plain):
    half, _ = run(trainer(rates={"^thinker/layers/": 0.5, "mlp/up": 0.25}), batch())
    whole, _ = run(trainer(), batch())
    before = flatten_dict(PARAMS, sep="/")
    for path, value in half.items():
        factor = 0.25 if "mlp/up" in path else 0.5 if path.startswith("thinker/layers/") else 1.0
        np.testing.assert_allclose(value - before[path], factor * (whole[path] - before[path]), atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"freeze": ["^thinker/layer/"]},
            "freeze: the pattern '\\^thinker/layer/' matches no parameter.*thinker/embed",
        ),
        ({"freeze": ["thinker"]}, "leaves nothing to train"),
        ({"freeze": ["("]}, "is not a regular expression"),
        ({"rates": {"^talker/": 0.1}}, "rates: the pattern '\\^talker/' matches no parameter"),
        ({"rates": {"embed": 0.0}}, "must be above 0. To keep parameters fixed, freeze them"),
        ({"lora": LoraConfig(patterns=("norm/scale",))}, "lora.patterns: the pattern 'norm/scale' matches no"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        trainer(**options)


def test_micro_batches_add_up_to_the_batch():
    """The rows of each part count by their tokens: here the second part has a tenth of the first one's."""
    whole = batch(4)
    weights = whole.weights.copy()
    weights[2:] *= np.arange(whole.weights.shape[1]) < 5
    whole = dataclasses.replace(whole, weights=weights)
    one, (at_once,) = run(trainer(), whole)
    two, (in_parts,) = run(trainer(accumulate=2), whole)
    for path, value in one.items():
        np.testing.assert_allclose(two[path], value, atol=1e-6)
    assert in_parts == pytest.approx(at_once, rel=1e-5)


def test_means_of_sources_are_reported_and_add_up_to_the_loss(plain):
    report = plain[1][0]
    parts = sum(report[f"part/source/{name}"] * report[f"weight/source/{name}"] for name in ("one", "two"))
    assert parts == pytest.approx(report["loss"] * report["weight"], rel=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_no_trace_but_its_count(plain, poison):
    bad = dataclasses.replace(batch(), weights=batch().weights * np.float32(poison))
    params, reports = run(trainer(), batch(), bad, bad, batch(seed=1))
    for path, value in plain[0].items():
        np.testing.assert_array_equal(params[path], value)
    assert [report["skipped"] for report in reports] == [0, 1, 2, 2]
    assert [report["skipped_in_a_row"] for report in reports] == [0, 1, 2, 0]


def test_a_gradient_that_leaps_is_skipped_once_the_usual_one_is_known():
    scale = np.float32(1000)
    model = trainer(guard=Guard(spike=5.0, settle=2), optimizer=dataclasses.replace(OPTIMIZER, learning_rate=1e-6))
    state = model.start(PARAMS)
    # an embedding a thousand times too large makes gradients leap
    leap = state.params["thinker/lm_head/kernel"] * scale
    for _ in range(3):
        state, metrics = model(state, model.put(batch()))
    assert int(metrics["skipped"]) == 0
    state = state.replace(params=state.params | {"thinker/lm_head/kernel": leap})
    state, metrics = model(state, model.put(batch()))
    assert int(metrics["skipped"]) == 1
    assert float(metrics["gradient_norm"]) > 5 * float(state.usual_norm)


def test_evaluation_gives_the_loss_of_a_step_and_changes_nothing(plain):
    model = trainer()
    state = model.start(PARAMS)
    metrics = model.evaluate(state, model.put(batch()))
    assert float(metrics["loss"]) == pytest.approx(plain[1][0]["loss"], rel=1e-6)
    assert "part/accuracy" in metrics


def test_adapters_alone_are_trained_and_merge_into_the_weights():
    model = trainer(lora=LoraConfig(rank=4, alpha=8.0))
    state = model.start(PARAMS)
    before = flatten_dict(PARAMS, sep="/")
    untouched = flatten_dict(model.merged(state), sep="/")
    assert all(equal(untouched[path], value) for path, value in before.items())
    for _ in range(2):
        state, _ = model(state, model.put(batch()))
    after = flatten_dict(model.merged(state), sep="/")
    assert set(after) == set(before)
    for path, value in before.items():
        adapted = path.endswith("kernel") and ("/attention/" in path or "/mlp/" in path)
        assert equal(after[path], value) != adapted, path
        if adapted:
            # of low rank: each layer's change has no more than four directions
            matrix = (np.asarray(after[path]) - value)[0]
            flat = matrix.reshape(matrix.shape[0], -1) if "out" not in path else matrix.reshape(-1, matrix.shape[-1])
            singular = np.linalg.svd(flat, compute_uv=False)
            assert (singular > 1e-4 * singular[0]).sum() <= 4, path
    # what is trained is what is exported
    exported = trainer().evaluate(trainer().start(model.merged(state)), model.put(batch()))
    assert float(model.evaluate(state, model.put(batch()))["loss"]) == pytest.approx(float(exported["loss"]), rel=1e-6)


def test_frozen_parts_get_no_adapters():
    model = trainer(lora=LoraConfig(rank=2), freeze=["^thinker/layers/mlp/"])
    assert model.trained and not [path for path in model.trained if "mlp" in path]
    with pytest.raises(ConfigError, match="lora.patterns: the pattern"):
        trainer(lora=LoraConfig(patterns=("layers/mlp",)), freeze=["^thinker/layers/mlp/"])


@dataclasses.dataclass(frozen=True)
class Probed(ThinkerTask):
    """Draws a vector of its own towards ones."""

    @property
    def auxiliary(self):
        return {"probe/bias": (("vocab",), np.zeros(4, np.float32))}

    def loss(self, params, batch, key=None):
        usual = super().loss(params, batch, key)
        away = jnp.square(params["probe"]["bias"] - 1).sum()
        return dataclasses.replace(usual, total=usual.total.replace(loss=usual.total.loss + away * usual.total.weight))


def test_parameters_of_the_task_are_trained_beside_the_model_and_not_kept():
    def probed(**options):
        task = Probed(CONFIG, audio=False, vision=False, chunk=16)
        return Trainer(CONFIG, task, OPTIMIZER, make_mesh(jax.devices()[:1]), freeze=["^thinker/embed/"], **options)

    model, fast = probed(), probed(rates={"^probe/": 3.0})
    for _ in range(2):  # the first value is the task's, and stays it
        state = model.start(PARAMS)
        np.testing.assert_array_equal(state.params["probe/bias"], np.zeros(4))
        state, metrics = model(state, model.put(batch()))
    np.testing.assert_allclose(state.params["probe/bias"], OPTIMIZER.learning_rate, rtol=1e-4)
    faster, _ = fast(fast.start(PARAMS), fast.put(batch()))
    np.testing.assert_allclose(faster.params["probe/bias"], 3 * OPTIMIZER.learning_rate, rtol=1e-4)
    assert float(metrics["loss"]) > 4
    assert set(model.state_shapes.params) == set(flatten_dict(PARAMS, sep="/")) | {"probe/bias"}
    for kept in (model.kept(state), model.merged(state)):
        assert set(flatten_dict(kept, sep="/")) == set(flatten_dict(PARAMS, sep="/"))
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        Trainer(CONFIG, model.task, OPTIMIZER, model.mesh, freeze=["^thinker/"])
    with pytest.raises(ConfigError, match="Leave out lora"):
        Trainer(CONFIG, model.task, OPTIMIZER, model.mesh, lora=LoraConfig(rank=2))


def test_a_guard_that_divides_by_nothing_is_refused():
    with pytest.raises(ConfigError, match="settle = 0 must be at least 1"):
        Guard(settle=0)


def test_frozen_matrices_are_kept_in_the_dtype_of_compute():
    task = dataclasses.replace(TASK, dtype=jnp.bfloat16)
    model = Trainer(
        CONFIG, task, OPTIMIZER, make_mesh(jax.devices()[:1]), freeze=["^thinker/layers/"], dtype=jnp.bfloat16
    )
    state = model.start(PARAMS)
    assert state.params["thinker/layers/mlp/up/kernel"].dtype == jnp.bfloat16
    assert state.params["thinker/layers/attention_norm/scale"].dtype == jnp.float32
    assert state.params["thinker/lm_head/kernel"].dtype == jnp.float32
    _, metrics = model(state, model.put(batch()))
    assert np.isfinite(float(metrics["loss"]))


def test_missing_parameters_are_named():
    with pytest.raises(ConfigError, match="Parameters are missing: thinker/embed/embedding"):
        trainer().start({"thinker": {"lm_head": PARAMS["thinker"]["lm_head"]}})


def test_a_mesh_changes_nothing():
    """Text, and adapters in micro-batches: logits, losses and parameters are those of one device, moments lie split."""
    lines = run_on_eight_devices("text")
    assert lines == ["True True True True"] * 6 + ["batch.token_ids: axis batch of size 3 does not divide over 8. "
                                              "Choose a multiple of 8, or a smaller mesh."]  # fmt: skip


def test_rows_that_do_not_divide_into_micro_batches_are_refused():
    with pytest.raises(ShardingError, match="3 rows do not divide into 2 micro-batches"):
        trainer(accumulate=2).put(batch(3))


def test_rounded_products_learn_the_same_to_their_rounding(plain):
    rounding = trainer(round_products=True)
    params, reports = run(rounding, batch(), batch(seed=1))
    expected, expected_reports = plain
    for ours, theirs in zip(reports, expected_reports, strict=True):
        assert 1e-6 < abs(ours["loss"] / theirs["loss"] - 1) < 1e-3  # float32 differs by less, whatever its order
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=2e-2)
    before = flatten_dict(PARAMS, sep="/")
    one, other = (
        np.concatenate([(each[path] - before[path]).ravel() for path in params]) for each in (params, expected)
    )
    assert one @ other > 0.98 * np.linalg.norm(one) * np.linalg.norm(other)
    evaluated = rounding.evaluate(rounding.start(PARAMS), rounding.put(batch()))
    assert evaluated["loss"] == pytest.approx(reports[0]["loss"], rel=1e-6)
