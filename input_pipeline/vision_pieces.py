"""A long film in pieces, so that the vision encoder needs memory for one of them only."""

import itertools

import numpy as np

from input_pipeline.packing import BUCKETS, VisionBatch, bucket, frame_tables, run_table


def vision_pieces(batch: VisionBatch, most: int) -> list[tuple[VisionBatch, int]]:
    """Cuts a batch between frames into pieces of at most `most` patches, as far as single frames allow.

    Frames do not see each other, so the pieces can be encoded one after the other, in memory for one of them.

    Returns:
        Each piece, padded like any batch, with the number of its real patches; their tokens, laid end to end, are
        those of the batch. `rows` of a piece are its tokens in their own order.
    """
    real = int(batch.valid.sum())
    if len(batch.patches) <= most:
        return [(batch, real)]
    sizes = [len(frame) for frame in batch.frames()]
    cuts, here = [0], 0
    for size in sizes:
        if here and here + size > most:
            cuts.append(cuts[-1] + here)
            here = 0
        here += size
    cuts.append(real)
    ends = np.cumsum(sizes)
    lengths = (batch.window_slots < len(batch.patches)).sum(axis=1)
    window_ends = np.cumsum(lengths)
    pieces = []
    for start, stop in itertools.pairwise(cuts):
        frames = [size for size, end in zip(sizes, ends) if start < end <= stop]
        windows = lengths[(start < window_ends) & (window_ends <= stop) & (lengths > 0)]
        total = bucket(stop - start, BUCKETS.patches, "vision patches")
        pieces.append((_piece(batch, start, stop, total, windows, np.asarray(frames)), stop - start))
    return pieces


def _piece(
    batch: VisionBatch, start: int, stop: int, total: int, windows: np.ndarray, frames: np.ndarray
) -> VisionBatch:
    width = batch.window_slots.shape[1]
    count = bucket(max(len(windows), total // width), BUCKETS.windows, "attention windows")
    window_slots, window_home = run_table(windows, count, width, total)
    frame_slots, frame_home = frame_tables(frames, total)
    patches = np.zeros((total, batch.patches.shape[1]), batch.patches.dtype)
    coordinates = np.zeros((total, 2), batch.coordinates.dtype)
    patches[: stop - start], coordinates[: stop - start] = batch.patches[start:stop], batch.coordinates[start:stop]
    return VisionBatch(
        patches=patches,
        coordinates=coordinates,
        window_slots=window_slots,
        window_home=window_home,
        frame_slots=frame_slots,
        frame_home=frame_home,
        valid=np.arange(total) < stop - start,
        rows=np.arange((stop - start) * len(batch.rows) // int(batch.valid.sum()), dtype=np.int32),
    )
