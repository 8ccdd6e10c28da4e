"""Parity of what enters the models: mel features, patches of pictures and films, TMRoPE positions."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.media import load_audio, load_image, load_video
from input_pipeline.mel import log_mel
from input_pipeline.patches import Patches, image_patches, video_patches
from omni_jax.config import ProcessorConfig
from omni_jax.interop.parity_cases import MediaFiles
from omni_jax.interop.parity_rows import Row, Step, compare, named_axes
from omni_jax.interop.reference import pytorch, thinker_inputs
from omni_jax.interop.reference_trace import position_ids

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

_MEL_TOLERANCE = 1e-4
_PATCH_TOLERANCE = 1e-5


def input_rows(subject: "Subject") -> Iterator[Row]:
    """Rows mel, image patches, video patches and position ids."""
    media, processor = subject.media, subject.processor
    yield compare("mel", _mel_steps(media, processor), tolerance=_MEL_TOLERANCE)
    yield compare("image patches", _image_steps(media, processor), tolerance=_PATCH_TOLERANCE)
    yield compare("video patches", _video_steps(media, processor), tolerance=_PATCH_TOLERANCE)
    yield compare("position ids", _position_steps(subject), tolerance=0.0)


def _mel_steps(media: MediaFiles, processor: ProcessorConfig) -> Iterator[Step]:
    film = load_video(media.film, processor, want_audio=True)
    for file, waveform in (
        (media.recording, load_audio(media.recording, sampling_rate=processor.sampling_rate)),
        (media.film, film.audio),
    ):
        theirs = _reference_mel(waveform, processor)
        yield Step(f"mel of {file.name}", log_mel(waveform, processor), theirs, named_axes("bin", "frame"))


def _reference_mel(waveform: np.ndarray, processor: ProcessorConfig) -> np.ndarray:
    """Features [bins, frames] of the published feature extractor, which pads to its longest clip; valid frames only."""
    _, transformers = pytorch()
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=processor.num_mel_bins,
        sampling_rate=processor.sampling_rate,
        hop_length=processor.hop_length,
        chunk_length=processor.max_audio_seconds,
        n_fft=processor.n_fft,
    )
    out = extractor(
        waveform,
        sampling_rate=processor.sampling_rate,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="np",
    )
    return out["input_features"][0][:, : int(out["attention_mask"][0].sum())]


def _image_steps(media: MediaFiles, processor: ProcessorConfig) -> Iterator[Step]:
    bounds = processor.image_min_pixels, processor.image_max_pixels
    for file in (media.picture, media.strip):
        image = load_image(file)
        ours = image_patches(image, processor)
        pixels, grid = _reference_patches(image, processor, bounds)
        yield from _patch_steps(file, ours, pixels, grid)


def _video_steps(media: MediaFiles, processor: ProcessorConfig) -> Iterator[Step]:
    """The published picture processor on every frame; a pair of frames gives the two halves of each patch."""
    film = load_video(media.film, processor, want_audio=False)
    ours = video_patches(film.frames, processor)
    bounds = processor.video_min_pixels, processor.video_max_pixels  # so short a film does not meet its total budget
    side, pair = processor.patch_size, processor.temporal_patch_size
    frames, grid = [], None
    for frame in film.frames:
        pixels, grid = _reference_patches(frame, processor, bounds)
        frames.append(pixels.reshape(-1, 3, pair, side, side)[:, :, 0])
    groups = [np.stack(frames[first : first + pair], axis=2) for first in range(0, len(frames), pair)]
    pixels = np.concatenate(groups).reshape(-1, 3 * pair * side * side)
    yield from _patch_steps(media.film, ours, pixels, (len(groups), *grid[1:]))


def _patch_steps(file: Path, ours: Patches, pixels: np.ndarray, grid: tuple[int, ...]) -> Iterator[Step]:
    yield Step(f"grid of {file.name}", np.array(ours.grid), np.array(grid), named_axes("axis"))
    yield Step(f"patches of {file.name}", ours.pixels, pixels, named_axes("patch", "value"))


def _reference_patches(
    image: np.ndarray, processor: ProcessorConfig, bounds: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, ...]]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    reference = Qwen2VLImageProcessorPil(
        size={"shortest_edge": bounds[0], "longest_edge": bounds[1]},
        patch_size=processor.patch_size,
        temporal_patch_size=processor.temporal_patch_size,
        merge_size=processor.merge_size,
        image_mean=list(processor.image_mean),
        image_std=list(processor.image_std),
    )
    out = reference(images=[image], return_tensors="np")
    return out["pixel_values"], tuple(int(n) for n in out["image_grid_thw"][0])


def _position_steps(subject: "Subject") -> Iterator[Step]:
    for name, request in subject.requests.items():
        inputs = thinker_inputs([request], subject.config, pad_id=0)
        theirs, following = position_ids(subject.reference.model, inputs)
        yield Step(f"position ids of prompt '{name}'", request.position_ids, theirs, named_axes("axis", "token"))
        yield Step(
            f"position after prompt '{name}'",
            np.array([request.next_position]),
            np.array([following]),
            named_axes("token"),
        )
