"""Requests to static shapes: a few sizes to compile for, padding that no real token ever sees.

Encoders get all clips and all pictures of a batch packed into one axis; index arrays say which attends to which and
where each result belongs. Everything is numpy.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.patches import Patches
from input_pipeline.request import Request, audio_tokens
from omni_jax.config import AudioEncoderConfig, OmniConfig, VisionEncoderConfig
from omni_jax.errors import CapacityError, ConfigError, MediaError


@dataclass(frozen=True)
class Buckets:
    """Every size that a padded axis may have."""

    batch: tuple[int, ...]
    cache: tuple[int, ...]  # key-value slots of a sequence
    audio_blocks: tuple[int, ...]  # 2 s each; 300 s make 150
    patches: tuple[int, ...]  # all patches of a batch, and the patches of one frame
    windows: tuple[int, ...]
    frames: tuple[int, ...]


def _steps(mantissas: Sequence[int], smallest: int, largest: int, multiple_of: int = 1) -> tuple[int, ...]:
    """All mantissa * 2^k between the bounds."""
    sizes = {m << k for m in mantissas for k in range(largest.bit_length())}
    return tuple(sorted(size for size in sizes if smallest <= size <= largest and size % multiple_of == 0))


BUCKETS = Buckets(
    batch=_steps([1], 1, 32),
    cache=_steps([1], 256, 32768),
    audio_blocks=_steps([1, 3], 1, 6144),
    patches=_steps(range(8, 16), 128, 196608, multiple_of=64),  # a 60 s film has 172032
    windows=_steps([1], 1, 16384),
    frames=_steps([1], 1, 8192),
)


def bucket(n: int, sizes: Sequence[int], what: str) -> int:
    """The smallest of the ascending `sizes` that holds `n`.

    bucket(300, (256, 512, 1024), "cache slots")  ->  512

    Raises:
        CapacityError: `n` is above the largest; the text names `what`.
    """
    place = bisect_left(sizes, n)
    if place == len(sizes):
        raise CapacityError(
            f"{n} {what} are needed, but the largest prepared size is {sizes[-1]}.\n"
            "Send fewer requests at once, or smaller media (lower fps, fewer pixels, shorter clips)."
        )
    return sizes[place]


@dataclass(frozen=True, eq=False)
class AudioBatch:
    """Clips cut into blocks of 2 s, G of them after padding.

    mel: float32 [G, block frames, mel bins]; silence after the valid frames is exact zero.
    frames: int32 [G], valid frames of each block, 0 for a block of padding.
    rows: int32 [tokens]; of each token in clip order, its place in the flat output [G * tokens per block].
    """

    mel: np.ndarray
    frames: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class VisionBatch:
    """Pictures and films in one axis of P patches, sorted by attention window. W windows of S slots, F frames of N.

    patches: float32 [P, patch dim], zeros after the real ones. coordinates: int32 [P, 2], patch row and column.
    window_slots: int32 [W, S]; the patch in each slot, or P for an empty slot.
    window_home: int32 [P]; flat slot of each patch, 0 for padding.
    frame_slots: tables of int32 [F, N], one for each size class of frames, so that a small frame beside a large picture
        is not padded to its size. frame_home: int32 [P], into the flat tables laid end to end.
    valid: bool [P].
    rows: int32 [tokens]; of each merged token in checkpoint order, its place among the P / 4 window-ordered ones.

        out = attend(pad(x)[window_slots])          pad: one more row, so that P is in range
        x = out.reshape(W * S, ...)[window_home]
    """

    patches: np.ndarray
    coordinates: np.ndarray
    window_slots: np.ndarray
    window_home: np.ndarray
    frame_slots: tuple[np.ndarray, ...]
    frame_home: np.ndarray
    valid: np.ndarray
    rows: np.ndarray

    def frames(self) -> list[np.ndarray]:
        """The patches of each frame, in packed order."""
        rows = [row[row < len(self.patches)] for table in self.frame_slots for row in table]
        return sorted((row for row in rows if len(row)), key=lambda row: row[0])


@dataclass(frozen=True, eq=False)
class OmniInputs:
    """A padded batch: B requests (bucketed) of T tokens (a multiple of the chunk), padded on the right.

    token_ids: int32 [B, T]. position_ids: int32 [3, B, T].
    lengths: int32 [B], real tokens, 0 for a row of padding. next_position: int32 [B], of the first generated token.
    audio_source: int32 [B, T], place in the audio encoder's flat output [G * tokens per block], -1 at other tokens.
    vision_source: int32 [B, T], place among the vision encoder's window-ordered tokens [P / 4], -1 at other tokens.
    audio, vision: None when nobody in the batch sent any.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    lengths: np.ndarray
    next_position: np.ndarray
    audio: AudioBatch | None
    vision: VisionBatch | None
    audio_source: np.ndarray
    vision_source: np.ndarray


