"""A conversation in turns: checked, measured, and cut between exchanges where it is too long for a row.

    system │ user assistant │ user assistant │ user assistant
             └ exchange 0 ┘   └ exchange 1 ┘   └ exchange 2 ┘  (the last one may be spoken)

Consecutive exchanges go into one piece as long as they fit; each piece begins with the system turn. A spoken answer
stays with the last exchange and hears what came before it in the same piece, as the words do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import chat, media, tmrope
from input_pipeline.example_context import ExampleContext, add, excess
from input_pipeline.media_source import is_missing
from input_pipeline.mel import num_mel_frames
from input_pipeline.request import OpenMedium, media_features, open_medium, place_parts
from input_pipeline.spoken import Spoken, take_speech
from input_pipeline.training_batch import Example, RowShape, Sizes
from omni_jax.errors import CapacityError, DataError, MediaError


@dataclass(frozen=True)
class Piece:
    """Exchanges (of a text: tokens) from `start` up to, not with, `stop`, which fit a row together."""

    start: int
    stop: int
    sizes: Sizes


class _Turns:
    """Consecutive turns: their segments, and their media, which are opened when first asked for."""

    def __init__(self, segments: Sequence[chat.Segment], context: ExampleContext):
        self.segments, self._context = segments, context

    @cached_property
    def media(self) -> list[OpenMedium]:
        return [_opened(s, self._context) for s in self.segments if isinstance(s, chat.MediaSegment)]

    @cached_property
    def parts(self) -> list[tmrope.Part]:
        opened = iter(self.media)
        return [tmrope.Text(s.ids) if isinstance(s, chat.TextSegment) else next(opened).part for s in self.segments]

    @property
    def targets(self) -> list[bool]:
        return [isinstance(s, chat.TextSegment) and s.target for s in self.segments]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each part."""
        merge = self._context.config.thinker_config.vision_config.spatial_merge_size
        return [tmrope.token_count(part, merge) for part in self.parts]

    @cached_property
    def sizes(self) -> Sizes:
        block = self._context.config.thinker_config.audio_config.block_frames
        sounds = [medium.waveform for medium in self.media if medium.waveform is not None]
        frames = [num_mel_frames(len(sound), self._context.processor) for sound in sounds]
        grids = [part.grid for part in self.parts if isinstance(part, (tmrope.Image, tmrope.Video))]
        return Sizes(
            tokens=sum(self.lengths),
            audio_blocks=sum(-(-each // block) for each in frames),
            patches=sum(int(np.prod(grid)) for grid in grids),
        )


class Dialogue:
    """A conversation with roles. Media are opened only as far as a question needs them."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], context: ExampleContext):
        """`messages` in the one form of `messages.one_form`.

        Raises:
            DataError: wrong roles, malformed items or speech, or nothing to learn.
        """
        self._context, self._messages = context, list(messages)
        _check_roles(self._messages)
        self._has_system = self._messages[0]["role"] == "system"
        turns = self._messages[self._has_system :]
        self._spoken: Spoken | None = None
        self._learn: list[bool] = []  # of each exchange
        self._exchanges: list[_Turns] = []
        for i in range(0, len(turns), 2):
            number = i + 1 + self._has_system
            _check_no_speech(turns[i], f"message {number}")
            answer, spoken = take_speech(turns[i + 1], f"message {number + 1}", context)
            if spoken is not None:
                if i + 2 < len(turns):
                    raise DataError(f"message {number + 1}: only the last answer can be spoken.")
                self._spoken = spoken
            segments = self._rendered(turns[i], number) + self._rendered(answer, number + 1)
            self._exchanges.append(_Turns(segments, context))
            self._learn.append(turns[i + 1].get("loss", True))
        self._system = _Turns(self._system_segments(), context)
        if not any(self._learned(range(len(self)))) and self._spoken is None:
            raise DataError('nothing to learn: "loss": false switches every assistant turn off.', "empty mask")

    def __len__(self) -> int:
        return len(self._exchanges)

    def pieces(self, limit: RowShape) -> tuple[list[Piece], list[tuple[int, int, DataError]]]:
        """What becomes examples, and the exchanges (start, stop, why) that cannot."""
        pieces: list[Piece] = []
        refused: list[tuple[int, int, DataError]] = []
        start, group = 0, self._system.sizes
        for i, exchange in enumerate(self._exchanges):
            group = add(group, exchange.sizes)
            if not excess(self._with_speech(group, start, i + 1), limit):
                continue
            if start < i:
                self._close(start, i, pieces, refused)
                start, group = i, add(self._system.sizes, exchange.sizes)
            over = excess(self._with_speech(group, i, i + 1), limit)
            if over:
                refused.append((i, i + 1, _too_long(over, "exchange" if len(self) > 1 else "conversation")))
                start, group = i + 1, self._system.sizes
        if start < len(self):
            self._close(start, len(self), pieces, refused)
        if self._spoken is not None and self._spoken.reference is not None and (len(pieces) > 1 or refused):
            whole = _too_long(excess(self._sizes(0, len(self)), limit), "preference with reference log-probabilities")
            return [], [(0, len(self), whole)]
        return pieces, refused

    def example(self, name: str, start: int, stop: int) -> Example:
        """The exchanges from `start` up to `stop` as an example.

        Raises:
            DataError: a medium cannot be read, or positions go beyond the model's.
        """
        turns = [self._system, *self._exchanges[start:stop]]
        learn = [False, *self._learned(range(start, stop))]
        parts = [part for turn in turns for part in turn.parts]
        lengths = [length for turn in turns for length in turn.lengths]
        marks = [float(mark and learn[i]) for i, turn in enumerate(turns) for mark in turn.targets]
        mels, patches = _features([medium for turn in turns for medium in turn.media], self._context)
        request = _placed(parts, mels, patches, self._context)
        spoken = self._spoken if stop == len(self) else None
        return Example(
            name=name,
            token_ids=request.token_ids,
            position_ids=request.position_ids,
            weights=np.repeat(np.array(marks, np.float32), lengths),
            audio=request.audio,
            vision=request.vision,
            audio_row=request.audio_row,
            vision_row=request.vision_row,
            reply=self._reply(start, stop) if spoken else None,
            speech=spoken.answers if spoken else (),
            reference=spoken.reference if spoken else None,
        )

    def cut(self, start: int, stop: int) -> dict[str, Any]:
        """The same exchanges as a conversation of their own."""
        first = int(self._has_system)
        return {"messages": self._messages[:first] + self._messages[first + 2 * start : first + 2 * stop]}

    def _rendered(self, message: Mapping[str, Any], number: int) -> list[chat.Segment]:
        return chat.render_turn(message, self._context.tokenizer, f"message {number}")

    def _system_segments(self) -> list[chat.Segment]:
        if self._has_system:
            message = self._messages[0]
        elif self._context.default_system is None:
            return []
        else:
            message = {"role": "system", "content": self._context.default_system}
        segments = self._rendered(message, 1)
        if any(isinstance(segment, chat.MediaSegment) for segment in segments):
            raise DataError("message 1: a system turn holds text. Give media to the user.")
        return segments

    def _learned(self, exchanges: range) -> list[bool]:
        """Which exchanges of a piece are learned."""
        return [self._learn[i] and (self._context.train_on == "all" or i == exchanges[-1]) for i in exchanges]

    def _sizes(self, start: int, stop: int) -> Sizes:
        sizes = add(self._system.sizes, *(turn.sizes for turn in self._exchanges[start:stop]))
        return self._with_speech(sizes, start, stop)

    def _with_speech(self, sizes: Sizes, start: int, stop: int) -> Sizes:
        if self._spoken is None or stop < len(self):
            return sizes
        prompt, answers = self._reply(start, stop)[0], self._spoken.answers
        speech = sum(prompt + 2 + len(answer.codes) for answer in answers)
        return replace(sizes, speech=speech, pairs=int(len(answers) == 2))

    def _reply(self, start: int, stop: int) -> tuple[int, int]:
        """Where the words of the last answer lie among the tokens of a piece."""
        last = self._exchanges[stop - 1]
        place = last.targets.index(True)
        before = sum(turn.sizes.tokens for turn in [self._system, *self._exchanges[start : stop - 1]])
        begin = before + sum(last.lengths[:place])
        return begin, begin + last.lengths[place] - 1  # without <|im_end|>

    def _close(self, start: int, stop: int, pieces: list, refused: list) -> None:
        """Adds a piece, unless there is nothing to learn in it or its films reach too far."""
        spoken = self._spoken is not None and stop == len(self)
        if not any(self._learned(range(start, stop))) and not spoken:
            error = DataError("nothing to learn in this part, cut off because of the length.", "empty mask")
            refused.append((start, stop, error))
            return
        turns = [self._system, *self._exchanges[start:stop]]
        try:
            _placed([part for turn in turns for part in turn.parts], [], [], self._context)
        except DataError as error:
            refused.append((start, stop, error))
            return
        pieces.append(Piece(start, stop, self._sizes(start, stop)))


def _check_roles(messages: Sequence[Mapping[str, Any]]) -> None:
    roles = [message["role"] for message in messages]
    for number, role in enumerate(roles, start=1):
        if role not in chat.ROLES:
            raise DataError(f"message {number}: role {role!r} is not known. Use {', '.join(chat.ROLES)}.", "roles")
    turns = roles[1:] if roles[0] == "system" else roles
    wrong = next((i for i, role in enumerate(turns) if role != ("user", "assistant")[i % 2]), None)
    if wrong is None and turns and turns[-1] == "assistant":
        return
    if not turns:
        found = "it holds no turn of a user"
    elif wrong is None:
        found = "it ends with a user"
    else:
        found = f"message {len(roles) - len(turns) + wrong + 1} is {turns[wrong]!r}"
    form = "roles must be an optional system, then user and assistant in turn up to an assistant"
    raise DataError(f"{form}; {found}.", "roles")


def _check_no_speech(message: Mapping[str, Any], where: str) -> None:
    content = message["content"]
    if not isinstance(content, str) and any(item.get("type") == "speech" for item in content):
        raise DataError(f'{where}: an item "speech" is what the assistant says. Give recordings as "audio".')


def _too_long(over: str, what: str) -> DataError:
    return DataError(f"this {what} takes {over}. Neither media nor turns are cut; shorten it.", "too long")


def _opened(segment: chat.MediaSegment, context: ExampleContext) -> OpenMedium:
    try:
        if segment.kind == "video" and segment.use_audio is None:
            heard = context.use_audio_in_video and media.has_audio_track(segment.source)
            segment = replace(segment, use_audio=heard)
        return open_medium(segment, context.config.thinker_config, context.processor, False)
    except MediaError as error:
        raise _bad_medium(segment, error) from error


def _bad_medium(segment: chat.MediaSegment, error: MediaError) -> DataError:
    place = f"{segment.where}: " if isinstance(segment.source, (str, Path)) else f"{segment.kind} of {segment.where}: "
    return DataError(f"{place}{error}", "missing media" if is_missing(segment.source) else "corrupt media")


def _features(opened: Sequence[OpenMedium], context: ExampleContext):
    try:
        return media_features(opened, context.processor)
    except MediaError as error:
        raise DataError(str(error), "corrupt media") from error


def _placed(parts, mels, patches, context: ExampleContext):
    try:
        return place_parts(parts, mels, patches, context.config.thinker_config, {})
    except CapacityError as error:
        raise DataError(str(error), "too long") from error
