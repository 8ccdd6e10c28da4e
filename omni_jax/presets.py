"""Named configurations: the two published models, one that two processor cores can train, and a tiny one for tests."""

from dataclasses import replace

from omni_jax import config as C
from omni_jax.errors import ConfigError


def _published(*, vocab, hidden, mlp, layers, heads, kv_heads, talker: C.TalkerConfig) -> C.OmniConfig:
    """The 7B and 3B models share everything but the Thinker's size and the Talker."""
    audio = C.AudioEncoderConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, output_dim=hidden
    )
    vision = C.VisionEncoderConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=hidden,
        fullatt_block_indexes=(7, 15, 23, 31),
    )
    text = C.TextConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    return C.OmniConfig(C.ThinkerConfig(audio, vision, text), talker, C.Token2WavConfig())


def _tiny() -> C.OmniConfig:
    """Every kind of layer, a few wide; token ids of a small vocabulary."""
    audio = C.AudioEncoderConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, output_dim=64
    )
    vision = C.VisionEncoderConfig(
        depth=4,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        out_hidden_size=64,
        fullatt_block_indexes=(1, 3),
    )
    text = C.TextConfig(
        vocab_size=1280,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(2, 3, 3),
    )
    thinker = C.ThinkerConfig(
        audio,
        vision,
        text,
        audio_token_id=1003,
        image_token_id=1012,
        video_token_id=1013,
        audio_start_token_id=1004,
        audio_end_token_id=1005,
        vision_start_token_id=1009,
        vision_end_token_id=1010,
    )
    talker = C.TalkerConfig(
        vocab_size=160,
        embedding_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        mrope_section=(2, 3, 3),
        tts_text_start_token_id=1101,
        tts_text_end_token_id=1102,
        tts_text_pad_token_id=1100,
        tts_codec_start_token_id=141,
        tts_codec_end_token_id=142,
        tts_codec_pad_token_id=140,
        tts_codec_mask_token_id=144,
    )
    dit = C.DiTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=16,
        emb_dim=32,
        look_ahead_layers=(1,),
        look_backward_layers=(0, 2),
        num_embeds=128,
        enc_channels=(32, 32, 32, 32, 96),
        enc_attention_channels=16,
        enc_se_channels=16,
        enc_dim=16,
    )
    # three stages in place of six, for 240 samples a frame: compiling a vocoder takes longest of all
    vocoder = C.BigVGANConfig(
        upsample_initial_channel=64,
        upsample_rates=(5, 6, 8),
        upsample_kernel_sizes=(11, 12, 16),
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3, 5), (1, 3, 5)),
    )
    return C.OmniConfig(thinker, talker, C.Token2WavConfig(dit, vocoder))


def _omni_tiny() -> C.OmniConfig:
    """Small enough to be trained on two processor cores: examples/omni_tiny. A few million parameters a part."""
    ids = _tiny()
    audio = C.AudioEncoderConfig(
        d_model=192, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=768, output_dim=256
    )
    vision = C.VisionEncoderConfig(
        depth=4,
        hidden_size=128,
        intermediate_size=352,
        num_heads=4,
        out_hidden_size=256,
        fullatt_block_indexes=(1, 3),
    )
    decoder = dict(intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4)
    sections = (4, 6, 6)
    text = C.TextConfig(vocab_size=1280, hidden_size=256, mrope_section=sections, **decoder)
    thinker = replace(ids.thinker_config, audio_config=audio, vision_config=vision, text_config=text)
    talker = replace(
        ids.talker_config,
        vocab_size=1024,
        embedding_size=256,
        hidden_size=256,
        head_dim=32,
        mrope_section=sections,
        tts_codec_start_token_id=1005,
        tts_codec_end_token_id=1006,
        tts_codec_pad_token_id=1004,
        tts_codec_mask_token_id=1008,
        **decoder,
    )
    dit = C.DiTConfig(
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        head_dim=64,
        emb_dim=128,
        look_ahead_layers=(4,),
        look_backward_layers=(0, 6),
        num_embeds=1001,
        enc_channels=(64, 64, 64, 64, 192),
        enc_attention_channels=32,
        enc_se_channels=32,
        enc_dim=64,
        dropout=0.0,  # it sees too little to learn it by heart, and drawing what to drop takes a tenth of its time
    )
    vocoder = replace(ids.token2wav_config.bigvgan_config, upsample_initial_channel=128)
    return C.OmniConfig(thinker, talker, C.Token2WavConfig(dit, vocoder))


_PRESETS = {
    "qwen2.5-omni-7b": lambda: _published(
        vocab=152064,
        hidden=3584,
        mlp=18944,
        layers=28,
        heads=28,
        kv_heads=4,
        talker=C.TalkerConfig(
            vocab_size=8448,
            embedding_size=3584,
            hidden_size=896,
            intermediate_size=18944,
            num_hidden_layers=24,
            num_attention_heads=12,
            num_key_value_heads=4,
        ),
    ),
    "qwen2.5-omni-3b": lambda: _published(
        vocab=151936,
        hidden=2048,
        mlp=11008,
        layers=36,
        heads=16,
        kv_heads=2,
        talker=C.TalkerConfig(
            vocab_size=8448,
            embedding_size=2048,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            head_dim=64,
            mrope_section=(16, 16, 0),
        ),
    ),
    "omni-tiny": _omni_tiny,
    "tiny": _tiny,
}
NAMES = tuple(_PRESETS)


def preset(name: str) -> C.OmniConfig:
    """The named configuration.

    Raises:
        ConfigError: no such preset.
    """
    if name not in _PRESETS:
        raise ConfigError(f"There is no preset {name!r}. Presets: {', '.join(NAMES)}.")
    return _PRESETS[name]()


# Speech tokenizers, whose size no publication states: "large" has the size of Whisper-large, as its sibling has.
_TOKENIZERS = {
    "large": dict(d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120),
    "omni-tiny": dict(
        d_model=192,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=768,
        quantizer_layer=2,
        decoder_channels=128,
        levels=(8, 5, 5, 5),
    ),
    "tiny": dict(
        d_model=64,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        quantizer_layer=1,
        decoder_channels=64,
    ),
}
TOKENIZER_NAMES = tuple(_TOKENIZERS)


def speech_tokenizer_preset(name: str, route: str = "inversion") -> C.SpeechTokenizerConfig:
    """The named size of speech tokenizer, for one of the two routes to its codes.

    The tiny one inverts the codes of the tiny model, of which there are 128.

    Raises:
        ConfigError: no such preset or route.
    """
    if name not in _TOKENIZERS:
        raise ConfigError(f"There is no speech tokenizer {name!r}. Presets: {', '.join(TOKENIZER_NAMES)}.")
    if route not in C.TOKENIZER_ROUTES:
        raise ConfigError(f"There is no route {route!r} to speech codes. Routes: {', '.join(C.TOKENIZER_ROUTES)}.")
    num_codes = {("tiny", "inversion"): 128, ("omni-tiny", "scratch"): 1000, ("omni-tiny", "inversion"): 1000}.get(
        (name, route), 8192
    )
    return C.SpeechTokenizerConfig(route=route, num_codes=num_codes, **_TOKENIZERS[name])
