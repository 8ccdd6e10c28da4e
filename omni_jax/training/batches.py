"""The batches of `input_pipeline/training_batch.py` as pytrees, and the logical axes of their fields."""

import dataclasses
from typing import Any

import jax

from input_pipeline.training_batch import AudioBlocks, OmniBatch, Preferences, RowShape, SpeechTrack, VisionPatches

for _kind in (AudioBlocks, OmniBatch, Preferences, SpeechTrack, VisionPatches):
    jax.tree_util.register_dataclass(
        _kind, data_fields=[field.name for field in dataclasses.fields(_kind)], meta_fields=[]
    )

Axes = tuple[str | None, ...]
_TOKENS: Axes = ("batch", "length")
# Fields whose axes are more than the batch and whole ones. Media and speech are not split along their length.
_LONG: dict[str, Axes] = {
    "token_ids": _TOKENS,
    "position_ids": ("batch", None, "length"),
    "segment_ids": _TOKENS,
    "labels": _TOKENS,
    "weights": _TOKENS,
    "task_ids": _TOKENS,
    "audio_source": _TOKENS,
    "vision_source": _TOKENS,
}


def batch_axes(batch: Any) -> Any:
    """Logical axes of every array of a batch, in a tree of its form: the first is the batch, tokens have a length."""

    def axes(path, leaf) -> Axes:
        if isinstance(batch, OmniBatch) and len(path) == 1 and path[0].name in _LONG:
            return _LONG[path[0].name]
        return ("batch", *(None,) * (len(leaf.shape) - 1))

    return jax.tree_util.tree_map_with_path(axes, batch)


def abstract_batch(shape: RowShape, rows: int, *, config: Any) -> OmniBatch:
    """A batch of `rows` rows of `shape`, as shapes and types, to compile without data.

    Args:
        config: an `OmniConfig`; gives the sizes of mel blocks and patches.
    """
    import jax.numpy as jnp

    def ints(*size):
        return jax.ShapeDtypeStruct((rows, *size), jnp.int32)

    def floats(*size):
        return jax.ShapeDtypeStruct((rows, *size), jnp.float32)

    audio_config, vision_config = config.thinker_config.audio_config, config.thinker_config.vision_config
    tokens, speech, audio, vision, preferences = shape.tokens, None, None, None, None
    if shape.audio_blocks:
        mel = floats(shape.audio_blocks, audio_config.block_frames, audio_config.num_mel_bins)
        audio = AudioBlocks(mel, ints(shape.audio_blocks))
    if shape.patches:
        pair = ints(shape.patches, 2)
        vision = VisionPatches(floats(shape.patches, vision_config.patch_dim), pair, pair, pair)
    if shape.speech:
        flat = ints(shape.speech)
        speech = SpeechTrack(flat, flat, flat, flat, floats(shape.speech), ints(3, shape.speech), flat, flat)
    if shape.pairs:
        pairs = ints(shape.pairs)
        preferences = Preferences(pairs, pairs, floats(shape.pairs), floats(shape.pairs))
    flat = ints(tokens)
    return OmniBatch(
        token_ids=flat,
        position_ids=ints(3, tokens),
        segment_ids=flat,
        labels=flat,
        weights=floats(tokens),
        task_ids=flat,
        audio_source=flat,
        vision_source=flat,
        audio=audio,
        vision=vision,
        speech=speech,
        preferences=preferences,
    )
