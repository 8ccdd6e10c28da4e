"""Pictures of a camera while they arrive: which are taken, and when a group of them is complete.

frames (10 a second)   0.0  0.1 … 0.4  0.5  0.6 … 0.9  1.0  1.1 …
ticks (2 a second)      ▲              ▲              ▲
groups of two           └──── one ─────┘              └── next …
"""

import dataclasses
import math

import numpy as np

from input_pipeline.media_source import finite_rate
from input_pipeline.patches import Patches, frame_size, video_patches
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError

# A frame is in time for a tick that it misses by this part of a tick, as in `media_video.sample_indices`.
_SLACK = 0.02


class FrameSampler:
    """Samples frames at `fps` ticks a second, the first at time 0, and makes patches of each group of two.

    A tick takes the frame nearest to it: once a frame at or after the tick is there, that one or the one before it,
    the earlier of two that are equally near. So a late first frame also serves the ticks before it, and a gap is filled
    with its neighbours. Ticks after the last frame stay empty; of an odd number of frames the last is repeated.

    All frames get the size that the first one gives. Offline the frames of a film share `cfg.video_total_pixels`, and
    nobody knows yet how many there will be: here each may have `max_pixels`. With the published bounds both give the
    same size up to 300 frames (150 s).
    """

    def __init__(
        self,
        cfg: ProcessorConfig,
        *,
        fps: float | None = None,
        max_pixels: int | None = None,
        name: str = "live film",
    ):
        """Starts an empty film.

        Args:
            fps: ticks a second; default `cfg.video_fps`.
            max_pixels: area that a frame may have; default `cfg.video_max_pixels`.

        Raises:
            MediaError: fps is no positive number, or max_pixels is below `cfg.video_min_pixels`.
        """
        if max_pixels is not None and not max_pixels >= cfg.video_min_pixels:
            raise MediaError(
                f"{name}: at most {max_pixels} pixels a frame are less than the least, {cfg.video_min_pixels}. Raise "
                "the bound, or lower video_min_pixels."
            )
        self.fps = finite_rate(cfg.video_fps if fps is None else fps, f"{name}: fps")
        self.seconds_per_grid = cfg.temporal_patch_size / self.fps
        self.frames = 0  # taken so far
        self._cfg = cfg if max_pixels is None else dataclasses.replace(cfg, video_max_pixels=max_pixels)
        self._name = name
        self._last: tuple[np.ndarray, float] | None = None
        self._group: list[np.ndarray] = []

    @property
    def started(self) -> bool:
        return self._last is not None

    def push(self, frame: np.ndarray, time: float) -> tuple[Patches, ...]:
        """Sees one frame, uint8 [H, W, 3], and returns the groups that it completes, grid (1, rows, columns) each.

        Args:
            time: seconds since the turn began, as the sound counts them.

        Raises:
            MediaError: not such an array, another size than the first frame's, too long a strip, a time that is
                negative or before the last frame's, or more than `cfg.video_max_frames` ticks; nothing is taken then.
        """
        ticks = self._check(frame, time)
        frame, groups = frame.copy(), []  # the caller may use its buffer again
        while self.frames < ticks:
            tick = self.frames / self.fps
            earlier = self._last is not None and abs(self._last[1] - tick) <= abs(time - tick)
            self._group.append(self._last[0] if earlier else frame)
            self.frames += 1
            if len(self._group) == self._cfg.temporal_patch_size:
                groups.append(self._patches())
        self._last = frame, time
        return tuple(groups)

    def finish(self) -> tuple[Patches, ...]:
        """The group that is not full, if there is one."""
        return (self._patches(),) if self._group else ()

    def _patches(self) -> Patches:
        frames, self._group = np.stack(self._group), []
        return video_patches(frames, self._cfg, name=self._name)

    def _check(self, frame: np.ndarray, time: float) -> int:
        """Ticks that are served once this frame is there."""
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            found = f"{frame.shape} of {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise MediaError(f"{self._name}: a frame must be uint8 [H, W, 3], not {found}.")
        if self._last is None:
            frame_size(*frame.shape[:2], self._cfg.temporal_patch_size, self._cfg, name=self._name)
        elif frame.shape != self._last[0].shape:
            (height, width), (now_height, now_width) = self._last[0].shape[:2], frame.shape[:2]
            raise MediaError(
                f"{self._name}: the frames changed from {width}x{height} to {now_width}x{now_height} pixels. Resize "
                "them, or start a new turn."
            )
        if isinstance(time, bool) or not isinstance(time, (int, float, np.integer, np.floating)):
            raise MediaError(f"{self._name}: the time of a frame must be a number of seconds, not {time!r}.")
        if not 0 <= time < math.inf:
            raise MediaError(f"{self._name}: a frame at {time} s; times count from 0 at the start of the turn.")
        if self._last is not None and time < self._last[1]:
            raise MediaError(
                f"{self._name}: a frame at {time:.3f} s came after one at {self._last[1]:.3f} s. Send frames in order."
            )
        ticks = math.floor(time * self.fps + _SLACK) + 1
        if ticks > self._cfg.video_max_frames:
            raise MediaError(
                f"{self._name}: a frame at {time:.1f} s makes {ticks} frames at {self.fps:g} a second, over the limit "
                f"of {self._cfg.video_max_frames} (video_max_frames). End the turn before, or lower fps."
            )
        return ticks
