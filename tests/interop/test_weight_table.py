"""Transforms are exact inverses with the documented layout; tables are well formed."""

import jax
import numpy as np
import pytest
import torch

from omni_jax.interop import tables
from omni_jax.interop import weight_table as W
from omni_jax.interop.weight_table import Entry
from omni_jax.presets import NAMES, preset

CASES = [
    (W.identity, (7,), (7,)),
    (W.linear, (6, 4), (4, 6)),
    (W.conv1d, (6, 4, 3), (3, 4, 6)),
    (W.conv_transpose1d, (4, 6, 3), (3, 4, 6)),
    (W.heads_out(3), (12, 5), (5, 3, 4)),
    (W.heads_in(3), (5, 12), (3, 4, 5)),
    (W.heads_bias(3), (12,), (3, 4)),
    (W.patch_conv(3, 2, 4), (5, 3, 2, 4, 4), (96, 5)),
]


@pytest.mark.parametrize("transform, torch_shape, jax_shape", CASES, ids=lambda x: getattr(x, "name", None))
def test_a_transform_is_undone_by_its_inverse(transform, torch_shape, jax_shape):
    values = np.arange(np.prod(torch_shape)).reshape(torch_shape)
    ours = transform.to_jax(values)
    assert ours.shape == jax_shape == transform.jax_shape(torch_shape)
    back = transform.to_torch(ours)
    assert back.shape == torch_shape
    np.testing.assert_array_equal(back, values)


def test_shapes_of_large_tensors_cost_nothing():
    assert W.heads_out(1 << 10).jax_shape((1 << 20, 1 << 20)) == (1 << 20, 1 << 10, 1 << 10)
    assert W.patch_conv(3, 2, 1 << 8).jax_shape((1 << 20, 3, 2, 1 << 8, 1 << 8)) == (6 << 16, 1 << 20)


def test_head_transforms_compute_what_the_linear_layers_compute():
    rng = np.random.default_rng(0)
    query, out = rng.normal(size=(12, 5)), rng.normal(size=(5, 12))
    x = rng.normal(size=(2, 5))
    heads = np.einsum("td,dnh->tnh", x, W.heads_out(3).to_jax(query))
    np.testing.assert_allclose(heads.reshape(2, 12), x @ query.T)
    np.testing.assert_allclose(np.einsum("tnh,nhd->td", heads, W.heads_in(3).to_jax(out)), x @ query.T @ out.T)


def test_convolution_transforms_compute_what_pytorch_computes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 9)).astype(np.float32)
    ours = lambda kernel, **options: jax.lax.conv_general_dilated(  # noqa: E731
        x.transpose(0, 2, 1), kernel, dimension_numbers=("NWC", "WIO", "NWC"), precision="highest", **options
    ).transpose(0, 2, 1)

    weight = rng.normal(size=(6, 4, 3)).astype(np.float32)
    expected = torch.nn.functional.conv1d(torch.tensor(x), torch.tensor(weight), padding=1, stride=2)
    result = ours(W.conv1d.to_jax(weight), window_strides=(2,), padding=[(1, 1)])
    np.testing.assert_allclose(result, expected, atol=1e-5)

    weight = rng.normal(size=(4, 6, 7)).astype(np.float32)
    expected = torch.nn.functional.conv_transpose1d(torch.tensor(x), torch.tensor(weight), stride=3, padding=2)
    result = ours(
        W.conv_transpose1d.to_jax(weight.copy()).copy(), window_strides=(1,), padding=[(4, 4)], lhs_dilation=(3,)
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_stacked_layers_are_one_parameter():
    entry = Entry("a.{i}.weight", "c/layers/kernel", W.linear, (6, 4), layers=3)
    assert entry.torch_names == ["a.0.weight", "a.1.weight", "a.2.weight"]
    assert entry.jax_shape == (3, 4, 6) and entry.size == 72 and entry.component == "c"
    assert W.torch_shapes([entry]) == dict.fromkeys(entry.torch_names, (6, 4))


def test_the_layer_number_and_the_layer_count_go_together():
    with pytest.raises(ValueError, match="layers"):
        Entry("a.weight", "c/kernel", W.linear, (6, 4), layers=3)
    with pytest.raises(ValueError, match="layers"):
        Entry("a.{i}.weight", "c/kernel", W.linear, (6, 4))


@pytest.mark.parametrize(
    "torch_name, path, fault",
    [("a", "c/other", "tensor listed twice"), ("b", "c/x", "parameter listed twice"), ("b", "c/x/y", "also holds")],
)
def test_ambiguous_tables_are_refused(torch_name, path, fault):
    table = [Entry("a", "c/x", W.identity, (1,)), Entry(torch_name, path, W.identity, (1,))]
    with pytest.raises(ValueError, match=fault):
        W.check_table(table)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_belongs_to_a_known_component(name):
    table = tables.table(preset(name))
    assert {entry.component for entry in table} == set(tables.COMPONENTS)


def test_nesting_is_undone_by_flattening():
    flat = {"a/b/c": 1, "a/b/d": 2, "e": 3}
    assert dict(W.flatten(W.nest(flat.items()))) == flat
