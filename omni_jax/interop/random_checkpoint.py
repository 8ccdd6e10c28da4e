"""Small random checkpoints in the published folder form, for tests, parity and benchmarks without the real weights.

The PyTorch model is the source: what is written is what `save_pretrained` of transformers writes, with a config.json
in the published style. Weights are scaled so that activations stay near one, media matter to the answer, and the two
best logits lie far apart; comparing tokens then means something.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_jax import config as C
from omni_jax.config_json import config_to_dict
from omni_jax.errors import CheckpointError
from omni_jax.interop.random_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS, write_tokenizer
from omni_jax.presets import preset

SIZES = ("tiny", "small", "bench", "speech")
# Rows of the Thinker's embedding beyond the tokenizer, as in the published models.
SPEAKERS = {"Ethan": 1111, "Chelsie": 1113}
_SHARD = {"tiny": "3MB", "small": "50MB", "bench": "500MB", "speech": "500MB"}


def random_config(size: str) -> C.OmniConfig:
    """The configuration of `make_random_checkpoint(size=...)`.

    "tiny" is the preset of that name (1.3 M parameters), "small" has 15 M, "bench" 283 M. "speech" is "bench" that
    speaks with the 3B model's Talker and the published DiT and BigVGAN.
    """
    if size == "tiny":
        return preset("tiny")
    if size == "small":
        return _scaled(width=256, layers=6, audio=192, vision=192, talker=128, dit=128, vocoder=128, vocab=2048)
    if size == "bench":
        return _bench()
    if size == "speech":
        return _speech()
    raise CheckpointError(f"There is no random checkpoint of size {size!r}. Sizes: {', '.join(SIZES)}.")


def _scaled(*, width, layers, audio, vision, talker, dit, vocoder, vocab) -> C.OmniConfig:
    """The tiny preset, wider: head sizes of 32 and more layers."""
    tiny = preset("tiny")
    thinker, speech = tiny.thinker_config, tiny.token2wav_config
    heads, sections = {"num_attention_heads": width // 32, "num_key_value_heads": 2}, (4, 6, 6)
    return replace(
        tiny,
        thinker_config=replace(
            thinker,
            audio_config=replace(
                thinker.audio_config,
                d_model=audio,
                encoder_layers=4,
                encoder_attention_heads=audio // 32,
                encoder_ffn_dim=4 * audio,
                output_dim=width,
            ),
            vision_config=replace(
                thinker.vision_config,
                depth=6,
                hidden_size=vision,
                intermediate_size=2 * vision,
                num_heads=vision // 32,
                out_hidden_size=width,
                fullatt_block_indexes=(2, 5),
            ),
            text_config=replace(
                thinker.text_config,
                vocab_size=vocab,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                mrope_section=sections,
                **heads,
            ),
        ),
        talker_config=replace(
            tiny.talker_config,
            embedding_size=width,
            hidden_size=talker,
            intermediate_size=4 * talker,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            mrope_section=sections,
        ),
        token2wav_config=replace(
            speech,
            dit_config=replace(speech.dit_config, hidden_size=dit, num_attention_heads=dit // 32, head_dim=32),
            bigvgan_config=replace(speech.bigvgan_config, upsample_initial_channel=vocoder),
        ),
    )


def _bench() -> C.OmniConfig:
    """Large enough that time is spent where the published models spend it: in the Thinker's decoder."""
    base = _scaled(width=1024, layers=12, audio=512, vision=640, talker=384, dit=256, vocoder=256, vocab=16384)
    thinker = base.thinker_config
    return replace(
        base,
        thinker_config=replace(
            thinker,
            audio_config=replace(thinker.audio_config, encoder_layers=6, encoder_attention_heads=8),
            vision_config=replace(
                thinker.vision_config, depth=8, intermediate_size=1720, num_heads=8, fullatt_block_indexes=(3, 7)
            ),
            text_config=replace(
                thinker.text_config,
                intermediate_size=3584,
                num_attention_heads=8,
                num_key_value_heads=2,
                mrope_section=(16, 24, 24),
            ),
        ),
    )


