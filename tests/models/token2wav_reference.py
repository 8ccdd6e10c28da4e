"""Small Token2Wav models of transformers, with interesting random weights, and the same weights as our parameters."""

import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as hf_config
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as hf

from omni_jax.config import BigVGANConfig, DiTConfig
from omni_jax.interop import table_token2wav
from omni_jax.interop.weight_table import nest

DIT = DiTConfig(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    head_dim=16,
    emb_dim=12,
    look_ahead_layers=(1,),
    look_backward_layers=(0, 3),
    num_embeds=40,
    mel_dim=8,
    enc_emb_dim=6,
    enc_dim=10,
    enc_channels=(16, 16, 16, 16, 48),
    enc_attention_channels=8,
    enc_res2net_scale=4,
    enc_se_channels=8,
)
BIGVGAN = BigVGANConfig(mel_dim=8, upsample_initial_channel=128)


def published_config(config):
    """Our DiTConfig or BigVGANConfig as the one of transformers."""
    kind = hf_config.Qwen2_5OmniDiTConfig if isinstance(config, DiTConfig) else hf_config.Qwen2_5OmniBigVGANConfig
    values = {name: value for name, value in vars(config).items() if name not in ("source", "rope_theta")}
    return kind(**{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})


def _published_class(config):
    is_dit = isinstance(config, DiTConfig)
    return hf.Qwen2_5OmniToken2WavDiTModel if is_dit else hf.Qwen2_5OmniToken2WavBigVGANModel


def meta_state(config) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape, without allocating anything."""
    prefix = table_token2wav.DIT if isinstance(config, DiTConfig) else table_token2wav.BIGVGAN
    with torch.device("meta"):
        model = _published_class(config)(published_config(config))
    return {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def published_model(config, seed: int = 0):
    """A float32 model whose every parameter, biases and log-scales too, is away from its neutral value.

    The vocoder's gain is lower, so that its waveform neither dies out nor saturates.
    """
    gain = 1.2 if isinstance(config, DiTConfig) else 0.7
    model = _published_class(config)(published_config(config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.normal_(0, gain / fan_in**0.5, generator=generator)
    return model


def our_params(model, config) -> dict:
    """The model's weights as our tree, through the weight table."""
    prefix = table_token2wav.DIT if isinstance(config, DiTConfig) else table_token2wav.BIGVGAN
    state = {prefix + name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if isinstance(config, DiTConfig):
        entries = table_token2wav.speaker_encoder(config) + table_token2wav.dit(config)
    else:
        entries = table_token2wav.bigvgan(config)

    def leaf(entry):
        tensors = [entry.transform.to_jax(state[name]) for name in entry.torch_names]
        return jnp.asarray(tensors[0] if entry.layers is None else np.stack(tensors))

    return nest((entry.path, leaf(entry)) for entry in entries)
