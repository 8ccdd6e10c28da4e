"""The sound of a batch of utterances, as their codes come.

    codes   push ─► [12 codes] [12 codes] [12 codes] …
    mel             block 0 once block 1 is there, block 1 once block 2 is there, …; the last at the end
    sound           0 … 40 ms with block 0, then 240 ms a block; the last with all that is left

Each block of mel is one window of the DiT, and each gives one window of the vocoder. A window is a pure function of
its codes, its voice, its seed and its place, so it does not matter how the codes came, and what is held is bounded:
the codes of 4 blocks and the mel of 3. Block 0 has nothing before it: its windows are shorter, and heard sooner.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from omni_jax.models import dit
from omni_jax.models.bigvgan import samples_per_frame
from omni_jax.models.dit_block import block_codes, context_blocks
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling.sound_programs import mel_windows, vocode_windows
from omni_jax.sampling.voices import Speaker

if TYPE_CHECKING:
    from omni_jax.sampling.token2wav import Token2Wav

_Item = TypeVar("_Item")
WINDOWS_PER_CALL = (8, 4, 2, 1)  # the programs are compiled for these, as they are first needed


@dataclass(frozen=True, eq=False)
class PendingSound:
    """One block's share of a row's sound: work that is under way.

    Args:
        row: which utterance.
        start: its first sample in the utterance.
        count: its samples; may be 0 for a block whose frames all wait for their context.
        last: the row's sound ends here.
        mel: float32 [24, M] on the device, natural log: the block that this sound came from. It lies up to the
            vocoder's context ahead of the sound. None for an utterance without codes.
        mel_frames: how many frames of it are real.
    """

    row: int
    start: int
    count: int
    last: bool
    mel: jax.Array | None
    mel_frames: int
    _sound: jax.Array | None = field(repr=False, default=None)  # [W, S] of all windows of the call
    _place: int = field(repr=False, default=0)

    @property
    def samples(self) -> jax.Array | None:
        """The device's array that this sound is a part of; None without sound."""
        return self._sound

    def wait(self) -> np.ndarray:
        """float32 [count] in [-1, 1], 24 kHz, once the device has it."""
        if not self.count:
            return np.zeros(0, np.float32)
        return np.array(np.asarray(self._sound)[self._place, : self.count])


@dataclass
class Work:
    """What has been done so far."""

    mel_windows: int = 0
    vocoder_windows: int = 0
    calls: int = 0  # of either program


@dataclass
class _Row:
    voice: dit.Voice
    seed: int
    options: FlowOptions
    codes: list[int] = field(default_factory=list)  # from `first` on
    first: int = 0
    pushed: int = 0
    next_block: int = 0
    mel: deque[jax.Array] = field(default_factory=deque)  # of the last blocks
    closed: bool = False  # no more codes will come
    ended: bool = False  # the end of its sound is on its way


@dataclass(frozen=True)
class _Window:
    """One block that can be computed. Frames count from the start of the DiT's window."""

    row: int
    block: int
    codes: np.ndarray  # [48], or [24] for block 0
    frames: int
    end: int | None  # frames of the utterance, if the block is its last


