"""The chip that a program is for: named by its device, or assumed."""

import types

import jax
import pytest

from omni_jax.errors import ConfigError
from omni_jax.kernels.target import Target, assume_target, current_target


@pytest.mark.parametrize(
    ("platform", "kind", "expected"),
    [
        ("tpu", "TPU v4", Target("tpu", "v4")),
        ("tpu", "TPU v5 lite", Target("tpu", "v5e")),
        ("tpu", "TPU v5", Target("tpu", "v5p")),
        ("tpu", "TPU v5p", Target("tpu", "v5p")),
        ("tpu", "TPU v6 lite", Target("tpu", "v6e")),
        ("tpu", "TPU7x", Target("tpu", "tpu7x")),
        ("tpu", "TPU v99", Target("tpu", "tpu v99")),
        ("gpu", "NVIDIA H100 80GB HBM3", Target("gpu", "h100")),
        ("cpu", "cpu", Target("cpu")),
    ],
)
def test_a_device_tells_its_generation(platform, kind, expected):
    assert Target.of(types.SimpleNamespace(platform=platform, device_kind=kind)) == expected


def test_the_target_is_the_device_that_is_here_unless_another_is_assumed():
    here = Target.of(jax.devices()[0])
    assert current_target() == here
    with assume_target(Target("tpu", "v6e")):
        assert current_target() == Target("tpu", "v6e")
        with assume_target(Target("gpu", "h100")):
            assert current_target() == Target("gpu", "h100")
        assert current_target() == Target("tpu", "v6e")
    assert current_target() == here


def test_an_assumed_target_does_not_outlive_an_error():
    with pytest.raises(RuntimeError), assume_target(Target("tpu", "v4")):
        raise RuntimeError
    assert current_target() == Target.of(jax.devices()[0])


def test_an_unknown_platform_is_refused():
    with pytest.raises(ConfigError, match="'cpu', 'tpu' or 'gpu'"):
        Target("rocm")
