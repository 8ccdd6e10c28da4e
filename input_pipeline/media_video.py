"""Films: sampled frames with their true times, and the sound track aligned to them.

Sampling follows the paper's dynamic frame rate (architecture.md 4.1): a few frames a second, evenly spread from the
first to the last frame, an even number of them.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from input_pipeline.media_audio import decode_audio
from input_pipeline.media_source import MediaFile, decode, finite_rate, media_file, open_container, video_stream
from input_pipeline.patches import check_aspect_ratio, frame_size
from omni_jax.config import ProcessorConfig
from omni_jax.errors import MediaError

VideoSource = str | Path | bytes | tuple[np.ndarray, int | float]

# Above this, frames are brought to the model's size while decoding. That changes no result (the later resize finds
# nothing to do) and bounds the memory of a long film in high resolution.
_MAX_FRAME_BYTES = 2**29


@dataclass(frozen=True)
class Video:
    """Sampled frames of a film.

    frames: uint8 [T, H, W, 3], T even. At the film's own size, or at the model's when that would be over 512 MiB.
    timestamps: float64 [T], seconds since the film's first frame.
    seconds_per_frame: mean spacing of the timestamps.
    audio: float32 [W] whose sample 0 sounds at the first frame, or None when it was not asked for.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    seconds_per_frame: float
    audio: np.ndarray | None = None


def load_video(source: VideoSource, cfg: ProcessorConfig, *, fps: float | None = None, want_audio: bool) -> Video:
    """Decodes a film and samples it at `fps` (default `cfg.video_fps`) frames a second.

    Times are the container's own, so films of variable frame rate keep their timing; time zero is the first frame.
    Sound before it is cut off, and silence fills a late start. A film that breaks off gives what decodes.

    Args:
        source: path, `file://` or base64 `data:` URL, or bytes of a film; or `(frames uint8 [T, H, W, 3], fps)`.
        want_audio: also decode the sound track, at `cfg.sampling_rate`.

    Raises:
        MediaError: missing, empty or damaged; no picture track; no sound track though it is wanted; sound longer than
            `cfg.max_audio_seconds`.
    """
    fps = finite_rate(cfg.video_fps if fps is None else fps, "fps of the sampling")
    if isinstance(source, tuple):
        return _from_array(source, cfg, fps, want_audio)
    if isinstance(source, np.ndarray):
        raise MediaError("video array: its frame rate is missing. Give (frames, fps).")
    file = media_file(source)
    frames, times, zero = _decode_sampled(file, cfg, fps)
    audio = None
    if want_audio:
        audio = decode_audio(file, cfg.sampling_rate, start=zero, max_seconds=cfg.max_audio_seconds)
    return _video(frames, times, fps, audio)


