"""Names of targets, and the chips behind them."""

import pytest

from omni_jax.compilation.roofline import roofline
from omni_jax.compilation.targets import CHIPS, next_larger, parse_target
from omni_jax.compilation.workloads import check_workload
from omni_jax.errors import ConfigError
from omni_jax.sharding.axes import parse_mesh


@pytest.mark.parametrize(
    ("name", "devices", "topology"),
    [
        ("v4-8", 4, "2x2x1"),
        ("v5e-1", 1, "1x1"),
        ("v5e-4", 4, "2x2"),
        ("v5e-16", 16, "4x4"),
        ("v5e-32", 32, "4x8"),
        ("v5p-8", 4, "2x2x1"),
        ("v5p-16", 8, "2x2x2"),
        ("v6e-1", 1, "1x1"),
        ("v6e-16", 16, "4x4"),
        ("v6e-32", 32, "4x8"),
        ("tpu7x-8", 8, "2x2x1"),
        ("h100", 1, "1x1x1"),
        ("h100-8", 8, "1x1x8"),
        ("V5E-4", 4, "2x2"),
    ],
)
def test_a_cloud_name_says_how_many_devices_there_are_and_how_they_lie(name, devices, topology):
    target = parse_target(name)
    assert (target.devices, target.topology) == (devices, topology)
    assert parse_target(target.name) == target


def test_an_unknown_chip_is_refused_with_a_list_of_targets():
    with pytest.raises(ConfigError, match="no target 'v9-8'.*v5e-4.*tpu7x-8.*h100-8"):
        parse_target("v9-8")


@pytest.mark.parametrize("name", ["v5e", "v5e-3", "v5e-512", "v4-4", "h100-3", "", "v5e-4-4"])
def test_a_slice_that_does_not_exist_is_refused(name):
    with pytest.raises(ConfigError):
        parse_target(name)


def test_the_refusal_names_the_slices_that_there_are():
    with pytest.raises(ConfigError, match="counts chips.*v5e-1, v5e-4, v5e-8, v5e-16"):
        parse_target("v5e-3")


def test_larger_groups_come_in_order_of_size():
    assert [one.name for one in next_larger(parse_target("v5e-4"))[:2]] == ["v5e-8", "v5e-16"]
    assert [one.name for one in next_larger(parse_target("v5p-8"))[:2]] == ["v5p-16", "v5p-32"]
    assert [one.name for one in next_larger(parse_target("h100"))] == ["h100-2", "h100-4", "h100-8"]
    assert next_larger(parse_target("h100-8")) == []


def test_the_roofline_is_the_slowest_of_three_limits():
    chip = CHIPS["v5e"]
    one_second = dict(flops=chip.flops, bytes_moved=chip.bandwidth, wire_bytes=chip.interconnect)
    for name, limit in {"flops": "compute", "bytes_moved": "memory", "wire_bytes": "network"}.items():
        found = roofline(chip, **(one_second | {name: 3 * one_second[name]}))
        assert found.seconds == pytest.approx(3)
        assert found.bound_by == limit


def test_mesh_sizes_are_read_from_text():
    assert parse_mesh("fsdp=4, tensor=2") == {"fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("text", ["fsdp", "fsdp=", "fsdp=0", "fsdp=-1", "=4", "fsdp=2,fsdp=2", "fsdp=2;tensor=2", ""])
def test_a_mesh_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="not of the form"):
        parse_mesh(text)


def test_an_unknown_workload_is_refused_with_a_list():
    with pytest.raises(ConfigError, match="'sing'.*prefill, decode, speech"):
        check_workload("sing")
