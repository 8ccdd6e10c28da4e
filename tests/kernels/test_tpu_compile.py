"""Interval attention compiles for every TPU generation, forward and backward, at the sizes of the 7B model."""

import pytest
from compilers import compiled
from tpu_interval_programs import CASES

TOPOLOGIES = ("v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_kernels_compile_and_their_memory_is_linear_in_length(topology):
    results = compiled("tpu_interval_programs.py", "libtpu", topology)
    assert results.keys() == CASES.keys()
    for name, (length, heads, _, head_dim, reach, gradients, chips) in CASES.items():
        # the long kernels have a pass for each of queries and keys; row sums are a kernel of their own
        backward = (2 if reach else 3) if gradients else 0
        assert results[name]["kernels"] == 1 + backward, name
        # a few copies of the queries and what is saved of each row; the scores would be length times as much
        assert results[name]["temporary_bytes"] < 4 * length * heads * head_dim * 2 // chips + 2**24, name
