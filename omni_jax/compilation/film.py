"""The request that workloads are sized by: a film of 60 seconds with its sound, by the rules of the input pipeline.

480p is the largest usual size that fits: 60 frame pairs of 510 tokens and 1,500 of sound are 32,104 of the model's
32,768 positions. (At 720p and more the default pixel bounds give 720 tokens a pair, 44,704 in all.)
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from input_pipeline import tmrope
from input_pipeline.mel import num_mel_frames
from input_pipeline.packing import BUCKETS, AudioBatch, VisionBatch, bucket, pack_audio, pack_vision
from input_pipeline.patches import Patches, frame_size
from input_pipeline.request import audio_tokens
from omni_jax.config import OmniConfig, ProcessorConfig

SECONDS, HEIGHT, WIDTH = 60, 480, 854
TOKENS_A_SECOND = 510 + 25  # of pictures and sound
TEXT_TOKENS = 40  # of the chat template, and a short question
ANSWER_TOKENS = 128  # a spoken answer of 12 s
ANSWER_CODES = 600


@dataclass(frozen=True)
class Film:
    """A request: `tokens` of its prompt, the grid of its patches, and the mel frames of its sound."""

    seconds: int
    tokens: int
    grid: tuple[int, int, int]
    mel_frames: int

    @property
    def context(self) -> int:
        """Cache slots for prompt and answer, as far as the largest bucket goes."""
        return bucket(min(self.tokens + ANSWER_TOKENS, BUCKETS.cache[-1]), BUCKETS.cache, "slots")

    def pack(self, config: OmniConfig, batch: int) -> tuple[AudioBatch, VisionBatch]:
        """The media of `batch` such requests. The vision batch has [P, 0] patches: the pixels are left out.

        Raises:
            CapacityError: more than the largest bucket of patches holds.
        """
        audio, vision = config.thinker_config.audio_config, config.thinker_config.vision_config
        mel = np.zeros((audio.num_mel_bins, self.mel_frames), np.float32)
        # patches without any channel: packing needs their number only
        patches = Patches(np.zeros((math.prod(self.grid), 0), np.float32), self.grid)
        sizes = dataclasses.replace(vision, in_channels=0)
        return pack_audio([mel] * batch, audio), pack_vision([patches] * batch, sizes)


def seconds_within(context: int | None) -> int:
    """Length of the film that leaves room for an answer in so many cache slots: 2 to 60 s."""
    if context is None:
        return SECONDS
    return min(SECONDS, max(2, (context - TEXT_TOKENS - ANSWER_TOKENS) // TOKENS_A_SECOND))


def film(config: OmniConfig, *, seconds: int = SECONDS) -> Film:
    """The request with a film of so many seconds."""
    processor = ProcessorConfig()
    frames = min(round(seconds * processor.video_fps), processor.video_max_frames) // 2 * 2
    height, width = frame_size(HEIGHT, WIDTH, frames, processor)
    grid = (frames // processor.temporal_patch_size, height // processor.patch_size, width // processor.patch_size)
    mel_frames = num_mel_frames(seconds * processor.sampling_rate, processor)
    part = tmrope.Video(grid, processor.temporal_patch_size / processor.video_fps, audio_tokens(mel_frames))
    merge = config.thinker_config.vision_config.spatial_merge_size
    return Film(seconds, tmrope.token_count(part, merge) + TEXT_TOKENS, grid, mel_frames)