class SoundStreams:
    """Utterances that are decoded together; see `Token2Wav.block` for one that is complete."""

    def __init__(
        self,
        token2wav: "Token2Wav",
        speakers: Sequence[Speaker],
        seeds: Sequence[int],
        options: FlowOptions | Sequence[FlowOptions] = dit.DEFAULT_OPTIONS,
        *,
        batched: bool | None = None,
        seconds: dict[str, float] | None = None,
    ):
        """
        Args:
            speakers: one for each row.
            seeds: int32, of the noise.
            options: of all rows, or one for each.
            batched: windows that are ready together, of one row or of many, go up to 8 in a call. The sound is within
                1e-5 of that of one window a call, which repeats bit for bit. None: unless on a CPU.
            seconds: if given, `dispatch` waits for both stages and adds their time to "dit" and "bigvgan".

        Raises:
            ValueError: not one speaker, seed and set of options for each row.
        """
        rows = len(speakers)
        options = [options] * rows if isinstance(options, FlowOptions) else list(options)
        if not len(seeds) == len(options) == rows:
            raise ValueError(f"{rows} speakers, {len(seeds)} seeds and {len(options)} options do not match")
        self.token2wav, self.work = token2wav, Work()
        self._batched = jax.default_backend() != "cpu" if batched is None else batched
        self._seconds = seconds
        config = token2wav.config.dit_config
        self._config, self._codes = config, block_codes(config)
        self._back, self._ahead = context_blocks(config)
        kept = token2wav.plan.blocks
        self._rows = [
            _Row(token2wav.voice(speaker), int(seed), option, mel=deque(maxlen=kept))
            for speaker, seed, option in zip(speakers, seeds, options)
        ]

    def push(self, row: int, codes: Sequence[int] | np.ndarray, last: bool = False) -> None:
        """The next codes of a row, any number of them; `last` says that there are no more. Host only.

        Raises:
            OmniError: a code that the DiT has no row for; the error counts from the first code of this call. Nothing
                has been taken then.
            ValueError: the row has had its last codes.
        """
        state = self._rows[row]
        if state.closed:
            raise ValueError(f"Row {row} has had its last codes; start new streams for another utterance")
        codes = np.asarray(codes)
        if codes.size:
            dit.check_codes(codes, self._config)
            state.codes.extend(codes.tolist())
            state.pushed += len(codes)
        state.closed = last

    def dispatch(self) -> list[PendingSound]:
        """Starts all work that the codes so far allow, and returns without waiting for the device.

        A row's sounds come in order, each where the one before it ended; rows take turns.
        """
        sounds = []
        for number, row in enumerate(self._rows):
            if row.closed and not row.pushed and not row.ended:
                row.ended = True
                sounds.append(PendingSound(number, 0, 0, True, None, 0))
        ready = sorted(
            (window for number in range(len(self._rows)) for window in self._ready(number)),
            key=lambda window: window.block,  # the first sounds of all rows before the second of any
        )
        # Windows can share a call if they have the same options and the same shape.
        kinds = [(window.block == 0, self._rows[window.row].options) for window in ready]
        for kind in dict.fromkeys(kinds):
            for part in self._parts([window for window, own in zip(ready, kinds) if own == kind]):
                sounds += self._compute(part, *kind)
        return sounds

    @property
    def held_bytes(self) -> int:
        """Bytes of codes (int32) and mel that are kept for what is still to come."""
        return sum(4 * len(row.codes) + sum(block.nbytes for block in row.mel) for row in self._rows)

    def _ready(self, number: int) -> Iterator[_Window]:
        """Takes the windows of a row whose codes are all there, and drops the codes that none will need again."""
        row, size, repeats = self._rows[number], self._codes, self._config.repeats
        while row.next_block * size < row.pushed:
            back = self._back if row.next_block else 0
            start, stop = (row.next_block - back) * size, (row.next_block + 1 + self._ahead) * size
            if not row.closed and row.pushed < stop:
                return
            own = row.codes[max(start, 0) - row.first : stop - row.first]
            before = max(-start, 0)  # places before the start of the utterance
            codes = np.zeros(stop - start, np.int32)
            codes[before : before + len(own)] = own
            last = row.closed and (row.next_block + 1) * size >= row.pushed
            end = row.pushed * repeats if last else None
            yield _Window(number, row.next_block, codes, (before + len(own)) * repeats, end)

            row.next_block += 1
            keep = row.pushed if last else max(0, (row.next_block - self._back) * size)
            del row.codes[: keep - row.first]
            row.first = keep

    def _parts(self, windows: list[_Item]) -> Iterator[list[_Item]]:
        """Runs of windows of the sizes that there are programs for."""
        while windows:
            size = next(size for size in WINDOWS_PER_CALL if size <= len(windows)) if self._batched else 1
            yield windows[:size]
            windows = windows[size:]

    def _compute(self, windows: list[_Window], first: bool, options: FlowOptions) -> Iterator[PendingSound]:
        """Sound of windows that share a call of the DiT; `first`: all of them are block 0 of their rows.

        A row's blocks must come in order.
        """
        token2wav, rows = self.token2wav, [self._rows[window.row] for window in windows]
        mels = self._timed(
            "dit",
            lambda: mel_windows(
                token2wav.dit,
                token2wav.modulation(options),
                np.stack([window.codes for window in windows]),
                np.asarray([window.block for window in windows], np.int32),
                np.asarray([window.frames for window in windows], np.int32),
                tuple(row.voice for row in rows),
                np.asarray([row.seed for row in rows], np.int32),
                config=self._config,
                options=options,
                back=0 if first else self._back,
            ),
        )
        self.work.mel_windows += len(windows)

        plan, known = token2wav.plan, []
        spans = [plan.span(window.block, window.end) for window in windows]
        for window, row, mel in zip(windows, rows, mels):
            row.mel.append(mel)
            known.append(list(row.mel))  # what the vocoder's window of this block sees
            if window.end is not None:
                row.mel.clear()
        sounds: dict[int, tuple[jax.Array, int]] = {}
        for part in self._parts([i for i, (first, stop) in enumerate(spans) if stop > first]):
            waveforms = self._vocode([windows[i] for i in part], [known[i] for i in part])
            sounds.update((i, (waveforms, place)) for place, i in enumerate(part))

        hop = samples_per_frame(token2wav.config.bigvgan_config)
        for i, (window, mel, (first, stop)) in enumerate(zip(windows, mels, spans)):
            real = min(self._config.block_size, (window.end or math.inf) - window.block * self._config.block_size)
            last = window.end is not None
            yield PendingSound(
                window.row, first * hop, (stop - first) * hop, last, mel, int(real), *sounds.get(i, (None, 0))
            )

    def _vocode(self, windows: list[_Window], known: list[list[jax.Array]]) -> jax.Array:
        """Waveforms [W, S] of windows that share a call of the vocoder."""
        plan, size = self.token2wav.plan, self._config.block_size
        starts = [plan.start(window.block) for window in windows]
        ends = [(window.block + 1) * size if window.end is None else window.end for window in windows]
        # After block 0, a window that is not full yet is filled up with what lies beyond its length.
        count = 1 if windows[0].block == 0 else plan.blocks
        filled = tuple(tuple(blocks + [blocks[-1]] * (count - len(blocks))) for blocks in known)
        firsts = [plan.span(window.block, window.end)[0] for window in windows]
        self.work.vocoder_windows += len(windows)
        return self._timed(
            "bigvgan",
            lambda: vocode_windows(
                self.token2wav.bigvgan,
                filled,
                np.asarray(ends, np.int32) - np.asarray(starts, np.int32),
                np.asarray(firsts, np.int32) - np.asarray(starts, np.int32),
                config=self.token2wav.config.bigvgan_config,
                frames=plan.spoken,
            ),
        )

    def _timed(self, stage: str, call: Callable[[], Any]) -> Any:
        self.work.calls += 1
        if self._seconds is None:
            return call()
        started = time.perf_counter()
        out = jax.block_until_ready(call())
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started
        return out