def cut_into_blocks(mels: Sequence[np.ndarray], cfg: AudioEncoderConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """Mel features, float32 [mel bins, L] each, as blocks of up to `cfg.block_frames`, float32 [frames, mel bins].

    Each clip has blocks of its own. Beside them, of each token in clip order, its place in the flat output
    [blocks * tokens per block], int64 [tokens].

    A block of f frames has (f - 1) // 2 + 1 positions after the convolutions, and half as many tokens. A full block has
    an even number of positions, so no token straddles two blocks.

    Raises:
        MediaError: another number of mel bins than the encoder takes.
    """
    if cfg.n_window % 2:
        raise ConfigError(f"audio_config: n_window = {cfg.n_window} must be even, so that a block holds whole tokens.")
    size, per_block = cfg.block_frames, cfg.n_window // 2
    blocks: list[np.ndarray] = []
    rows: list[np.ndarray] = [np.zeros(0, np.int64)]
    for mel in mels:
        if mel.shape[0] != cfg.num_mel_bins:
            raise MediaError(
                f"Mel features {mel.shape} do not fit the audio encoder, which takes ({cfg.num_mel_bins}, frames).\n"
                "Use the preprocessor_config.json of the same checkpoint."
            )
        first = len(blocks)
        blocks += [mel[:, start : start + size].T for start in range(0, mel.shape[1], size)]
        tokens = [((len(block) - 1) // 2 + 1) // 2 for block in blocks[first:]]
        assert sum(tokens) == audio_tokens(mel.shape[1])
        rows += [(first + i) * per_block + np.arange(n) for i, n in enumerate(tokens)]
    return blocks, np.concatenate(rows)


def pack_audio(mels: Sequence[np.ndarray], cfg: AudioEncoderConfig) -> AudioBatch:
    """Cut mel features, float32 [mel bins, L] each, into blocks; see `cut_into_blocks`.

    Raises:
        CapacityError: more blocks than the largest bucket.
        MediaError: another number of mel bins than the encoder takes.
    """
    blocks, rows = cut_into_blocks(mels, cfg)
    total = bucket(len(blocks), BUCKETS.audio_blocks, "audio blocks")
    packed = np.zeros((total, cfg.block_frames, cfg.num_mel_bins), np.float32)
    frames = np.zeros(total, np.int32)
    for i, block in enumerate(blocks):
        packed[i, : len(block)] = block
        frames[i] = len(block)
    return AudioBatch(mel=packed, frames=frames, rows=rows.astype(np.int32))


@dataclass(frozen=True, eq=False)
class WindowSorted:
    """Patches of some items, frame by frame and within each frame window by window, padded to P.

    patches: float32 [P, patch dim], zeros after the real ones. coordinates: int32 [P, 2], patch row and column.
    rows: int32 [tokens]; of each merged token in checkpoint order, its place among the P / 4 window-ordered ones.
    windows, frames: int64; how many patches each window and each frame has, one after the other.
    """

    patches: np.ndarray
    coordinates: np.ndarray
    rows: np.ndarray
    windows: np.ndarray
    frames: np.ndarray


def sort_by_window(items: Sequence[Patches], total: int, cfg: VisionEncoderConfig) -> WindowSorted:
    """Lay the patches of all items end to end in an axis of `total`, those of an attention window side by side.

    Windows are squares of `cfg.window_cells` merged cells within one frame, smaller at the right and lower border. Full
    attention spans one frame. Nothing reaches across frames or items.

        frame of 6 x 10 cells  ->  cells 0 1 2 3 10 11 12 13 20 ... | 4 5 6 7 14 ... | 8 9 18 19 ... | 40 41 ...
    """
    unit = cfg.spatial_merge_size**2
    cells = np.zeros((total // unit, unit * cfg.patch_dim), np.float32)
    coordinates = np.zeros((total // unit, unit, 2), np.int32)
    rows = np.zeros(sum(len(item.pixels) for item in items) // unit, np.int32)
    windows, frames = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    done = 0  # cells of the items before
    for item in items:
        groups, height, width = item.grid
        in_frame, sizes = _window_order(
            height // cfg.spatial_merge_size, width // cfg.spatial_merge_size, cfg.window_cells
        )
        order = (np.arange(groups)[:, None] * len(in_frame) + in_frame).ravel()
        here = slice(done, done + len(order))
        np.take(item.pixels.reshape(len(order), -1), order, axis=0, out=cells[here], mode="clip")
        coordinates[here] = np.tile(_coordinates(height, width, cfg.spatial_merge_size)[in_frame], (groups, 1, 1))
        rows[here][order] = np.arange(done, done + len(order))
        windows.append(np.tile(sizes, groups) * unit)
        frames.append(np.full(groups, height * width))
        done += len(order)
    return WindowSorted(
        patches=cells.reshape(total, cfg.patch_dim),
        coordinates=coordinates.reshape(total, 2),
        rows=rows,
        windows=np.concatenate(windows),
        frames=np.concatenate(frames),
    )


def pack_vision(items: Sequence[Patches], cfg: VisionEncoderConfig) -> VisionBatch:
    """Sort the patches of all items by attention window (`sort_by_window`) and say who attends to whom.

    Raises:
        CapacityError: more patches, windows or frames than the largest bucket.
        MediaError: pixels that do not fit their grid or the encoder.
    """
    real = sum(checked_patches(item, cfg) for item in items)
    total = bucket(real, BUCKETS.patches, "vision patches")
    packed = sort_by_window(items, total, cfg)

    # Many pictures of P patches have P / 64 windows and a few more; one W for all of them spares compilations.
    window_size = cfg.window_cells**2 * cfg.spatial_merge_size**2
    window_count = bucket(max(len(packed.windows), total // window_size), BUCKETS.windows, "attention windows")
    window_slots, window_home = run_table(packed.windows, window_count, window_size, total)
    frame_slots, frame_home = frame_tables(packed.frames, total)
    return VisionBatch(
        patches=packed.patches,
        coordinates=packed.coordinates,
        window_slots=window_slots,
        window_home=window_home,
        frame_slots=frame_slots,
        frame_home=frame_home,
        valid=np.arange(total) < real,
        rows=packed.rows,
    )


def pack_batch(
    requests: Sequence[Request], config: OmniConfig, *, chunk: int, pad_token_id: int | None = None
) -> OmniInputs:
    """Pad requests to a common shape.

    Args:
        chunk: prompts are prefilled this many tokens at a time; T is a multiple of it.
        pad_token_id: fills up the rows; the checkpoint's own (or 0) when None. No real token sees it.

    Raises:
        CapacityError: more requests, longer prompts or more media than the largest bucket.
    """
    if not requests:
        raise ValueError("pack_batch needs at least one request")
    thinker = config.thinker_config
    if pad_token_id is None:
        pad_token_id = thinker.source.get("pad_token_id") or 0
    longest = max(len(request.token_ids) for request in requests)
    bucket(longest, BUCKETS.cache, "prompt tokens")
    batch = bucket(len(requests), BUCKETS.batch, "requests")
    length = max(1, -(-longest // chunk)) * chunk

    token_ids = np.full((batch, length), pad_token_id, np.int32)
    position_ids = np.zeros((3, batch, length), np.int32)
    lengths, next_position = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
    for i, request in enumerate(requests):
        n = len(request.token_ids)
        token_ids[i, :n] = request.token_ids
        position_ids[:, i, :n] = request.position_ids
        lengths[i], next_position[i] = n, request.next_position

    mels = [mel for request in requests for mel in request.audio]
    items = [item for request in requests for item in request.vision]
    audio = pack_audio(mels, thinker.audio_config) if mels else None
    vision = pack_vision(items, thinker.vision_config) if items else None
    shape = batch, length
    return OmniInputs(
        token_ids=token_ids,
        position_ids=position_ids,
        lengths=lengths,
        next_position=next_position,
        audio=audio,
        vision=vision,
        audio_source=_sources([request.audio_row for request in requests], audio and audio.rows, shape),
        vision_source=_sources([request.vision_row for request in requests], vision and vision.rows, shape),
    )


def _sources(request_rows: Sequence[np.ndarray], rows: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """Rows within each request -> places in the encoder's output, which holds the requests one after the other."""
    sources = np.full(shape, -1, np.int32)
    done = 0
    for i, own in enumerate(request_rows):
        here = np.flatnonzero(own >= 0)
        if len(here):
            sources[i, here] = rows[done + own[here]]
            done += len(here)
    assert done == (0 if rows is None else len(rows)), "tokens and features of a request disagree"
    return sources


def checked_patches(item: Patches, cfg: VisionEncoderConfig) -> int:
    """Patches of one item, once its pixels are known to fit its grid and the model."""
    groups, height, width = item.grid
    count = groups * height * width
    if item.pixels.shape != (count, cfg.patch_dim) or height % cfg.spatial_merge_size or width % cfg.spatial_merge_size:
        raise MediaError(
            f"Patches {item.pixels.shape} with grid {item.grid} do not fit the vision encoder, which takes "
            f"({count}, {cfg.patch_dim}) and sides in multiples of {cfg.spatial_merge_size}.\n"
            "Use the preprocessor_config.json of the same checkpoint."
        )
    return count


def _window_order(height: int, width: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of one frame (height x width, counted row by row), window after window; and the cells in each window."""
    row, column = np.divmod(np.arange(height * width), width)
    window = (row // side) * -(-width // side) + column // side
    return np.argsort(window, kind="stable"), np.bincount(window)


def _coordinates(height: int, width: int, merge: int) -> np.ndarray:
    """[cells, merge^2, 2]: row and column of each patch of a frame, cell by cell."""
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    cells = grid.reshape(height // merge, merge, width // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, merge * merge, 2)


def run_table(sizes: np.ndarray, count: int, width: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Spread consecutive runs of patches over the rows of a table, one run in each.

    sizes [2, 1], count 3, width 2, total 4  ->  slots [[0, 1], [2, 4], [4, 4]], home [0, 1, 2, 0]
    """
    real = int(sizes.sum())
    group = np.repeat(np.arange(len(sizes)), sizes)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    home = np.zeros(total, np.int32)
    home[:real] = group * width + np.arange(real) - start
    slots = np.full(count * width, total, np.int32)
    slots[home[:real]] = np.arange(real)
    return slots.reshape(count, width), home


def frame_tables(sizes: np.ndarray, total: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """As `run_table` for consecutive frames, in one table for each octave of frame sizes."""
    starts, octave = np.cumsum(sizes) - sizes, np.array([int(size).bit_length() for size in sizes])
    tables, home, offset = [], np.zeros(total, np.int32), 0
    for each in sorted(set(octave.tolist())):
        chosen = np.flatnonzero(octave == each)
        width = bucket(int(sizes[chosen].max()), BUCKETS.patches, "patches in one frame")
        count = bucket(len(chosen), BUCKETS.frames, "video frame pairs")
        table = np.full((count, width), total, np.int32)
        for row, frame in enumerate(chosen):
            held = np.arange(starts[frame], starts[frame] + sizes[frame])
            table[row, : len(held)] = held
            home[held] = offset + row * width + np.arange(len(held))
        tables.append(table)
        offset += table.size
    return tuple(tables), home
