"""TMRoPE: which token and which (time, height, width) position every part of a prompt gets.

One id in time is 40 ms of real time. Technical report, section 2.2; arithmetic of `get_rope_index` of the public model,
to the last id, because that is what the published weights are served with. Two of its habits are therefore kept:
a part begins after the largest id of the *piece written last* (for a film with sound, the last chunk of one track),
and frames more than two seconds apart are torn over several chunks (sample at 1 frame per second or more to avoid it).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omni_jax.config import ThinkerConfig

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    ids: Sequence[int]


@dataclass(frozen=True)
class Audio:
    """A clip of `tokens` audio tokens (40 ms each)."""

    tokens: int


@dataclass(frozen=True)
class Image:
    """`grid` is (1, height, width) in patches."""

    grid: Grid


@dataclass(frozen=True)
class Video:
    """`grid` counts frame groups, and patches down and across; a group lasts `seconds_per_grid`.

    `audio_tokens`: length of the sound track that is heard with the pictures, or None for a silent film.
    """

    grid: Grid
    seconds_per_grid: float
    audio_tokens: int | None = None


Part = Text | Audio | Image | Video


@dataclass(frozen=True)
class Layout:
    """Where everything lies.

    token_ids: int32 [T]; position_ids: int32 [3, T]; next_position: id of the first token to be generated.
    audio_row, vision_row: int32 [T], the how-manieth audio (image or video) token this is, -1 elsewhere.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    next_position: int
    audio_row: np.ndarray
    vision_row: np.ndarray


def layout(parts: Sequence[Part], config: ThinkerConfig) -> Layout:
    """Expand a prompt: markers, placeholders and positions of any mix of parts in any order.

    text text [image of 2 x 3 cells] text  ->
        t  0 1 2 3 3 3 3 3 3 6 7
        h  0 1 2 3 3 3 4 4 4 6 7
        w  0 1 2 3 4 5 3 4 5 6 7

    Text runs may be empty; audio must have at least one token.
    """
    writer = _Writer()
    for part in parts:
        match part:
            case Text(ids):
                writer.count(ids)
            case Audio(tokens):
                writer.count([config.audio_start_token_id])
                writer.piece(config.audio_token_id, _plain_ids(tokens))
                writer.count([config.audio_end_token_id])
            case Image(grid):
                writer.count([config.vision_start_token_id])
                writer.piece(config.image_token_id, _grid_ids(grid, np.zeros(grid[0], np.int64), _merge(config)))
                writer.count([config.vision_end_token_id])
            case Video():
                _write_video(writer, part, config)
    return writer.finish(config)


def token_count(part: Part, merge: int = 2) -> int:
    """Tokens that `layout` writes for a part, markers included."""
    match part:
        case Text(ids):
            return len(ids)
        case Audio(tokens):
            return tokens + 2
        case Image(grid):
            return int(np.prod(grid)) // merge**2 + 2
        case Video(grid, _, audio_tokens):
            sound = 0 if audio_tokens is None else audio_tokens + 2
            return int(np.prod(grid)) // merge**2 + 2 + sound


def time_ids(groups: int, seconds_per_grid: float, ids_per_second: int = 25) -> np.ndarray:
    """Time id of each frame group, int64: float32 products, truncated.

    groups 0, 1, 2 of 2/3 s each  ->  [0, 16, 33]
    """
    return (np.arange(groups, dtype=np.float32) * np.float32(seconds_per_grid) * np.float32(ids_per_second)).astype(
        np.int64
    )


def interleave(video_ids: np.ndarray, audio_ids: np.ndarray, ids_per_chunk: int) -> list[tuple[str, int, int]]:
    """Order of a film's picture and sound tokens: pictures of chunk 0, sound of chunk 0, pictures of chunk 1, ...

    Args:
        video_ids, audio_ids: time id of every token counted from the start of the film, not decreasing.
        ids_per_chunk: ids in one chunk (50 for two seconds).

    Returns:
        ("video" | "audio", start, stop) slices of the two tracks. Tokens and positions both follow this one list.
    """
    video, audio = _chunks(video_ids, ids_per_chunk), _chunks(audio_ids, ids_per_chunk)
    order = []
    for i in range(max(len(video), len(audio))):
        order += [("video", *chunk) for chunk in video[i : i + 1]]
        order += [("audio", *chunk) for chunk in audio[i : i + 1]]
    return order


