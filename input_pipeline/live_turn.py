"""A user's turn while it is still going on: the prompt in pieces that can be prefilled at once.

    system prompt | <|im_start|>user … <|audio_bos|> 50 audio tokens | 50 | 50 … | 23 <|audio_eos|> … assistant
    at the start    after 2 s                                         4 s  6 s     at the end of the turn

Every piece is a `Request` of its own; joined they are what `request.prepare` makes of the whole turn (except for the
clamp of the mel features, see `live_mel`). That holds by construction: text comes from `chat.render` of the message so
far, and tokens and positions from `tmrope.layout` of the parts so far, whose beginning does not change when the live
part grows. Only what may still change is held back: the end markers, and text not yet followed by a control token.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline import chat, media, tmrope
from input_pipeline.live_frames import FrameSampler
from input_pipeline.live_mel import StreamingMel
from input_pipeline.patches import Patches, image_patches
from input_pipeline.request import Request, audio_tokens, prepare
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import CapacityError, ConfigError, MediaError, PromptError


@dataclass(frozen=True)
class LiveOptions:
    """What the turns of a live conversation have in common.

    system: text of the system message.
    sound, pictures: what may arrive live. With both, they are laid out as a film that is heard: nothing is ready before
        both have begun, and then pictures and sound of two seconds take turns. If only one ever comes, the turn has
        only that.
    rate: samples per second of the sound; None for the model's own.
    maximum: `log_mel_maximum` of the turn's sound where it is known.
    fps, max_pixels: frames taken a second, and largest area of one; None for those of the processor.
    """

    system: str = chat.DEFAULT_SYSTEM_TEXT
    sound: bool = True
    pictures: bool = False
    rate: int | float | None = None
    maximum: float | None = None
    fps: float | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, eq=False)
class _Step:
    """Media that go out together: one block of sound, or the pictures of one chunk."""

    mels: tuple[np.ndarray, ...] = ()
    patches: tuple[Patches, ...] = ()


class LiveTurn:
    """One turn of the user, from its start to the point where the answer begins.

        turn = LiveTurn(tokenizer, config, processor)
        for piece in turn.begin(): prefill(piece)
        while talking:
            for piece in turn.push_audio(samples): prefill(piece)
        for piece in turn.finish(): prefill(piece)

    `Request.audio_row` and `vision_row` count within the piece, so that `packing.pack_batch` takes it; a piece's
    `next_position` is one past the largest position so far. The parts of a turn: text and pictures, then one live
    medium, then text. Errors leave a turn as it was, except for `CapacityError`, which ends it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: OmniConfig,
        processor: ProcessorConfig,
        options: LiveOptions = LiveOptions(),
        *,
        answer_rest: Sequence[int] | None = None,
        position: int = 0,
    ):
        """Starts a turn.

        Args:
            answer_rest: None for the first turn of a conversation. Else it follows an answer whose tokens are in the
                cache, and these are those that are not: none, if only its stop token was left out, which the turn
                writes itself.
            position: of the first token: the `next_position` of the turn before, and one more for each token of the
                answer that is in the cache.

        Raises:
            ConfigError: tokenizer and model disagree about a control token, or the encoder's blocks are no chunks.
            MediaError: a rate, fps, maximum or pixel bound that cannot be.
        """
        thinker = config.thinker_config
        self._tokenizer, self._thinker, self._processor, self._options = tokenizer, thinker, processor, options
        self._position = position
        self._chunk_ids = thinker.position_id_per_seconds * thinker.seconds_per_chunk
        block = thinker.audio_config.block_frames
        self._mel = StreamingMel(processor, rate=options.rate, maximum=options.maximum, block=block)
        self._sampler = FrameSampler(processor, fps=options.fps, max_pixels=options.max_pixels)
        if options.sound and options.pictures:
            self._check_chunks(block)

        system = [{"role": "system", "content": options.system}]
        first = answer_rest is None
        self._messages = system if first else [*system, {"role": "assistant", "content": ""}]
        self._rest = [int(token) for token in answer_rest or ()]
        self._cached = 0  # of what `_messages` render to, the tokens that the conversation has already
        if not first:
            self._cached = len(prepare(system, tokenizer, config, processor).token_ids)
        opening = prepare(self._messages, tokenizer, config, processor, add_generation_prompt=False).token_ids
        self._opening = opening[self._cached :].tolist()

        self._before: list[dict[str, str]] = []  # items of the message, up to the live medium
        self._after: list[dict[str, str]] = []
        self._images: list[tmrope.Part] = []
        self._live: str | None = None  # once it goes out: "audio", "video", or "film" for pictures with sound
        self._mels: deque[np.ndarray] = deque()  # complete, but not yet their turn
        self._groups: deque[Patches] = deque()
        self._groups_taken = 0  # from `_groups`
        self._chunk, self._pictures_next = 0, True  # whose turn it is
        self._grid: tuple[int, int, int] = (0, 0, 0)  # of the film so far
        self._sound_tokens = 0
        self._emitted = self._audio_rows = self._vision_rows = 0  # that have gone out
        self._top = position  # one past the largest position that has gone out
        self._finished = False

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def next_position(self) -> int:
        """One past the largest position that has gone out; after `finish` that of the answer's first token."""
        return self._top

    @property
    def tokens(self) -> int:
        """Tokens that have gone out."""
        return self._emitted

    @property
    def mel_deviation(self) -> float:
        """Bound on how far the mel features are from the offline ones so far; see `StreamingMel.deviation`."""
        return self._mel.deviation

    @property
    def mel_maximum(self) -> float:
        """Loudest point of the sound so far; see `StreamingMel.maximum`."""
        return self._mel.maximum

    def begin(self) -> tuple[Request, ...]:
        """What is certain from the start: the system prompt, or the end of the last answer. Later it goes unasked."""
        self._check_open()
        if self._emitted:
            return ()
        return (self._piece([tmrope.Text(self._rest), tmrope.Text(self._opening)]),)

    def text(self, text: str) -> None:
        """Typed text. Once live sound or pictures have come, it follows them.

        Raises:
            PromptError: not a string of valid Unicode, or the turn has ended.
        """
        self._check_open()
        if not isinstance(text, str):
            raise PromptError(f"Typed text must be a string, not {type(text).__name__}.")
        self._tokenizer.encode(text)
        (self._after if self._started else self._before).append({"type": "text", "text": text})

    def image(self, source: media.ImageSource) -> tuple[Request, ...]:
        """A still picture, sent at once. `source` as for `media.load_image`.

        Raises:
            MediaError: it cannot be read.
            PromptError: live sound or pictures have come already, or the turn has ended.
        """
        self._check_open()
        if self._started:
            raise PromptError(
                "A still picture came after live sound or frames of the same turn. Send it before them, or in the "
                "next turn; or send it as a frame."
            )
        patches = image_patches(media.load_image(source), self._processor)
        self._before.append({"type": "image", "image": "live"})
        self._images.append(tmrope.Image(patches.grid))
        return (self._piece(self._parts(), patches=(patches,), seconds_per_grid=(None,)),)

    def push_audio(self, samples: np.ndarray, rate: int | float | None = None) -> tuple[Request, ...]:
        """Sound, float32 [W] of any length; `rate` of this piece, to be checked against `LiveOptions.rate`.

        Raises:
            MediaError: NaN or infinity, another type, shape or rate, or too much sound.
            PromptError: the turn takes no sound, or has ended.
        """
        self._check_open()
        if not self._options.sound:
            raise PromptError("Sound came, but this turn takes none. Set sound=True in its LiveOptions.")
        self._mels.extend(self._mel.push(samples, rate))
        return tuple(self._send(step, self._kind()) for step in self._steps())

    def push_frame(self, frame: np.ndarray, time: float) -> tuple[Request, ...]:
        """A frame, uint8 [H, W, 3], at `time` seconds of the turn's sound.

        Raises:
            MediaError: another type or shape, a changed size, a time that goes back, or too many frames.
            PromptError: the turn takes no pictures, or has ended.
        """
        self._check_open()
        if not self._options.pictures:
            raise PromptError("A frame came, but this turn takes none. Set pictures=True in its LiveOptions.")
        self._groups.extend(self._sampler.push(frame, time))
        return tuple(self._send(step, self._kind()) for step in self._steps())

    def finish(self) -> tuple[Request, ...]:
        """Ends the turn: what is left of its media, and all up to the answer's first token.

        Raises:
            MediaError: all sound of the turn is too short for one token; the turn can still go on then.
            PromptError: the turn has ended.
        """
        self._check_open()
        if self._mel.seconds:
            blocks = self._mel.finish()
            # one or two frames after the last full block are no token
            self._mels.extend(block for block in blocks if audio_tokens(block.shape[1]))
        self._groups.extend(self._sampler.finish())
        kind = {(True, True): "film", (True, False): "audio"}.get((bool(self._mels), bool(self._groups)), "video")
        pieces, waiting = [], None
        for step in self._steps(final=True):
            if waiting is not None:
                pieces.append(self._send(waiting, kind))
            waiting = step
        if waiting is None:
            pieces.append(self._piece(self._parts(final=True)))
        else:
            pieces.append(self._send(waiting, kind, final=True))
        self._finished = True
        return tuple(pieces)

    @property
    def _started(self) -> bool:
        return self._mel.seconds > 0 or self._sampler.started

    def _kind(self) -> str:
        """Of the live medium, while the turn goes on."""
        if self._options.sound and self._options.pictures:
            return "film"
        return "audio" if self._options.sound else "video"

    def _steps(self, final: bool = False) -> Iterator[_Step]:
        """What can go out now: pictures of chunk 0, sound of chunk 0, pictures of chunk 1, ...

        `final`: no more media will come, so nothing waits for its other half.
        """
        both = self._options.sound and self._options.pictures
        if both and not final and self._live is None and not (self._mels and self._pictures_complete()):
            return  # it is not known yet whether this is a film with sound
        while not final or self._mels or self._groups:
            if self._pictures_next:
                if self._options.pictures and not final and not self._pictures_complete():
                    return
                taken = []
                while self._groups and self._chunk_of(self._groups_taken) == self._chunk:
                    taken.append(self._groups.popleft())
                    self._groups_taken += 1
                self._pictures_next = False
                if taken:
                    yield _Step(patches=tuple(taken))
            else:
                if self._options.sound and not final and not self._mels:
                    return
                self._pictures_next, self._chunk = True, self._chunk + 1
                if self._mels:
                    yield _Step(mels=(self._mels.popleft(),))

    def _pictures_complete(self) -> bool:
        """Whether the next group to come belongs to a later chunk."""
        return self._chunk_of(self._groups_taken + len(self._groups)) > self._chunk

    def _chunk_of(self, group: int) -> int:
        times = tmrope.time_ids(group + 1, self._sampler.seconds_per_grid, self._thinker.position_id_per_seconds)
        return int(times[-1]) // self._chunk_ids

    def _send(self, step: _Step, kind: str, final: bool = False) -> Request:
        self._live = self._live or kind
        self._sound_tokens += sum(audio_tokens(mel.shape[1]) for mel in step.mels)
        if step.patches:
            self._grid = (self._grid[0] + len(step.patches), *step.patches[0].grid[1:])
        withheld = 0 if final else 2 if self._live == "film" else 1  # end markers
        seconds = (self._sampler.seconds_per_grid,) * len(step.patches)
        return self._piece(self._parts(final), withheld, step.mels, step.patches, seconds)

    def _parts(self, final: bool = False) -> list[tmrope.Part]:
        """The turn so far; without the text after the last medium unless it is final."""
        items, parts = list(self._before), list(self._images)
        if self._live is not None:
            kind = "audio" if self._live == "audio" else "video"
            items.append({"type": kind, kind: "live"})
            sound = None if self._live == "video" else self._sound_tokens
            video = tmrope.Video(self._grid, self._sampler.seconds_per_grid, sound)
            parts.append(tmrope.Audio(self._sound_tokens) if kind == "audio" else video)
        if final:
            items += self._after
        messages = [*self._messages, {"role": "user", "content": items}]
        segments = chat.render(messages, self._tokenizer, add_generation_prompt=final)
        media_parts = iter(parts)
        made = [tmrope.Text(s.ids) if isinstance(s, chat.TextSegment) else next(media_parts) for s in segments]
        made[0] = tmrope.Text(made[0].ids[self._cached :])
        return [tmrope.Text(self._rest), *(made if final else made[:-1])]

    def _piece(
        self,
        parts: list[tmrope.Part],
        withheld: int = 0,
        mels: tuple[np.ndarray, ...] = (),
        patches: tuple[Patches, ...] = (),
        seconds_per_grid: tuple[float | None, ...] = (),
    ) -> Request:
        """What `parts` has beyond that which has gone out, but for the last `withheld` tokens."""
        whole = tmrope.layout(parts, self._thinker)
        new = slice(self._emitted, len(whole.token_ids) - withheld)
        position_ids = whole.position_ids[:, new] + np.int32(self._position)
        top = max(self._top, int(position_ids.max(initial=-1)) + 1)
        limit = self._thinker.text_config.max_position_embeddings
        if top > limit:
            self._finished = True
            raise CapacityError(
                f"The conversation reaches position {top}, more than the model's {limit} (max_position_embeddings). "
                "Start a new one; take fewer or smaller frames to get further."
            )
        piece = Request(
            token_ids=whole.token_ids[new],
            position_ids=position_ids,
            next_position=top,
            audio=mels,
            vision=patches,
            seconds_per_grid=seconds_per_grid,
            audio_row=_from(whole.audio_row[new], self._audio_rows),
            vision_row=_from(whole.vision_row[new], self._vision_rows),
        )
        self._emitted, self._top = new.stop, top
        self._audio_rows += int((piece.audio_row >= 0).sum())
        self._vision_rows += int((piece.vision_row >= 0).sum())
        return piece

    def _check_open(self) -> None:
        if self._finished:
            raise PromptError("This turn has ended. Start the next one after the answer.")

    def _check_chunks(self, block: int) -> None:
        if audio_tokens(block) != self._chunk_ids:
            raise ConfigError(
                f"audio_config: a block of {block} mel frames makes {audio_tokens(block)} tokens, but a film's chunk "
                f"has {self._chunk_ids}. Live films with sound need them equal."
            )
        if self._sampler.seconds_per_grid > self._thinker.seconds_per_chunk:
            slowest = self._processor.temporal_patch_size / self._thinker.seconds_per_chunk
            raise MediaError(
                f"live film: at {self._sampler.fps:g} frames a second some chunks would have no picture. With sound "
                f"take at least {slowest:g} a second."
            )


def _from(rows: np.ndarray, first: int) -> np.ndarray:
    """Rows counted from `first` on; -1 stays."""
    return np.where(rows >= 0, rows - first, -1).astype(np.int32)