def _speech() -> C.OmniConfig:
    """Speech costs what it costs published; the Thinker is small, so that both sides fit in memory side by side."""
    base, published = _bench(), preset("qwen2.5-omni-3b")
    own = base.talker_config
    talker = replace(
        published.talker_config,
        embedding_size=own.embedding_size,
        tts_text_start_token_id=own.tts_text_start_token_id,
        tts_text_end_token_id=own.tts_text_end_token_id,
        tts_text_pad_token_id=own.tts_text_pad_token_id,
    )
    return replace(base, talker_config=talker, token2wav_config=published.token2wav_config)


def make_random_checkpoint(
    folder: str | Path, size: str = "tiny", *, seed: int = 0, talker: bool = True, dtype: str = "float32"
) -> C.OmniConfig:
    """Writes a random checkpoint into `folder` and returns its configuration.

    Args:
        size: "tiny", "small", "bench" or "speech".
        seed: equal seeds give equal weights.
        talker: False leaves Talker and Token2Wav out (`enable_audio_output` false).
        dtype: of all weights but Token2Wav's, which is float32 as published.

    Raises:
        CheckpointError: PyTorch or transformers is not installed, no such size, or `folder` holds something.
    """
    torch, transformers = _pytorch_side()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty. Choose another folder.")
    if dtype not in ("float32", "bfloat16"):
        raise CheckpointError(f"dtype {dtype!r} is not one of float32, bfloat16.")
    config = random_config(size)
    published = published_dict(config, dtype=dtype, talker=talker)
    model = transformers.Qwen2_5OmniForConditionalGeneration(transformers.Qwen2_5OmniConfig(**published)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(torch, name, tuple(parameter.shape), config, generator))
        if talker:
            _settle_loudness(torch, model, config, generator)
    if dtype == "bfloat16":
        model.thinker.to(torch.bfloat16)
        if talker:
            model.talker.to(torch.bfloat16)

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=_SHARD[size])
    _write_json(folder / "config.json", published)
    _write_json(folder / "preprocessor_config.json", preprocessor_json())
    _write_json(
        folder / "generation_config.json", {"eos_token_id": _id("<|im_end|>"), "pad_token_id": FIRST_SPECIAL_ID}
    )
    write_tokenizer(folder)
    speakers = {
        name: {
            "bos_token": token,
            "cond": torch.randn(1, config.token2wav_config.dit_config.enc_emb_dim, generator=generator),
            "ref_mel": 2 * torch.randn(1, 400, config.token2wav_config.dit_config.mel_dim, generator=generator) - 4,
        }
        for name, token in SPEAKERS.items()
    }
    torch.save(speakers, folder / "spk_dict.pt")
    return config if talker else replace(config, talker_config=None, token2wav_config=None)


def published_dict(config: C.OmniConfig, *, dtype: str = "float32", talker: bool = True) -> dict[str, Any]:
    """`config` as the published config.json writes it: every key that transformers needs, in that file's spelling."""
    out = config_to_dict(config)
    thinker, speech, voice = out["thinker_config"], out["talker_config"], out["token2wav_config"]
    text, dit = thinker["text_config"], voice["dit_config"]
    for part in (text, speech):
        part["rope_scaling"] = {"mrope_section": part["rope_scaling"]["mrope_section"]} | {
            "rope_type": "default",
            "type": "default",
        }
        part |= {"hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0, "use_cache": True}
    text |= {"model_type": "qwen2_5_omni_text", "tie_word_embeddings": False}
    thinker["audio_config"] |= {
        "model_type": "qwen2_5_omni_audio_encoder",
        "activation_function": "gelu",
        "scale_embedding": False,
    }
    thinker["vision_config"] |= {"model_type": "qwen2_5_omni_vision_encoder", "hidden_act": "silu"}
    ends = {
        "bos_token_id": _id("<|im_start|>"),
        "eos_token_id": _id("<|im_end|>"),
        "pad_token_id": _id("<|endoftext|>"),
    }
    text |= ends
    thinker |= {"model_type": "qwen2_5_omni_thinker", "torch_dtype": dtype, "user_token_id": 872 % FIRST_SPECIAL_ID}
    thinker |= ends
    speech |= {key: value for key, value in thinker.items() if key.endswith(("_token_id", "_token_index"))} | {
        "model_type": "qwen2_5_omni_talker",
        "torch_dtype": dtype,
        "tie_word_embeddings": False,
        "position_id_per_seconds": config.thinker_config.position_id_per_seconds,
        "seconds_per_chunk": config.thinker_config.seconds_per_chunk,
        "spatial_merge_size": config.thinker_config.vision_config.spatial_merge_size,
        "pad_token_id": config.talker_config.tts_codec_pad_token_id,
        "eos_token_id": config.talker_config.tts_codec_end_token_id,
    }
    speech.pop("bos_token_id", None)
    # The published file names the DiT's sizes dim, depth and heads; transformers reads only the other names.
    dit |= {
        "model_type": "qwen2_5_omni_dit",
        "hidden_size": dit["dim"],
        "num_hidden_layers": dit["depth"],
        "num_attention_heads": dit["heads"],
    }
    voice["bigvgan_config"] |= {"model_type": "qwen2_5_omni_bigvgan", "use_bias_at_final": False}
    voice["model_type"] = "qwen2_5_omni_token2wav"
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": talker,
        "enable_talker": talker,
        "model_type": "qwen2_5_omni",
        "talker_config": speech,
        "thinker_config": thinker,
        "token2wav_config": voice,
        "torch_dtype": dtype,
    }


