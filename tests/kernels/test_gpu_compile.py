"""The GPU kernels compile for an H100 at the sizes of the 7B model, without an H100."""

import pytest
from compilers import compiled
from gpu_programs import CACHE, INTERVAL, SLOTS


@pytest.mark.parametrize("name", INTERVAL)
def test_interval_attention_compiles_forward_and_backward(name):
    result = compiled("gpu_programs.py", "jax_cuda13_plugin")[name]
    kernels = ["interval_attention_forward", "interval_attention_backward_query"]
    assert set(result["kernels"]) == {*kernels, "interval_attention_backward_key_value"}
    length, heads, *_ = INTERVAL[name]
    assert result["temporary_bytes"] < 16 * heads * length + 1e6  # two float32 a row and head; never scores


@pytest.mark.parametrize("name", CACHE)
def test_cache_attention_compiles_and_copies_no_layer_of_the_cache(name):
    result = compiled("gpu_programs.py", "jax_cuda13_plugin")[name]
    assert result["kernels"] == ["cache_attention"]
    assert result["temporary_bytes"] < CACHE[name][2] * SLOTS * 128 * 2
