"""Log-mel features of sound that is still arriving, block by block.

    pieces of any length ──► [resampler] ──► samples still needed ──► blocks of 200 frames (2 s), then the remainder

Whisper's features are clamped 8 decades below the loudest point of the *whole* clip, which nobody knows while it is
still arriving. A live block is clamped below the loudest point *so far* (up to its own end) instead. So with m that
running maximum and M the clip's (log10 of mel power), a feature x of the offline clip and its live twin y obey

    y = x          where x is above the offline floor, (M - 8 + 4) / 4
    x - (M - m) / 4  <=  y  <=  x      where x lies on that floor

Blocks from the loudest point on, and the remainder at the end of the clip (so every clip under 2 s), are therefore
exact; and so are all blocks when the caller knows M and gives it.
"""

import numpy as np
import soxr

from input_pipeline.media_source import finite_rate
from input_pipeline.mel import (
    check_finite,
    check_not_too_short,
    check_samples,
    log_power,
    num_mel_frames,
    num_windows,
    scaled,
)
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError, PromptError

_SILENCE = -10.0  # log10 power of digital silence, which every maximum is at least


class StreamingMel:
    """One clip's features while it is heard. The result does not depend on how the sound is cut into pieces.

    Holds no more samples than the next block needs, and the piece that is being pushed.
    """

    def __init__(
        self,
        cfg: ProcessorConfig,
        *,
        rate: int | float | None = None,
        maximum: float | None = None,
        block: int = 200,
        name: str = "live sound",
    ):
        """Starts an empty clip.

        Args:
            rate: samples per second of the pieces; default `cfg.sampling_rate`. Others are resampled (soxr HQ, as
                `load_audio` does with a whole clip).
            maximum: the whole clip's `log_mel_maximum` where it is known; the running maximum otherwise.
            block: mel frames in a block.
            name: what errors call the clip.

        Raises:
            MediaError: a rate or a maximum that is no number.
        """
        if maximum is not None and not np.isfinite(maximum):
            raise MediaError(f"{name}: the maximum must be a finite number, not {maximum!r}. See `log_mel_maximum`.")
        self.rate = cfg.sampling_rate if rate is None else finite_rate(rate, f"{name}: the sampling rate")
        self.seconds = 0.0  # of sound so far
        self._cfg, self._block, self._name = cfg, block, name
        self._known = None if maximum is None else np.float32(maximum)
        self._peak = np.float32(_SILENCE)
        self._lowest: np.float32 | None = None  # what the first block was clamped under
        self._resampler = None
        if self.rate != cfg.sampling_rate:
            self._resampler = soxr.ResampleStream(self.rate, cfg.sampling_rate, 1, dtype="float32", quality="HQ")
        self._pushed = 0  # samples, at `rate`
        self._held: list[np.ndarray] = []  # samples at the model's rate, from `_origin` of the clip on
        self._origin = self._end = 0
        self._frame = 0  # the next one to compute
        self._finished = False

    @property
    def maximum(self) -> float:
        """Running maximum over the blocks so far, of the whole clip after `finish`."""
        return float(self._peak)

    @property
    def deviation(self) -> float:
        """Bound on |live - offline features| that the sound so far implies: 0 if none was louder than the first block.

        That is how far the floor has risen since. Also 0 where the caller gave the maximum.
        """
        if self._known is not None or self._lowest is None:
            return 0.0
        silence = np.full((1, 1), _SILENCE, np.float32)
        return float(scaled(silence, self._peak)[0, 0] - scaled(silence, self._lowest)[0, 0])

    def check(self, samples: np.ndarray, rate: int | float | None = None) -> np.ndarray:
        """What `push` would refuse raises here, without touching the state. Returns the samples as float32 [W]."""
        if self._finished:
            raise PromptError(f"{self._name}: it has ended. Start a new turn for more sound.")
        if rate is not None and rate != self.rate:
            raise MediaError(
                f"{self._name}: a piece at {rate} Hz came, but this clip began at {self.rate} Hz. Resample the piece, "
                f"or state {rate} Hz when the clip starts."
            )
        samples = check_samples(samples, self._name)
        check_finite(samples, self._name)
        seconds = (self._pushed + len(samples)) / self.rate
        if seconds > self._cfg.max_audio_seconds:
            raise MediaError(
                f"{self._name}: {seconds:.1f} s of sound is over the limit of {self._cfg.max_audio_seconds} s for one "
                "clip. End the turn before."
            )
        return samples

    def push(self, samples: np.ndarray, rate: int | float | None = None) -> tuple[np.ndarray, ...]:
        """Hears float32 [W] (any W, also 0) and returns the blocks that it completes, float32 [bins, block] each.

        A block is complete half a window (12.5 ms) after its last frame's centre: 2.0025 s for the first.

        Args:
            rate: of this piece, to be checked against the clip's.

        Raises:
            MediaError: not one dimension of floats, NaN or infinity, another rate, or more than
                `cfg.max_audio_seconds` in all; nothing has been heard then.
            PromptError: after `finish`.
        """
        samples = self.check(samples, rate)
        self._pushed += len(samples)
        self.seconds = self._pushed / self.rate
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._hold(samples)
        blocks = []
        while self._end >= self._needed(self._frame + self._block):
            power = self._compute(self._block)
            self._lowest = self._peak if self._lowest is None else self._lowest
            blocks.append(scaled(power, self._clamp()))
        if blocks:
            self._held = [self._held[0].copy()]  # not a view that keeps the whole piece alive
        return tuple(blocks)

    def finish(self) -> tuple[np.ndarray, ...]:
        """Ends the clip: its other frames, float32 [bins, block] and at last [bins, 1 … block].

        All blocks together have the frames that `log_mel` gives of the whole clip.

        Raises:
            MediaError: the whole clip is too short for one audio token; it can still go on then.
            PromptError: after `finish`.
        """
        if self._finished:
            raise PromptError(f"{self._name}: it has ended already.")
        check_not_too_short(round(self._pushed * self._cfg.sampling_rate / self.rate), self._cfg, self._name)
        if self._resampler is not None:
            self._hold(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._finished = True
        valid = num_mel_frames(self._end, self._cfg) - self._frame
        rest = self._compute(num_windows(self._end, self._cfg) - self._frame)[:valid]
        self._held = []
        features = scaled(rest, self._clamp())
        return tuple(features[:, start : start + self._block] for start in range(0, valid, self._block))

    def _needed(self, frames: int) -> int:
        """Samples that the first `frames` frames see."""
        return (frames - 1) * self._cfg.hop_length + self._cfg.n_fft // 2

    def _hold(self, samples: np.ndarray) -> None:
        if len(samples):
            self._held.append(samples.copy())  # the caller may use its buffer again
            self._end += len(samples)

    def _compute(self, frames: int) -> np.ndarray:
        """Log power [frames, bins] of the next frames; raises the running maximum, lets go of samples."""
        cfg = self._cfg
        samples = self._held[0] if len(self._held) == 1 else np.concatenate([np.zeros(0, np.float32), *self._held])
        last = self._needed(self._frame + frames) - self._origin
        power = log_power(samples[:last], self._frame, frames, cfg)
        self._peak = max(self._peak, power.max())
        self._frame += frames
        origin = max(self._frame * cfg.hop_length - cfg.n_fft // 2, 0)
        self._held = [samples[origin - self._origin :]]
        self._origin = origin
        return power

    def _clamp(self) -> np.float32:
        return self._peak if self._known is None else self._known