def sample_indices(times: np.ndarray, cfg: ProcessorConfig, fps: float) -> np.ndarray:
    """Which of the frames at `times` (s, float64 [total]) to keep: int64 [n], n even except for a film of one frame.

    n is duration * fps within `cfg.video_min_frames` and `cfg.video_max_frames`, at most total, rounded down to even.

    100 frames at 25 fps, sampled at 2 fps  ->  8 of them, [0, 14, 28, ..., 99]
    """
    total = len(times)
    if total == 1:
        return np.zeros(1, np.int64)
    duration = (times[-1] - times[0]) * total / (total - 1)
    # Containers round times (mkv to 1 ms); 3 s must not give 4 frames because it reads 2.9997 s.
    wanted = math.floor(duration * fps + 0.02)
    count = min(max(wanted, cfg.video_min_frames), cfg.video_max_frames, total)
    return np.round(np.linspace(0, total - 1, max(count // 2 * 2, 2))).astype(np.int64)


def _from_array(source: tuple, cfg: ProcessorConfig, fps: float, want_audio: bool) -> Video:
    name = "video array"
    if len(source) != 2:
        raise MediaError(f"{name}: a tuple must be (frames, fps), not {len(source)} items.")
    frames, rate = np.asarray(source[0]), finite_rate(source[1], f"{name}: fps")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise MediaError(f"{name}: shape {frames.shape} of {frames.dtype} is not a film. Give uint8 [T, H, W, 3].")
    if want_audio:
        raise MediaError(f"{name}: an array has no sound track. Give the sound as a separate audio source.")
    check_aspect_ratio(*frames.shape[1:3], name)
    times = np.arange(len(frames)) / rate
    keep = sample_indices(times, cfg, fps)
    return _video(frames[keep], times[keep], fps, None)


def _video(frames: np.ndarray, times: np.ndarray, fps: float, audio: np.ndarray | None) -> Video:
    spacing = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    if len(times) % 2:  # the encoder takes frames in pairs
        frames = np.concatenate([frames, frames[-1:]])
        times = np.append(times, times[-1] + spacing)
    return Video(frames, times, float(spacing), audio)


def _decode_sampled(file: MediaFile, cfg: ProcessorConfig, fps: float) -> tuple[np.ndarray, np.ndarray, float]:
    """-> frames [n, H, W, 3], times [n] from the first frame on, and the container's time of the first frame.

    Packets are read first, which is quick, to foresee the times of all frames; then one decoding keeps only the
    chosen ones. Where the forecast was wrong (hidden frames, damage, no times in the packets) the times that were
    decoded serve for a second decoding.
    """
    planned = _packet_times(file)
    for _ in range(3):
        keep = sample_indices(planned, cfg, fps) if len(planned) else np.zeros(0, np.int64)
        frames, decoded = _decode_frames(file, keep, cfg)
        zero, times = float(decoded[0]), decoded - decoded[0]
        actual = sample_indices(times, cfg, fps)
        if np.array_equal(actual, keep):
            return np.stack(frames), times[keep], zero
        planned = times
    raise MediaError(f"{file.name}: decodes differently each time. The file is damaged; export it again.")


def _packet_times(file: MediaFile) -> np.ndarray:
    """Presentation times (s) of the picture track's packets, in order; empty when the container does not tell."""
    with open_container(file) as container:
        stream = video_stream(container)
        if stream is None:
            raise MediaError(f"{file.name}: the file has no picture track. Give a film, or use it as sound.")
        times = []
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    times.append(None if packet.pts is None else float(packet.pts * packet.time_base))
        except av.error.FFmpegError:
            pass  # a film that breaks off: decoding reports it if nothing is left
    return np.array([]) if None in times else np.sort(np.array(times))


def _decode_frames(file: MediaFile, keep: np.ndarray, cfg: ProcessorConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """-> the frames whose ordinal is in `keep`, and the times (s) of all frames."""
    wanted = set(keep.tolist())
    kept: list[np.ndarray] = []
    stamps: list[float | None] = []
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        size = None  # height and width of the first frame, which all others get too
        for frame in decode(container, stream, file.name):
            if len(stamps) in wanted:
                if size is None:
                    check_aspect_ratio(frame.height, frame.width, file.name)
                    size = frame.height, frame.width
                    target = _reduced_size(size, frame.rotation, len(keep), cfg)
                kept.append(_rgb(frame, size, target))
            stamps.append(frame.time)
    return kept, _true_times(stamps, float(rate))


def _reduced_size(size: tuple[int, int], rotation: int, frames: int, cfg: ProcessorConfig) -> tuple[int, int] | None:
    """The model's size (height, width) for upright frames when the film's own would take too much memory."""
    height, width = size if rotation % 180 == 0 else size[::-1]
    target = frame_size(height, width, frames, cfg)
    fits = frames * height * width * 3 <= _MAX_FRAME_BYTES or height * width <= target[0] * target[1]
    final = frame_size(*target, frames, cfg) == target  # else the patches would resize once more
    return target if final and not fits else None


def _rgb(frame: av.VideoFrame, size: tuple[int, int], target: tuple[int, int] | None) -> np.ndarray:
    """An upright uint8 [H, W, 3]; phones store the film lying and the turn beside it."""
    image = frame.to_ndarray(format="rgb24", height=size[0], width=size[1])
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns:
        image = np.rot90(image, quarter_turns)
    if target is not None:
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(target[::-1], Image.Resampling.BICUBIC))
    return np.ascontiguousarray(image)


def _true_times(stamps: list[float | None], rate: float) -> np.ndarray:
    """Times of all frames (s); where the container has none, or they do not advance, the frame rate gives them."""
    if None not in stamps:
        times = np.array(stamps)
        if len(times) == 1 or ((np.diff(times) >= 0).all() and times[-1] > times[0]):
            return times
    first = next((stamp for stamp in stamps if stamp is not None), 0.0)
    return first + np.arange(len(stamps)) / rate
