"""The PyTorch side of a comparison: the same requests, through `transformers`, on the CPU in float32.

Only features and token ids are handed over; the reference builds its own positions and runs its own generation loop.
torch and transformers come with the `parity` extra and are imported here only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.request import Request
from omni_jax.config import OmniConfig
from omni_jax.errors import CheckpointError
from omni_jax.sampling.options import SamplingOptions


def pytorch() -> tuple[Any, Any]:
    """The modules torch and transformers.

    Raises:
        CheckpointError: they are not installed; the text names the extra.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"Comparing with PyTorch needs {error.name}. Install it with: pip install 'omni-jax[parity]'"
        ) from None
    return torch, transformers


def quiet() -> None:
    """Keeps transformers' warnings and progress bars, which are about its own defaults, out of our output."""
    _, transformers = pytorch()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_thinker(folder: str | Path) -> Any:
    """The Thinker of a published folder as a PyTorch module: float32, SDPA attention, evaluation mode."""
    torch, transformers = pytorch()
    quiet()
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    return model.eval()


def thinker_inputs(requests: Sequence[Request], config: OmniConfig, *, pad_id: int) -> dict[str, Any]:
    """Keyword arguments of the reference's forward pass and generation for a batch, padded on the left.

    `use_audio_in_video` is one switch for the whole call there, so either all films of a batch are heard or none.
    """
    torch, _ = pytorch()
    thinker = config.thinker_config
    longest = max(len(request.token_ids) for request in requests)
    ids = np.full((len(requests), longest), pad_id, np.int64)
    mask = np.zeros((len(requests), longest), np.int64)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.token_ids) :] = request.token_ids
        mask[row, longest - len(request.token_ids) :] = 1
    out: dict[str, Any] = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    mels = [mel for request in requests for mel in request.audio]
    if mels:
        frames = max(mel.shape[1] for mel in mels)
        features = np.stack([np.pad(mel, ((0, 0), (0, frames - mel.shape[1]))) for mel in mels])
        heard = np.stack([np.arange(frames) < mel.shape[1] for mel in mels])
        out["input_features"] = torch.from_numpy(features.astype(np.float32))
        out["feature_attention_mask"] = torch.from_numpy(heard.astype(np.int64))

    pictures: dict[str, list] = {"image": [], "video": []}
    spacing, heard_films = [], False
    for request in requests:
        for item, seconds in zip(request.vision, request.seconds_per_grid):
            pictures["image" if seconds is None else "video"].append(item)
            if seconds is not None:
                spacing.append(seconds)
        start = np.flatnonzero(request.token_ids == thinker.vision_start_token_id)
        heard_films |= bool(np.any(request.token_ids[start + 1] == thinker.audio_start_token_id))
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if pictures[kind]:
            pixels = np.concatenate([item.pixels for item in pictures[kind]])
            out[f"pixel_values{suffix}"] = torch.from_numpy(pixels)
            out[f"{kind}_grid_thw"] = torch.tensor([item.grid for item in pictures[kind]])
    if spacing:
        out["video_second_per_grid"] = torch.tensor(spacing, dtype=torch.float32)
        out["use_audio_in_video"] = heard_films
    return out


def generate(
    model: Any, inputs: dict[str, Any], options: SamplingOptions, *, stop_ids: Sequence[int], pad_id: int
) -> list[list[int]]:
    """Greedy tokens of each row, up to and with the first stop token."""
    torch, _ = pytorch()
    model.rope_deltas = None  # the reference keeps them on the module between calls
    with torch.inference_mode():
        ids = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=options.max_new_tokens,
            repetition_penalty=options.repetition_penalty,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
        )
    answers = []
    for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
        ends = [place for place, token in enumerate(row) if token in stop_ids]
        answers.append(row[: ends[0] + 1] if ends else row)
    return answers
