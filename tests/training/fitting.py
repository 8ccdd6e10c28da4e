"""A short run of plain Adam on one batch, for tests that a task can be learnt."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from omni_jax.training.task import Losses
from tests.processes import ALL_PASSES


def fit(
    loss: Callable[[Any, Any, jax.Array], Losses],
    params: Any,
    batch: Any,
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 20,
) -> tuple[Any, dict[str, float]]:
    """Parameters after `steps` updates, warmed up and cooled down, gradients clipped as the trainer clips them; and
    the means of the last step, the loss as `total`."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @functools.partial(jax.jit, compiler_options=ALL_PASSES)
    def step(params, state, batch, key):
        def mean(params):
            losses = loss(params, batch, key)
            return losses.total.mean, losses

        gradients, losses = jax.grad(mean, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, losses

    state = optimizer.init(params)
    for number in range(steps):
        params, state, losses = step(params, state, batch, jax.random.key(number))
    means = {name: float(part.mean) for name, part in losses.parts.items()} | {"total": float(losses.total.mean)}
    assert np.isfinite(list(means.values())).all()
    return params, means


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Normal values in the form of `shapes`, each kernel scaled by its width; vectors of zeros, scales of ones."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        if path[-1].key == "scale":
            return jnp.ones(shape.shape)
        if len(shape.shape) < 2:
            return jnp.zeros(shape.shape)
        fan_in = max(1, int(np.prod(shape.shape[-3:-1])))
        return jnp.asarray(rng.normal(0, fan_in**-0.5, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
