"""What a step of a run is fed, as shapes only: to compile it without data."""

from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.clip_kinds import TranscribedClips, VoicedClips
from input_pipeline.speech_batch import (
    BLOCK_FRAMES,
    CODES_PER_SECOND,
    CodedSpeech,
    SoundedMel,
    TranscribedSpeech,
    VoicedCodes,
)
from input_pipeline.speech_mel import MEL_16K, MEL_24K
from omni_jax.config import OmniConfig
from omni_jax.training import run_stages as stages
from omni_jax.training.batches import abstract_batch
from omni_jax.training.run_config import RunConfig


def step_shapes(run: RunConfig, model: OmniConfig, rows: int) -> Any:
    """What a step takes: a batch of `rows` rows, or with `accumulate` several of them along a leading axis."""
    batch = batch_shapes(run, model, rows)
    if run.accumulate == 1:
        return batch
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((run.accumulate, *x.shape), x.dtype), batch)


def batch_shapes(run: RunConfig, model: OmniConfig, rows: int) -> Any:
    """A batch of `rows` rows; with micro-batches, those of one. A stage of another project may have its own."""
    own = getattr(run.stage, "batch_shapes", None)
    if own is not None:
        return own(run, model, rows)

    def ints(*shape):
        return jax.ShapeDtypeStruct((rows, *shape), jnp.int32)

    def floats(*shape):
        return jax.ShapeDtypeStruct((rows, *shape), jnp.float32)

    codes = int(CODES_PER_SECOND * run.data.clip_seconds)
    blocks = -(-codes * 2 // BLOCK_FRAMES)
    match run.stage:
        case stages.SpeechTokenizerStage():
            bins = model.speech_tokenizer_config.num_mel_bins
            mel, frames = floats(blocks, BLOCK_FRAMES, bins), ints(blocks)
            if run.stage.route == "inversion":
                return CodedSpeech(mel, frames, ints(blocks * BLOCK_FRAMES // 2))
            target = floats(blocks * BLOCK_FRAMES, MEL_16K.num_mel_bins)
            return TranscribedSpeech(mel, frames, ints(TranscribedClips.most_labels(run.data.clip_seconds)), target)
        case stages.Token2WavStage():
            dit = model.token2wav_config.dit_config
            mel, reference = floats(2 * codes, dit.mel_dim), floats(VoicedClips.reference_frames, dit.mel_dim)
            return VoicedCodes(ints(codes), mel, ints(), reference, floats(dit.enc_emb_dim))
        case stages.VocoderStage():
            frames = int(100 * run.data.clip_seconds)
            return SoundedMel(floats(frames, MEL_24K.num_mel_bins), floats(frames * MEL_24K.hop_length), ints())
        case _:
            return abstract_batch(run.data.shape, rows, config=model)
