"""The training step: chunked loss equals the plain one, and a mesh changes nothing."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.errors import ConfigError
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset
from omni_jax.training.objectives import next_token_loss
from omni_jax.training.optimizer import OptimizerConfig, learning_rate
from omni_jax.training.step import compute_copy


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 13), st.integers(1, 16), st.integers(0, 2**31 - 1))
def test_the_loss_by_chunks_is_the_loss_of_all_logits(batch, length, chunk, seed):
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(batch, length, 8)), rng.normal(size=(8, 19))
    labels, weights = rng.integers(0, 19, (batch, length)), rng.integers(0, 3, (batch, length)) / 2

    def plain(hidden, head):
        losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ head, labels)
        return jnp.sum(losses * weights)

    def chunked(hidden, head):
        total = next_token_loss(hidden, head, jnp.asarray(labels), jnp.asarray(weights, jnp.float32), chunk=chunk)
        return total.loss

    arguments = jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32)
    value, gradients = jax.value_and_grad(chunked, argnums=(0, 1))(*arguments)
    expected, expected_gradients = jax.value_and_grad(plain, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_label_that_does_not_count_changes_nothing():
    rng = np.random.default_rng(0)
    hidden, head = jnp.asarray(rng.normal(size=(1, 6, 8))), jnp.asarray(rng.normal(size=(8, 19)))
    weights = jnp.asarray([[1, 1, 0, 1, 0, 1.0]])
    one = next_token_loss(hidden, head, jnp.asarray([[1, 2, 3, 4, 5, 6]]), weights, chunk=2)
    other = next_token_loss(hidden, head, jnp.asarray([[1, 2, -100, 4, 10**6, 6]]), weights, chunk=2)
    counted = next_token_loss(hidden, head, jnp.asarray([[1, 9, 3, 4, 5, 6]]), weights, chunk=2)
    assert one.loss == other.loss
    assert one.loss != counted.loss
    assert one.weight == 4


def test_the_learning_rate_warms_up_and_falls_to_its_fraction():
    rate = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup_steps=10, total_steps=100, final_fraction=0.1))
    assert rate(0) == 0
    assert rate(10) == pytest.approx(1e-3)
    assert rate(100) == pytest.approx(1e-4)


def test_an_impossible_schedule_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps = 20"):
        OptimizerConfig(warmup_steps=20, total_steps=20)


def test_norms_and_biases_are_computed_with_as_they_are_kept():
    """Stacked over layers they are arrays of two axes, and still no matrices."""
    _, shapes = logical_axes(preset("tiny"), ["thinker"])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    layers = compute_copy(params, jnp.bfloat16)["thinker"]["layers"]
    assert layers["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert layers["attention_norm"]["scale"].dtype == layers["attention"]["key"]["bias"].dtype == jnp.float32


MESHES = ({"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "context": 4})


def test_logits_and_a_training_step_of_a_mesh_equal_those_of_one_device():
    code = f"""
        import jax, jax.numpy as jnp, numpy as np
        from omni_jax.errors import ShardingError
        from omni_jax.models.thinker import Thinker
        from omni_jax.presets import preset
        from omni_jax.sharding.mesh import make_mesh
        from omni_jax.sharding.rules import TRAINING
        from omni_jax.sharding.scope import on_mesh
        from omni_jax.training.optimizer import OptimizerConfig, make_optimizer
        from omni_jax.training.step import TextBatch, Trainer, text_loss

        config = preset("tiny")
        text = config.thinker_config.text_config
        rng = np.random.default_rng(0)
        batch, length = 8, 64
        tokens = rng.integers(0, text.vocab_size, (batch, length + 1)).astype(np.int32)
        segments = np.sort(rng.integers(1, 4, (batch, length)), axis=1).astype(np.int32)
        segments[:, -5:] = 0
        packed = TextBatch(
            tokens[:, :-1],
            np.broadcast_to(np.arange(length, dtype=np.int32), (3, batch, length)),
            segments,
            tokens[:, 1:],
            (segments > 0).astype(np.float32),
        )
        thinker = Thinker(text)
        params = thinker.init(jax.random.key(0), packed.token_ids, packed.position_ids)["params"]
        params = jax.tree.map(np.asarray, {{"thinker": jax.tree.map(lambda x: x.unbox() if hasattr(x, "unbox") else x,
            params, is_leaf=lambda x: hasattr(x, "unbox"))}})

        # The true gradient of a key's bias is zero: an epsilon above its rounding error keeps Adam from blowing it up.
        optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, epsilon=1e-5)

        def run(mesh):
            trainer = Trainer(config, ("thinker",), text_loss(config, chunk=8),
                make_optimizer(optimizer), mesh)
            state = trainer.start(params)
            placed = trainer.put(packed)
            with on_mesh(mesh, TRAINING):
                logits = jax.jit(thinker.apply)({{"params": state.params["thinker"]}}, placed.token_ids,
                    placed.position_ids, placed.segment_ids)
            split = {{leaf.sharding.shard_shape(leaf.shape) == leaf.shape for leaf in
                     jax.tree.leaves(state.optimizer_state) if leaf.ndim > 1}}
            losses = []
            for _ in range(2):
                state, metrics = trainer(state, placed)
                losses.append(float(metrics["loss"]))
            return np.asarray(logits) * packed.weights[..., None], losses, jax.tree.map(np.asarray, state.params), split

        one = run(make_mesh(jax.devices()[:1]))
        for sizes in {MESHES!r}:
            many = run(make_mesh(**sizes))
            worst = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one[2]), jax.tree.leaves(many[2])))
            # optimiser state is split wherever parameters are
            print(np.abs(one[0] - many[0]).max() < 1e-5, np.allclose(one[1], many[1], atol=1e-5, rtol=0), worst < 1e-5,
                  many[3] == {{True}} if "data" in sizes else False in many[3])
        trainer = Trainer(config, ("thinker",), text_loss(config), make_optimizer(OptimizerConfig()), make_mesh(data=8))
        try:
            trainer.put(jax.tree.map(lambda x: x[:, :3] if x.ndim == 3 else x[:3], packed))
        except ShardingError as error:
            print(error)
    """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *results, refused = done.stdout.strip().splitlines()
    assert results == ["True True True True"] * len(MESHES)
    assert refused.startswith("batch.token_ids: axis batch of size 3 does not divide over 8.")