def _random(torch, name: str, shape: tuple[int, ...], config: C.OmniConfig, generator):
    """A random tensor for parameter `name`, scaled by what it does."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if ".act." in name:  # periodic activations keep log-scales
        return 0.3 * noise
    if len(shape) == 1:  # norm scales
        return 1 + 0.2 * noise
    if "embed_tokens" in name or "codec_embed" in name or "bos_eos" in name:
        return noise
    if "lm_head" in name:
        # Answers use the tokenizer's text; ids that no text produces stay unlikely, save the end of the turn.
        noise[FIRST_SPECIAL_ID:] *= torch.tensor([0.1]) ** (
            torch.arange(FIRST_SPECIAL_ID, shape[0]) != _id("<|im_end|>")
        ).float().unsqueeze(1)
        return 4 * noise / math.sqrt(shape[1])
    if "codec_head" in name:
        # Token2Wav takes codes below num_embeds only.
        beyond = torch.arange(shape[0]) >= config.token2wav_config.dit_config.num_embeds
        beyond[config.talker_config.tts_codec_end_token_id] = False
        noise[beyond] *= 0.1
        return 4 * noise / math.sqrt(shape[1])
    if ".ups." in name:  # [in, out, k]: each output sees k / stride taps
        return noise / math.sqrt(shape[0] * 2)
    gain = 0.5 if ".resblocks." in name or "attn_norm.linear" in name else 1.0
    return gain * noise / math.sqrt(math.prod(shape[1:]))


def _settle_loudness(torch, model, config: C.OmniConfig, generator) -> None:
    """Scales the vocoder's last convolution so that the waveform rarely meets its clamp at +-1."""
    vocoder = model.token2wav.code2wav_bigvgan_model
    mel = 2 * torch.randn(1, config.token2wav_config.bigvgan_config.mel_dim, 24, generator=generator) - 4
    vocoder.conv_post.weight.mul_(1e-3)  # far from the clamp, so that the spread is linear in the scale
    spread = vocoder(mel).std().item()
    vocoder.conv_post.weight.mul_(0.2 / spread)


def _pytorch_side():
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"Random checkpoints are made by the PyTorch model, but {error.name} is not installed. "
            "Install the extra: pip install omni-jax[parity]."
        ) from error
    return torch, transformers


def _id(token: str) -> int:
    return FIRST_SPECIAL_ID + SPECIAL_TOKENS.index(token)


def preprocessor_json() -> dict[str, Any]:
    """What the published preprocessor_config.json says."""
    return {
        "chunk_length": 300,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "n_fft": 400,
        "n_samples": 4800000,
        "nb_max_frames": 30000,
        "padding_side": "right",
        "padding_value": 0.0,
        "patch_size": 14,
        "processor_class": "Qwen2_5OmniProcessor",
        "return_attention_mask": True,
        "sampling_rate": 16000,
        "temporal_patch_size": 2,
    }


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
