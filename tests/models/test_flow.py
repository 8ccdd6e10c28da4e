"""Time points, solvers and guidance, without any network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import RungeKutta4ODESolver

from omni_jax.errors import ConfigError
from omni_jax.models.flow import FlowOptions, evaluation_times, guide, integrate, time_points


def test_the_published_time_points():
    want = [0, 0.01519, 0.06031, 0.13397, 0.23396, 0.35721, 0.5, 0.65798, 0.82635, 1]
    np.testing.assert_allclose(time_points(10, -1.0), want, atol=5e-6)
    np.testing.assert_allclose(time_points(5, None), [0, 0.25, 0.5, 0.75, 1])


def test_ten_points_are_nine_intervals_and_thirty_six_evaluations():
    options = FlowOptions()
    assert evaluation_times(options).shape == (9, 4)
    assert options.evaluations == 36
    assert evaluation_times(options)[-1, -1] == 1.0
    assert FlowOptions(solver="euler", num_steps=11).evaluations == 10


def solve(options, initial):
    """dx/dt = cos(3t) - x², whose solution no low-order method hits by luck."""
    return integrate(lambda x, t: jnp.cos(3 * t) - x * x, jnp.asarray(initial), options, evaluation_times(options))


def test_equals_the_published_solver():
    options, initial = FlowOptions(num_steps=6), np.array([0.3, -0.2, 1.5], np.float32)
    times = torch.tensor(time_points(6, -1.0), dtype=torch.float32)
    solver = RungeKutta4ODESolver(lambda t, x: torch.cos(3 * t) - x * x, torch.tensor(initial))
    np.testing.assert_allclose(solve(options, initial), solver.integrate(times)[-1].numpy(), rtol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("rk4", 4)])
def test_the_error_falls_with_the_order_of_the_method(solver, order):
    def error(intervals):
        options = FlowOptions(solver=solver, num_steps=intervals + 1, sway_coefficient=None)
        with jax.enable_x64(True):
            end = integrate(lambda x, _: x, jnp.ones((), jnp.float64), options, evaluation_times(options))
        return abs(float(end) - np.e)

    assert np.log2(error(4) / error(8)) == pytest.approx(order, abs=0.25)


def test_prepared_values_arrive_with_their_evaluation():
    options = FlowOptions(solver="euler", num_steps=4, sway_coefficient=None)
    prepared = {"slope": jnp.array([[3.0], [30.0], [300.0]])}
    end = integrate(lambda x, prepared: prepared["slope"] + 0 * x, jnp.zeros(2), options, prepared)
    np.testing.assert_allclose(end, 111.0, rtol=1e-6)


def test_guidance_extrapolates_away_from_the_null_branch():
    np.testing.assert_allclose(guide(jnp.array([2.0]), jnp.array([1.0]), 0.5), [2.5])
    assert FlowOptions(guidance_scale=0.5).guided
    assert not FlowOptions(guidance_scale=0.0).guided


@pytest.mark.parametrize("bad", [{"solver": "heun"}, {"num_steps": 1}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ConfigError, match=r"rk4, euler|at least 2"):
        FlowOptions(**bad)
