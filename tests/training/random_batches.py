"""Batches of random tokens, sound and pictures, in the form of real ones."""

import numpy as np

from input_pipeline.training_batch import AudioBlocks, OmniBatch, RowShape, VisionPatches
from omni_jax.config import OmniConfig


def random_batch(config: OmniConfig, rows: int, shape: RowShape, seed: int = 0) -> OmniBatch:
    """Three segments a row and some padding; sound lies in the first segment, a picture in the second."""
    rng, thinker, length = np.random.default_rng(seed), config.thinker_config, shape.tokens
    tokens = rng.integers(0, 1000, (rows, length + 1)).astype(np.int32)
    bounds = [0, length // 3, 2 * length // 3, length - 5, length]
    segments = np.repeat([1, 2, 3, 0], np.diff(bounds)).astype(np.int32)
    place = np.arange(length) - np.repeat(bounds[:-1], np.diff(bounds))
    last = np.append(segments[1:] != segments[:-1], True)
    nowhere = np.full((rows, length), -1, np.int32)
    audio_source, vision_source, audio, vision = nowhere.copy(), nowhere.copy(), None, None
    if shape.audio_blocks:
        frames = np.full((rows, shape.audio_blocks), 12, np.int32)
        mel = rng.normal(size=(rows, shape.audio_blocks, thinker.audio_config.block_frames, 128)).astype(np.float32)
        mel[:, :, 12:] = 0
        audio, audio_source[:, 2:5] = AudioBlocks(mel, frames), np.arange(3)
    if shape.patches:
        patches = rng.normal(size=(rows, shape.patches, thinker.vision_config.patch_dim)).astype(np.float32)
        first = np.arange(shape.patches) // 16 * 16
        window = np.stack([first, first + 16], axis=1)
        frame = np.broadcast_to([0, shape.patches], window.shape)
        coordinates = np.stack([np.arange(shape.patches) // 8, np.arange(shape.patches) % 8], axis=1)
        vision = VisionPatches(
            patches,
            *(
                np.broadcast_to(each, (rows, *each.shape)).astype(np.int32).copy()
                for each in (coordinates, window, frame)
            ),
        )
        start = bounds[1] + 1
        vision_source[:, start : start + 4] = np.arange(4)
    return OmniBatch(
        token_ids=tokens[:, :-1],
        position_ids=np.broadcast_to(place, (rows, 3, length)).astype(np.int32).copy(),
        segment_ids=np.broadcast_to(segments, (rows, length)).copy(),
        labels=tokens[:, 1:],
        weights=((segments > 0) & ~last)[None].repeat(rows, 0).astype(np.float32),
        task_ids=(rng.integers(0, 2, (rows, length))).astype(np.int32),
        audio_source=audio_source,
        vision_source=vision_source,
        audio=audio,
        vision=vision,
    )


def random_params(config: OmniConfig, components: tuple[str, ...], seed: int = 0) -> dict:
    """Nested dict of numpy arrays: small normal kernels, scales near one."""
    import jax
    from jax.tree_util import tree_map_with_path

    from omni_jax.models.logical_axes import logical_axes

    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return (center + rng.normal(size=shape.shape) * 0.05).astype(np.float32)

    return jax.tree.map(np.asarray, tree_map_with_path(leaf, logical_axes(config, components)[1]))
