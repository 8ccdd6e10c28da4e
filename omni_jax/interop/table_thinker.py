"""Weight tables of the Thinker: audio encoder, vision encoder and text decoder."""

from omni_jax.config import AudioEncoderConfig, TalkerConfig, TextConfig, ThinkerConfig, VisionEncoderConfig
from omni_jax.interop.weight_table import (
    Table,
    conv1d,
    entries,
    heads_bias,
    heads_in,
    heads_out,
    identity,
    linear,
    patch_conv,
)


def table(config: ThinkerConfig) -> Table:
    """The three components that make up a checkpoint's `thinker.`"""
    return [
        *audio_encoder(config.audio_config),
        *vision_encoder(config.vision_config),
        *text_decoder(config.text_config),
    ]


def audio_encoder(config: AudioEncoderConfig) -> Table:
    c, d = config, config.d_model
    n, f, h = c.encoder_attention_heads, c.encoder_ffn_dim, c.output_dim
    prefix, path = "thinker.audio_tower.", "audio_encoder/"
    single = [
        ("conv1.weight", "conv1/kernel", conv1d, (d, c.num_mel_bins, 3)),
        ("conv1.bias", "conv1/bias", identity, (d,)),
        ("conv2.weight", "conv2/kernel", conv1d, (d, d, 3)),
        ("conv2.bias", "conv2/bias", identity, (d,)),
        ("audio_bos_eos_token.weight", "bos_eos_embedding", identity, (2, h)),
        ("ln_post.weight", "final_norm/scale", identity, (d,)),
        ("ln_post.bias", "final_norm/bias", identity, (d,)),
        ("proj.weight", "projection/kernel", linear, (h, d)),
        ("proj.bias", "projection/bias", identity, (h,)),
    ]
    stacked = [
        ("self_attn_layer_norm.weight", "attention_norm/scale", identity, (d,)),
        ("self_attn_layer_norm.bias", "attention_norm/bias", identity, (d,)),
        ("self_attn.q_proj.weight", "attention/query/kernel", heads_out(n), (d, d)),
        ("self_attn.q_proj.bias", "attention/query/bias", heads_bias(n), (d,)),
        ("self_attn.k_proj.weight", "attention/key/kernel", heads_out(n), (d, d)),  # no bias, as in Whisper
        ("self_attn.v_proj.weight", "attention/value/kernel", heads_out(n), (d, d)),
        ("self_attn.v_proj.bias", "attention/value/bias", heads_bias(n), (d,)),
        ("self_attn.out_proj.weight", "attention/out/kernel", heads_in(n), (d, d)),
        ("self_attn.out_proj.bias", "attention/out/bias", identity, (d,)),
        ("final_layer_norm.weight", "mlp_norm/scale", identity, (d,)),
        ("final_layer_norm.bias", "mlp_norm/bias", identity, (d,)),
        ("fc1.weight", "mlp/up/kernel", linear, (f, d)),
        ("fc1.bias", "mlp/up/bias", identity, (f,)),
        ("fc2.weight", "mlp/down/kernel", linear, (d, f)),
        ("fc2.bias", "mlp/down/bias", identity, (d,)),
    ]
    layers = entries(f"{prefix}layers.{{i}}.", f"{path}layers/", stacked, layers=c.encoder_layers)
    return entries(prefix, path, single) + layers


