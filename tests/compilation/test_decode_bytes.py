"""The 7B decoding loop on the device: no word to the host, and little more traffic than weights and cache."""

import os

import jax
import pytest

from omni_jax.compilation.targets import parse_target
from omni_jax.compilation.toolchain import CompilerError, check_compiler, run_worker
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset

MODEL, SLOTS = "qwen2.5-omni-7b", 32768


def needed_bytes(devices: int) -> float:
    """What a token has to read of each device: every weight but the embedding's table, and the whole cache."""
    config = preset(MODEL)
    thinker = dict(logical_axes(config, ("thinker",))[1]["thinker"])
    del thinker["embed"]
    text = config.thinker_config.text_config
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * SLOTS * text.head_dim
    return 2 * (sum(leaf.size for leaf in jax.tree.leaves(thinker)) + cache) / devices


@pytest.mark.slow  # a minute of compiling each, most of it the sort of the vocabulary
@pytest.mark.parametrize("target", ["v6e-1", "v5e-4"])
def test_a_token_reads_weights_and_cache_once_and_never_meets_the_host(target):
    found = parse_target(target)
    try:
        check_compiler(found)
    except CompilerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    request = {"preset": MODEL, "workload": "decode", "target": target, "context": SLOTS}
    (decode,) = run_worker(request, found)["programs"]
    step = decode["step"]
    assert step["host_transfers"] == decode["host_transfers"] == 0
    ratio = step["bytes_moved"] / needed_bytes(found.devices)
    assert 1 <= ratio <= 1.15, step["largest_moves"]
