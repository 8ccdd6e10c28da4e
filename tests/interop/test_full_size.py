"""The published sizes of DiT and BigVGAN, with random weights, equal PyTorch's. Minutes: `pytest -m slow` runs them."""

import resource

import numpy as np
import pytest
import torch

from omni_jax.config import BigVGANConfig, DiTConfig
from omni_jax.interop.parity_token2wav import Utterance, bigvgan_rows, dit_rows
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling.voices import Speaker
from tests.models.token2wav_reference import our_params, published_model

pytestmark = pytest.mark.slow
_SECONDS = 1.5


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def test_the_dit_of_published_size_equals_pytorch():
    """Each layer and the velocity at two times, and a flow of fewer steps."""
    config, rng = DiTConfig(), np.random.default_rng(0)
    vector = rng.standard_normal(config.enc_emb_dim, np.float32)
    mel = 2 * rng.standard_normal((400, config.mel_dim), np.float32) - 4
    voice = Speaker("drawn", 0, vector, mel)
    module = published_model(config)
    params = our_params(module, config)
    utterance = Utterance.drawn(voice, config, codes=round(50 * _SECONDS))
    options = FlowOptions(num_steps=3)
    rows = list(dit_rows(params, config, module, [voice], utterance, options=options, times=(0.0, 0.65798)))
    assert [row.name for row in rows] == ["speaker encoder", "dit, one evaluation", "dit, flow of 8 evaluations"]
    assert len(rows[1].steps) == 2 * (config.num_hidden_layers + 3)
    for row in rows:
        print(f"{row.name}: max_abs {row.max_abs:.2e}, max_rel {row.max_rel:.2e}, peak {peak_gib():.1f} GiB")
        assert row.passed, row.diverges_at
    assert peak_gib() < 24


def test_the_vocoder_of_published_size_equals_pytorch():
    config = BigVGANConfig()
    module = published_model(config)
    with torch.no_grad():
        module.conv_post.weight.mul_(0.1)  # so that the clamp at +-1 hides nothing
    params = our_params(module, config)["bigvgan"]
    mel = 3 * np.random.default_rng(0).standard_normal((round(100 * _SECONDS), config.mel_dim), np.float32) - 5
    (row,) = bigvgan_rows(params, config, module, mel)
    print(f"{row.name}: max_abs {row.max_abs:.2e}, max_rel {row.max_rel:.2e}, peak {peak_gib():.1f} GiB")
    assert row.passed, row.diverges_at
    assert 0.01 < row.steps[-1].max_abs / row.steps[-1].max_rel < 0.999  # the peak of PyTorch's waveform
    assert peak_gib() < 24