def vision_encoder(config: VisionEncoderConfig) -> Table:
    c, d, n, f = config, config.hidden_size, config.num_heads, config.intermediate_size
    merged = d * c.spatial_merge_size**2
    patch = patch_conv(c.in_channels, c.temporal_patch_size, c.patch_size)
    patch_shape = (d, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    prefix, path = "thinker.visual.", "vision_encoder/"
    single = [
        ("patch_embed.proj.weight", "patch_embed/kernel", patch, patch_shape),
        ("merger.ln_q.weight", "merger/norm/scale", identity, (d,)),
        ("merger.mlp.0.weight", "merger/up/kernel", linear, (merged, merged)),
        ("merger.mlp.0.bias", "merger/up/bias", identity, (merged,)),
        ("merger.mlp.2.weight", "merger/down/kernel", linear, (c.out_hidden_size, merged)),
        ("merger.mlp.2.bias", "merger/down/bias", identity, (c.out_hidden_size,)),
    ]
    stacked = [
        ("norm1.weight", "attention_norm/scale", identity, (d,)),
        ("attn.q.weight", "attention/query/kernel", heads_out(n), (d, d)),
        ("attn.q.bias", "attention/query/bias", heads_bias(n), (d,)),
        ("attn.k.weight", "attention/key/kernel", heads_out(n), (d, d)),
        ("attn.k.bias", "attention/key/bias", heads_bias(n), (d,)),
        ("attn.v.weight", "attention/value/kernel", heads_out(n), (d, d)),
        ("attn.v.bias", "attention/value/bias", heads_bias(n), (d,)),
        ("attn.proj.weight", "attention/out/kernel", heads_in(n), (d, d)),
        ("attn.proj.bias", "attention/out/bias", identity, (d,)),
        ("norm2.weight", "mlp_norm/scale", identity, (d,)),
        ("mlp.gate_proj.weight", "mlp/gate/kernel", linear, (f, d)),
        ("mlp.gate_proj.bias", "mlp/gate/bias", identity, (f,)),
        ("mlp.up_proj.weight", "mlp/up/kernel", linear, (f, d)),
        ("mlp.up_proj.bias", "mlp/up/bias", identity, (f,)),
        ("mlp.down_proj.weight", "mlp/down/kernel", linear, (d, f)),
        ("mlp.down_proj.bias", "mlp/down/bias", identity, (d,)),
    ]
    return entries(prefix, path, single) + entries(f"{prefix}blocks.{{i}}.", f"{path}layers/", stacked, layers=c.depth)


def text_decoder(config: TextConfig) -> Table:
    c, d = config, config.hidden_size
    single = [
        ("model.embed_tokens.weight", "embed/embedding", identity, (c.vocab_size, d)),
        ("model.norm.weight", "final_norm/scale", identity, (d,)),
        ("lm_head.weight", "lm_head/kernel", linear, (c.vocab_size, d)),
    ]
    return entries("thinker.", "thinker/", single) + decoder_layers("thinker.model.layers.{i}.", "thinker/layers/", c)


def decoder_layers(prefix: str, path: str, config: TextConfig | TalkerConfig) -> Table:
    """Layers of a Qwen2.5 decoder; the Thinker's and the Talker's differ only in their sizes."""
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    n, k = config.num_attention_heads, config.num_key_value_heads
    query, key = n * config.head_dim, k * config.head_dim
    stacked = [
        ("input_layernorm.weight", "attention_norm/scale", identity, (d,)),
        ("self_attn.q_proj.weight", "attention/query/kernel", heads_out(n), (query, d)),
        ("self_attn.q_proj.bias", "attention/query/bias", heads_bias(n), (query,)),
        ("self_attn.k_proj.weight", "attention/key/kernel", heads_out(k), (key, d)),
        ("self_attn.k_proj.bias", "attention/key/bias", heads_bias(k), (key,)),
        ("self_attn.v_proj.weight", "attention/value/kernel", heads_out(k), (key, d)),
        ("self_attn.v_proj.bias", "attention/value/bias", heads_bias(k), (key,)),
        ("self_attn.o_proj.weight", "attention/out/kernel", heads_in(n), (d, query)),
        ("post_attention_layernorm.weight", "mlp_norm/scale", identity, (d,)),
        ("mlp.gate_proj.weight", "mlp/gate/kernel", linear, (f, d)),
        ("mlp.up_proj.weight", "mlp/up/kernel", linear, (f, d)),
        ("mlp.down_proj.weight", "mlp/down/kernel", linear, (d, f)),
    ]
    return entries(prefix, path, stacked, layers=layers)
