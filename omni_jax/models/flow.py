"""Solving a flow from noise (t = 0) to data (t = 1): time points, Runge-Kutta solvers, classifier-free guidance.

Knows no network. What a network can prepare for a time alone is prepared for all evaluations of the solver at once:

    options = FlowOptions()
    times = evaluation_times(options)                  # [intervals, stages]
    prepared = ...                                     # a pytree, every leaf [intervals, stages, ...]
    x1 = integrate(lambda x, prepared: ..., x0, options, prepared)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omni_jax.errors import ConfigError


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: where each stage looks, how it gets there from earlier slopes, and weights."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


SOLVERS = {
    # Kutta's 3/8 rule, fourth order: the published solver.
    "rk4": Tableau(
        nodes=(0.0, 1 / 3, 2 / 3, 1.0),
        stages=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        weights=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
    "euler": Tableau(nodes=(0.0,), stages=((),), weights=(1.0,)),
}


@dataclass(frozen=True)
class FlowOptions:
    """How to solve the flow. Hashable: all of it is static under jit.

    Args:
        solver: "rk4" (four evaluations per interval) or "euler" (one).
        num_steps: number of time points, both ends counted, as in the published model: 10 points are 9 intervals.
        guidance_scale: v = v_conditional + guidance_scale * (v_conditional - v_null); below 1e-5 the null branch
            is not computed.
        sway_coefficient: warp of the time points; -1 is densest near the noise. None leaves them evenly spaced.
    """

    solver: str = "rk4"
    num_steps: int = 10
    guidance_scale: float = 0.5
    sway_coefficient: float | None = -1.0

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ConfigError(f"Unknown flow solver {self.solver!r}. Use one of: {', '.join(SOLVERS)}.")
        if self.num_steps < 2:
            raise ConfigError(f"num_steps counts time points and must be at least 2, not {self.num_steps}.")

    @property
    def tableau(self) -> Tableau:
        return SOLVERS[self.solver]

    @property
    def guided(self) -> bool:
        return self.guidance_scale >= 1e-5

    @property
    def evaluations(self) -> int:
        """Evaluations of the velocity that one solution costs."""
        return (self.num_steps - 1) * len(self.tableau.nodes)


def time_points(num_steps: int, sway_coefficient: float | None = -1.0) -> Float[np.ndarray, " num_steps"]:
    """Float64 times from 0 to 1, both included.

    4 points, no sway -> [0, 0.333, 0.667, 1];  sway -1 -> [0, 0.134, 0.5, 1]
    """
    times = np.linspace(0.0, 1.0, num_steps)
    if sway_coefficient is not None:
        times = times + sway_coefficient * (np.cos(np.pi / 2 * times) - 1 + times)
    return times


def evaluation_times(options: FlowOptions) -> Float[np.ndarray, "intervals stages"]:
    """Float32 time of every evaluation of the velocity, in the order in which the solver makes them."""
    points = time_points(options.num_steps, options.sway_coefficient)
    nodes = np.asarray(options.tableau.nodes)
    return (points[:-1, None] + np.diff(points)[:, None] * nodes).astype(np.float32)


def block_noise(seed: Int[Array, ""], index: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Normal noise of one block of an utterance. It depends on the seed and the block's index alone, so that whoever
    computes the block, in whichever window or batch, starts from the same state."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape)


def integrate(
    velocity: Callable[[jax.Array, Any], Any],
    initial: Float[Array, "..."],
    options: FlowOptions,
    prepared: Any,
    *,
    recording: bool = False,
) -> Any:
    """State at t = 1.

    Args:
        velocity: (state, prepared at one evaluation) -> d state / dt.
        initial: state at t = 0.
        prepared: pytree whose leaves begin with [intervals, stages]; `evaluation_times(options)` itself will do.
        recording: `velocity` returns (d state / dt, record), and the result is (state, records), whose leaves begin
            with [intervals, stages].
    """
    dtype = initial.dtype
    sizes = jnp.asarray(np.diff(time_points(options.num_steps, options.sway_coefficient)), dtype)
    tableau = options.tableau
    count = len(tableau.nodes)
    rows = jnp.asarray([(*row, *(count - len(row)) * (0.0,)) for row in tableau.stages], dtype)
    weights = jnp.asarray(tableau.weights, dtype)

    def blend(factors, slopes):
        # Element-wise rather than a dot product, which a TPU would round to bfloat16.
        return jnp.sum(jnp.expand_dims(factors, range(1, slopes.ndim)) * slopes, axis=0)

    def interval(state, inputs):
        size, prepared = inputs

        def stage(slopes, inputs):
            number, row, prepared = inputs
            slope = velocity(state + size * blend(row, slopes), prepared)
            slope, record = slope if recording else (slope, None)
            return slopes.at[number].set(slope), record

        slopes = jnp.zeros((count, *state.shape), dtype)
        slopes, records = jax.lax.scan(stage, slopes, (jnp.arange(count), rows, prepared))
        return state + size * blend(weights, slopes), records

    # Scanned twice, so that the network is compiled once.
    state, records = jax.lax.scan(interval, initial, (sizes, jax.tree.map(jnp.asarray, prepared)))
    return (state, records) if recording else state


def guide(conditional: jax.Array, null: jax.Array, scale: float | jax.Array) -> jax.Array:
    """Classifier-free guidance: push the conditional velocity away from the null one."""
    return conditional + scale * (conditional - null)
