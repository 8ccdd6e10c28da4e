"""Cache attention compiles for every TPU generation, in loops over layers and tokens, on one chip and over several."""

import pytest
from compilers import compiled
from tpu_cache_programs import CASES

TOPOLOGIES = ("v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_kernel_compiles_and_copies_no_layer_of_the_cache(topology):
    results = compiled("tpu_cache_programs.py", "libtpu", topology)
    assert results.keys() == CASES.keys()
    for name, result in results.items():
        assert result["kernel"], name
        assert result["temporary_bytes"] < result["layer_bytes"], name
