"""The tables name exactly the tensors of the published models, with their shapes and totals.

Ground truth for names and shapes is the model class of transformers on the meta device, built from the published
configurations; ground truth for the totals is the inventory of the real checkpoints.
"""

import math
from collections import defaultdict

import pytest
import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from omni_jax.interop.random_checkpoint import published_dict
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import torch_shapes
from omni_jax.presets import preset

# (tensors, parameters) of each part.
SHARED = {
    "speaker_encoder": (40, 1_729_280),
    "dit": (319, 331_878_480),
    "bigvgan": (449, 115_443_504),
}
PUBLISHED = {
    "qwen2.5-omni-7b": {
        "audio_encoder": (489, 639_647_232),
        "vision_encoder": (518, 676_550_144),
        "thinker/embed": (1, 544_997_376),
        "thinker": (337, 6_525_621_760),
        "thinker/lm_head": (1, 544_997_376),
        "talker": (293, 1_351_360_256),
        **SHARED,
    },
    "qwen2.5-omni-3b": {
        "audio_encoder": (489, 637_676_544),
        "vision_encoder": (518, 668_684_288),
        "thinker/embed": (1, 311_164_928),
        "thinker": (433, 2_774_773_760),
        "thinker/lm_head": (1, 311_164_928),
        "talker": (293, 384_604_928),
        **SHARED,
    },
}
TOTALS = {"qwen2.5-omni-7b": (2447, 10_732_225_408), "qwen2.5-omni-3b": (2543, 5_537_120_640)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_equal_the_pytorch_model(name):
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**published_dict(preset(name))))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert torch_shapes(table(preset(name))) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_totals_equal_the_published_checkpoints(name):
    counts = defaultdict(lambda: (0, 0))
    for entry in table(preset(name)):
        part = "/".join(entry.path.split("/")[:2])
        part = part if part in ("thinker/embed", "thinker/lm_head") else entry.component
        tensors, parameters = counts[part]
        counts[part] = tensors + len(entry.torch_names), parameters + entry.size
        assert entry.size == math.prod(entry.jax_shape)
    assert counts == PUBLISHED[name]
    assert tuple(map(sum, zip(*counts.values(), strict=True))) == TOTALS[name]