def _chunks(ids: np.ndarray, ids_per_chunk: int) -> list[tuple[int, int]]:
    """Cut where the ids reach 1, 2, 3, ... chunks. A cut needs a token of its own, also when ids leap over a chunk."""
    cuts = [0]
    while True:
        reached = int(np.searchsorted(ids, len(cuts) * ids_per_chunk))
        cut = max(reached, cuts[-1] + 1)
        if cut >= len(ids):
            return list(zip(cuts, [*cuts[1:], len(ids)], strict=True))
        cuts.append(cut)


def _write_video(writer: "_Writer", part: Video, config: ThinkerConfig) -> None:
    times = time_ids(part.grid[0], part.seconds_per_grid, config.position_id_per_seconds)
    video = _grid_ids(part.grid, times, _merge(config))
    if part.audio_tokens is None:
        writer.count([config.vision_start_token_id])
        writer.piece(config.video_token_id, video)
        writer.count([config.vision_end_token_id])
        return
    audio = _plain_ids(part.audio_tokens)
    writer.together([config.vision_start_token_id, config.audio_start_token_id])
    start = writer.start
    for track, begin, end in interleave(video[0], audio[0], config.position_id_per_seconds * config.seconds_per_chunk):
        token, ids = (config.video_token_id, video) if track == "video" else (config.audio_token_id, audio)
        writer.piece(token, ids[:, begin:end], start)
    writer.together([config.audio_end_token_id, config.vision_end_token_id])


def _merge(config: ThinkerConfig) -> int:
    return config.vision_config.spatial_merge_size


def _plain_ids(n: int) -> np.ndarray:
    """[3, n]: the same count in all three rows."""
    return np.broadcast_to(np.arange(n), (3, n))


def _grid_ids(grid: Grid, times: np.ndarray, merge: int) -> np.ndarray:
    """[3, tokens]: time of the frame group, row and column of the merged cell."""
    t, h, w = np.meshgrid(times, np.arange(grid[1] // merge), np.arange(grid[2] // merge), indexing="ij")
    return np.stack([t.ravel(), h.ravel(), w.ravel()])


class _Writer:
    """Appends pieces. `start` is where the next piece begins: one past the largest id of the piece before."""

    def __init__(self):
        self.start = 0
        self._tokens: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []

    def count(self, ids: Sequence[int]) -> None:
        """Tokens with consecutive ids."""
        self._append(np.asarray(ids, np.int64), _plain_ids(len(ids)) + self.start)

    def together(self, ids: Sequence[int]) -> None:
        """Tokens that share one id."""
        self._append(np.asarray(ids, np.int64), np.full((3, len(ids)), self.start))

    def piece(self, token: int, relative_ids: np.ndarray, start: int | None = None) -> None:
        """Placeholders, with ids counted from `start`."""
        start = self.start if start is None else start
        self._append(np.full(relative_ids.shape[1], token), relative_ids + start)

    def _append(self, tokens: np.ndarray, positions: np.ndarray) -> None:
        if len(tokens):
            self._tokens.append(tokens)
            self._positions.append(positions)
            self.start = int(positions.max()) + 1

    def finish(self, config: ThinkerConfig) -> Layout:
        tokens = np.concatenate([np.zeros(0, np.int64), *self._tokens]).astype(np.int32)
        positions = np.concatenate([np.zeros((3, 0), np.int64), *self._positions], axis=1).astype(np.int32)
        return Layout(
            token_ids=tokens,
            position_ids=positions,
            next_position=int(positions.max(initial=-1)) + 1,
            audio_row=_rows(tokens == config.audio_token_id),
            vision_row=_rows((tokens == config.image_token_id) | (tokens == config.video_token_id)),
        )


def _rows(chosen: np.ndarray) -> np.ndarray:
    """[False, True, True, False, True] -> [-1, 0, 1, -1, 2]"""
    return np.where(chosen, np.cumsum(chosen) - 1, -1).astype(np.int32)
