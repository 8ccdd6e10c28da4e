"""The kernels compile for every TPU generation: for one at all sizes of the 7B model, for the others at some."""

import pytest
import tpu_cache_programs
import tpu_interval_programs
from compilers import compiled

TOPOLOGIES = ("v5e:2x4", "v4:2x2x1", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1")


def compiled_for(topology: str, kind: str) -> dict[str, dict]:
    """All generations are compiled for by one process, which begins with the first."""
    return compiled("tpu_kernels.py", "libtpu", *TOPOLOGIES)[topology][kind]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_interval_attention_compiles_and_its_memory_is_linear_in_length(topology):
    results = compiled_for(topology, "interval")
    cases = tpu_interval_programs.CASES
    assert list(results) == list(cases if topology == TOPOLOGIES[0] else tpu_interval_programs.REPRESENTATIVE)
    for name, result in results.items():
        length, heads, _, head_dim, reach, gradients, chips = cases[name]
        # the long kernels have a pass for each of queries and keys; row sums are a kernel of their own
        backward = (2 if reach else 3) if gradients else 0
        assert result["kernels"] == 1 + backward, name
        # a few copies of the queries and what is saved of each row; the scores would be length times as much
        assert result["temporary_bytes"] < 4 * length * heads * head_dim * 2 // chips + 2**24, name


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cache_attention_compiles_in_loops_and_copies_no_layer_of_the_cache(topology):
    results = compiled_for(topology, "cache")
    cases = tpu_cache_programs.CASES
    assert list(results) == list(cases if topology == TOPOLOGIES[0] else tpu_cache_programs.REPRESENTATIVE)
    for name, result in results.items():
        assert result["kernel"], name
        assert result["temporary_bytes"] < result["layer_bytes"], name
