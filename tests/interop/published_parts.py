"""Tiny published folders of a Qwen2.5, a Qwen2.5-VL and a Whisper, and what is assembled of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from omni_jax.config_json import read_config
from omni_jax.interop.assemble import assemble_checkpoint
from omni_jax.interop.assemble_tokenizer import RENAMED
from omni_jax.interop.random_tokenizer import write_tokenizer
from omni_jax.interop.restore import restore_params
from omni_jax.interop.weight_table import flatten

TEXT = dict(
    vocab_size=1280,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=1e6,
    max_position_embeddings=32768,
)


def language_model(folder: Path, *, tied: bool = False, shard: str = "5GB", seed: int = 0, **changes):
    """A Qwen2.5 with its tokenizer, whose control tokens are called as there."""
    model = Qwen2ForCausalLM(Qwen2Config(**TEXT | {"tie_word_embeddings": tied} | changes))
    _save(model, folder, shard, seed)
    write_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for ours, (theirs, _) in RENAMED.items():
            text = text.replace(json.dumps(ours), json.dumps(theirs))
        (folder / name).write_text(text)
    (folder / "chat_template.json").unlink()
    return model


def vision_model(folder: Path, *, alone: bool = False, shard: str = "5GB", **changes):
    """A Qwen2.5-VL, or its vision encoder alone; gives the encoder."""
    vision = dict(depth=4, hidden_size=64, intermediate_size=96, num_heads=4, out_hidden_size=64) | changes
    text = TEXT | {"num_hidden_layers": 1, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": [1, 3]})
    model = Qwen2_5_VLForConditionalGeneration(config)
    _save(model.model.visual if alone else model, folder, shard, seed=1)
    return model.model.visual


def audio_model(folder: Path, *, alone: bool = False, shard: str = "5GB", **changes):
    """A Whisper, with its head or as a bare model; gives the encoder."""
    sizes = dict(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, num_mel_bins=128)
    rest = dict(decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes | rest | changes))
    _save(model.model if alone else model, folder, shard, seed=2)
    return model.model.encoder


def three_parts(root: Path) -> dict[str, tuple[Path, torch.nn.Module]]:
    """Option -> (folder, PyTorch model). The language model is sharded, the others are not."""
    return {
        "language": (root / "language", language_model(root / "language", shard="100KB")),
        "vision": (root / "vision", vision_model(root / "vision")),
        "audio": (root / "audio", audio_model(root / "audio")),
    }


def published_names(folder: Path, first: int = 151643, **changed: str) -> Path:
    """tokenizer.json of Qwen2.5 with its published control tokens, over an alphabet of bytes."""
    names = [
        *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"),
        *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": first + i, "content": f"<|{changed.get(name, name)}|>", **flags} for i, name in enumerate(names)]
    added.append({"id": first + 14, "content": "<tool_call>", **flags, "special": False})
    language_model(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(whole | {"added_tokens": added}))
    edit(folder / "tokenizer_config.json", added_tokens_decoder={}, additional_special_tokens=["<|box_start|>"])
    return folder


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def edit(file: Path, **keys) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def build(destination: Path, **options):
    """Assembles a mute tiny model; gives its folder."""
    assemble_checkpoint(destination, **{"preset": "tiny", "talker": False} | options)
    return destination


def parameters(folder: Path) -> dict[str, np.ndarray]:
    config = read_config(folder)
    return {path: np.asarray(leaf) for path, leaf in flatten(restore_params(folder, config))}


def _save(model, folder: Path, shard: str, seed: int) -> None:
    """With every parameter, biases and norms too, away from its neutral value. Whisper's sines stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(noise / fan_in**0.5 + (parameter.ndim == 1 and name.endswith("weight")))
    model.eval().save_pretrained(folder, max_shard_size=shard)
