"""Recordings to speech codes, by a trained speech tokenizer (models/speech_tokenizer.py).

A block of 2 s is tokenised by itself, so recordings of any length are cut into blocks, and the blocks of many
recordings fill batches of one shape: one program is compiled, whatever is to be encoded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from input_pipeline.mel import num_mel_frames
from input_pipeline.speech_batch import BLOCK_FRAMES, mel_blocks
from omni_jax.config import ProcessorConfig, SpeechTokenizerConfig
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.errors import CheckpointError
from omni_jax.interop.restore import load_checkpoint_info, restore_params
from omni_jax.models import speech_tokenizer
from omni_jax.sharding.scope import program

RATE = 16_000
COMPONENT = "speech_tokenizer"
BLOCKS = 32


class SpeechCoder:
    """The parameters of a speech tokenizer and the program that runs it. Keeps no state between calls."""

    def __init__(
        self,
        params: Mapping[str, Any],
        config: SpeechTokenizerConfig,
        processor: ProcessorConfig | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        blocks: int = BLOCKS,
    ):
        """
        Args:
            params: of the tokenizer alone. processor: of Whisper's mel.
            dtype: of compute. blocks: how many the device takes at a time.
        """
        self.params, self.config = params, config
        self.processor, self.dtype, self.blocks = processor or ProcessorConfig(), jnp.dtype(dtype), blocks

    @classmethod
    def from_checkpoint(cls, folder: str | Path, *, dtype: Any = None, blocks: int = BLOCKS) -> "SpeechCoder":
        """Restores the tokenizer of a trained checkpoint, in float32.

        Args:
            dtype: of compute; default float32 on CPU, bfloat16 elsewhere.

        Raises:
            CheckpointError: the checkpoint has no speech tokenizer, or does not fit its configuration.
        """
        config = tokenizer_config(folder)
        params = restore_params(folder, read_config(folder), dtype=jnp.float32, components=(COMPONENT,))[COMPONENT]
        has_processor = (Path(folder) / "preprocessor_config.json").is_file()
        processor = read_processor_config(folder) if has_processor else None
        dtype = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
        return cls(params, config, processor, dtype=dtype, blocks=blocks)

    def encode(
        self, waveforms: Sequence[Float[np.ndarray, " W"]], names: Sequence[str] | None = None
    ) -> list[Int[np.ndarray, " C"]]:
        """Codes int32 [ceil(W / 320)] of each recording: one for each 20 ms, the last perhaps for less.

        Args:
            waveforms: mono, 16 kHz, in [-1, 1], of any length.
            names: for errors.

        Raises:
            MediaError: a recording that is too short for a code, or not finite.
        """
        cut = [
            self.cut(waveform, name) for waveform, name in zip(waveforms, names or ["The recording"] * len(waveforms))
        ]
        return self.encode_blocks(cut)

    def cut(
        self, waveform: Float[np.ndarray, " W"], name: str = "The recording"
    ) -> tuple[Float[np.ndarray, "G F M"], Int[np.ndarray, " G"]]:
        """Mel blocks of one recording and the frames in each. Raises as `encode` does."""
        # the limit is one of conversations: here a block sees nothing beyond itself
        seconds = max(self.processor.max_audio_seconds, math.ceil(len(waveform) / RATE))
        processor = replace(self.processor, max_audio_seconds=seconds)
        blocks = -(-num_mel_frames(len(waveform), processor) // BLOCK_FRAMES)
        return mel_blocks(waveform, blocks, processor, name=name)

    def encode_blocks(self, cut: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Int[np.ndarray, " C"]]:
        """`encode` for what `cut` gave."""
        if not cut:
            return []
        mel, frames = (np.concatenate(parts) for parts in zip(*cut))
        pending = []
        for start in range(0, len(frames), self.blocks):
            own = slice(start, start + self.blocks)
            room = self.blocks - len(frames[own])
            padded = np.pad(mel[own], ((0, room), (0, 0), (0, 0))), np.pad(frames[own], (0, room))
            codes = encode_batch(self.params, *(part[:, None] for part in padded), config=self.config, dtype=self.dtype)
            pending.append(codes)
        codes = np.concatenate([np.asarray(part) for part in pending])
        ends = np.cumsum([len(own) for _, own in cut])[:-1]
        return [part[part >= 0] for part in np.split(codes[: len(frames)], ends)]


@program(static_argnames=("config", "dtype"))
def encode_batch(
    params: Mapping[str, Any],
    mel: Float[Array, "B G F M"],
    frames: Int[Array, "B G"],
    *,
    config: SpeechTokenizerConfig,
    dtype: DTypeLike,
) -> Int[Array, "B C"]:
    """See `speech_tokenizer.codes`."""
    return speech_tokenizer.codes(params, config, mel, frames, dtype=dtype)


def tokenizer_config(folder: str | Path) -> SpeechTokenizerConfig:
    """Of the speech tokenizer in a checkpoint folder; reads no weights.

    Raises:
        CheckpointError: there is none.
    """
    config = read_config(folder).speech_tokenizer_config
    if config is None or COMPONENT not in load_checkpoint_info(folder).components:
        raise CheckpointError(
            f"{folder} has no speech tokenizer. Train one with configs/speech_tokenizer_inversion.py or "
            "configs/speech_tokenizer_scratch.py, and give its model folder."
        )
    return config
