"""Weight tables of Token2Wav: speaker encoder, DiT and BigVGAN.

Anti-aliasing filters, rotary frequencies and time features are computed, not read.
"""

from omni_jax.config import BigVGANConfig, DiTConfig, Token2WavConfig
from omni_jax.interop.weight_table import (
    Table,
    conv1d,
    conv_transpose1d,
    entries,
    heads_bias,
    heads_in,
    heads_out,
    identity,
    linear,
)
from omni_jax.models.bigvgan import EDGE_TAPS
from omni_jax.models.dit import TIME_FREQUENCIES

DIT = "token2wav.code2wav_dit_model."
BIGVGAN = "token2wav.code2wav_bigvgan_model."


def table(config: Token2WavConfig) -> Table:
    """The three components that make up a checkpoint's `token2wav.`"""
    return [
        *speaker_encoder(config.dit_config),
        *dit(config.dit_config),
        *bigvgan(config.bigvgan_config),
    ]


def _conv(torch: str, path: str, out: int, into: int, taps: int = 1) -> list[tuple]:
    return [
        (f"{torch}.weight", f"{path}/kernel", conv1d, (out, into, taps)),
        (f"{torch}.bias", f"{path}/bias", identity, (out,)),
    ]


def speaker_encoder(config: DiTConfig) -> Table:
    c = config
    channels, taps, scale = c.enc_channels, c.enc_kernel_sizes, c.enc_res2net_scale
    rows = _conv("blocks.0.conv", "conv_in", channels[0], c.mel_dim, taps[0])
    for i in range(1, len(channels) - 1):
        torch, path, width = f"blocks.{i}", f"block_{i}", channels[i]
        rows += _conv(f"{torch}.tdnn1.conv", f"{path}/conv_in", width, channels[i - 1])
        for j in range(scale - 1):
            group = width // scale
            rows += _conv(f"{torch}.res2net_block.blocks.{j}.conv", f"{path}/res2net/conv_{j}", group, group, taps[i])
        rows += _conv(f"{torch}.tdnn2.conv", f"{path}/conv_out", width, width)
        rows += _conv(f"{torch}.se_block.conv1", f"{path}/squeeze", c.enc_se_channels, width)
        rows += _conv(f"{torch}.se_block.conv2", f"{path}/excite", width, c.enc_se_channels)
    last = channels[-1]
    rows += _conv("mfa.conv", "aggregate", last, last, taps[-1])
    rows += _conv("asp.tdnn.conv", "pooling/hidden", c.enc_attention_channels, 3 * last)
    rows += _conv("asp.conv", "pooling/scores", last, c.enc_attention_channels)
    rows += _conv("fc", "project", c.enc_dim, 2 * last)
    return entries(f"{DIT}input_embed.spk_encoder.", "speaker_encoder/", rows)


def _linear(torch: str, path: str, out: int, into: int) -> list[tuple]:
    return [
        (f"{torch}.weight", f"{path}/kernel", linear, (out, into)),
        (f"{torch}.bias", f"{path}/bias", identity, (out,)),
    ]


def dit(config: DiTConfig) -> Table:
    c, d = config, config.hidden_size
    n, inner, hidden = c.num_attention_heads, c.num_attention_heads * c.head_dim, c.ff_mult * config.hidden_size
    single = [
        *_linear("time_embed.time_mlp.0", "time_in", d, 2 * TIME_FREQUENCIES),
        *_linear("time_embed.time_mlp.2", "time_out", d, d),
        ("text_embed.codec_embed.weight", "codes/embedding", identity, (c.num_embeds + 1, c.emb_dim)),
        *_linear("input_embed.proj", "input", d, c.mel_dim + c.enc_dim + c.emb_dim + c.enc_emb_dim),
        *_linear("norm_out.linear", "final_modulation", 2 * d, d),
        *_linear("proj_out", "output", c.mel_dim, d),
    ]
    stacked = [
        *_linear("attn_norm.linear", "modulation", 6 * d, d),
        ("attn.to_q.weight", "layers/attention/query/kernel", heads_out(n), (inner, d)),
        ("attn.to_q.bias", "layers/attention/query/bias", heads_bias(n), (inner,)),
        ("attn.to_k.weight", "layers/attention/key/kernel", heads_out(n), (inner, d)),
        ("attn.to_k.bias", "layers/attention/key/bias", heads_bias(n), (inner,)),
        ("attn.to_v.weight", "layers/attention/value/kernel", heads_out(n), (inner, d)),
        ("attn.to_v.bias", "layers/attention/value/bias", heads_bias(n), (inner,)),
        ("attn.to_out.0.weight", "layers/attention/out/kernel", heads_in(n), (d, inner)),
        ("attn.to_out.0.bias", "layers/attention/out/bias", identity, (d,)),
        *_linear("ff.ff.0", "layers/mlp/up", hidden, d),
        *_linear("ff.ff.3", "layers/mlp/down", d, hidden),
    ]
    layers = entries(f"{DIT}transformer_blocks.{{i}}.", "dit/", stacked, layers=c.num_hidden_layers)
    return entries(DIT, "dit/", single) + layers


def _snake(torch: str, path: str, channels: int) -> list[tuple]:
    return [(f"{torch}.act.{name}", f"{path}/{name}", identity, (channels,)) for name in ("alpha", "beta")]


def bigvgan(config: BigVGANConfig) -> Table:
    c, width = config, config.upsample_initial_channel
    rows = _conv("conv_pre", "conv_in", width, c.mel_dim, EDGE_TAPS)
    for s, kernel_size in enumerate(c.upsample_kernel_sizes):
        rows += [
            (f"ups.{s}.0.weight", f"upsample_{s}/kernel", conv_transpose1d, (width, width // 2, kernel_size)),
            (f"ups.{s}.0.bias", f"upsample_{s}/bias", identity, (width // 2,)),
        ]
        width //= 2
        for j, (size, dilations) in enumerate(zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes)):
            torch, path = f"resblocks.{s * len(c.resblock_kernel_sizes) + j}", f"block_{s}_{j}"
            for i in range(len(dilations)):
                rows += _snake(f"{torch}.activations.{2 * i}", f"{path}/snake_in_{i}", width)
                rows += _conv(f"{torch}.convs1.{i}", f"{path}/dilated_{i}", width, width, size)
                rows += _snake(f"{torch}.activations.{2 * i + 1}", f"{path}/snake_mid_{i}", width)
                rows += _conv(f"{torch}.convs2.{i}", f"{path}/conv_{i}", width, width, size)
    rows += _snake("activation_post", "snake_out", width)
    rows.append(("conv_post.weight", "conv_out/kernel", conv1d, (1, width, EDGE_TAPS)))
    return entries(BIGVGAN, "bigvgan/", rows)
