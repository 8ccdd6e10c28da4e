"""Examples into one row of a training batch, padded to its shape; see `training_batch.py` for what the fields mean.

A spoken answer of R reply tokens r and C codes c, after a prompt of P tokens, becomes U = P + 2 + C positions:

    u         0 … P-1     P        P+1      P+2    …   P+1+n          …   P+1+C
    text      prompt      voice    r_1      r_2        r_n+1, then end of text once, then padding
    codes     none        pad      start    c_1        c_n                c_C
    labels                         c_1      c_2        c_n+1              end of codes
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from input_pipeline.example_context import KINDS, sizes_of
from input_pipeline.packing import checked_patches, cut_into_blocks, sort_by_window
from input_pipeline.patches import Patches
from input_pipeline.plan import WORDS
from input_pipeline.training_batch import (
    AudioBlocks,
    Example,
    OmniBatch,
    Preferences,
    RowShape,
    SpeechExample,
    SpeechTrack,
    VisionPatches,
)
from omni_jax.config import AudioEncoderConfig, OmniConfig, TalkerConfig, VisionEncoderConfig
from omni_jax.errors import CapacityError, DataError


def check_example(
    example: Example, shape: RowShape, config: OmniConfig, *, allow_missing_reference: bool = False
) -> None:
    """Whether an example can be packed at all, so that one that cannot is found out by itself.

    Raises:
        CapacityError: it is larger than a row, or of a kind of which rows have none.
        DataError: its parts disagree, or a pair of answers has no reference.
        MediaError: features that do not fit the encoders.
    """
    sizes, tokens = sizes_of(example, config), len(example.token_ids)
    for kind in KINDS:
        have, room = getattr(sizes, kind), getattr(shape, kind)
        if have > room:
            held = f"a row holds {room}" if room else f"rows have no room for any (RowShape.{kind} is 0)"
            raise CapacityError(f"{example.name}: {have} {WORDS[kind]}, but {held}.")
    arrays = example.position_ids.T, example.weights, example.audio_row, example.vision_row
    if any(len(array) != tokens for array in arrays):
        raise DataError(f"{example.name}: {[len(array) for array in arrays]} entries for {tokens} tokens.")
    encoders = config.thinker_config
    heard = len(cut_into_blocks(example.audio, encoders.audio_config)[1])
    seen = sum(checked_patches(item, encoders.vision_config) for item in example.vision)
    merged = seen // encoders.vision_config.spatial_merge_size**2
    for kind, own, count in (("audio", example.audio_row, heard), ("vision", example.vision_row, merged)):
        if not np.array_equal(np.sort(own[own >= 0]), np.arange(count)):
            raise DataError(f"{example.name}: {(own >= 0).sum()} {kind} tokens for features that make {count}.")
    if not example.speech:
        return
    start, stop = example.reply or (0, 0)
    if not 0 < start < stop <= tokens:
        raise DataError(f"{example.name}: a spoken answer needs words; the reply is tokens {start} to {stop}.")
    if config.talker_config is None:
        raise DataError(f"{example.name}: speech, but the model has no Talker. Leave speech out.")
    if len(example.speech) > 2 or any(not len(answer.codes) for answer in example.speech):
        raise DataError(f"{example.name}: give one spoken answer, or two for preferences, of at least one code.")
    if len(example.speech) == 2 and example.reference is None and not allow_missing_reference:
        raise DataError(
            f"{example.name}: a pair of answers without log-probabilities under the reference policy. "
            "Compute them first and write them as 'reference'."
        )


def pack_row(
    examples: Sequence[Example], shape: RowShape, config: OmniConfig, *, allow_missing_reference: bool = False
) -> OmniBatch:
    """One row, a batch of 1: the examples end to end, then padding. No example at all gives a row of padding.

    Args:
        allow_missing_reference: for the pass that computes reference log-probabilities; unknown ones are then 0.

    Raises:
        CapacityError: the examples together are larger than the row.
        DataError, MediaError: see `check_example`.
    """
    for example in examples:
        check_example(example, shape, config, allow_missing_reference=allow_missing_reference)
    total = {kind: sum(getattr(sizes_of(example, config), kind) for example in examples) for kind in KINDS}
    room = {kind: getattr(shape, kind) for kind in KINDS}
    over = [f"{total[kind]} {WORDS[kind]} into {room[kind]}" for kind in KINDS if total[kind] > room[kind]]
    if over:
        raise CapacityError(f"Examples {', '.join(e.name for e in examples)} do not fit one row: {', '.join(over)}.")

    thinker = config.thinker_config
    starts = np.cumsum([0, *(len(example.token_ids) for example in examples)]).tolist()
    text = _text(examples, starts, shape.tokens)
    audio, heard = _audio(examples, shape.audio_blocks, thinker.audio_config)
    vision, seen = _vision(examples, shape.patches, thinker.vision_config)
    text["audio_source"] = _sources([example.audio_row for example in examples], heard, shape.tokens)
    text["vision_source"] = _sources([example.vision_row for example in examples], seen, shape.tokens)
    speech, preferences = None, None
    if shape.speech:
        speech, segments = _speech(examples, starts, shape.speech, config)
        if shape.pairs:
            preferences = _preferences(examples, segments, shape.pairs)
    return OmniBatch(**text, audio=audio, vision=vision, speech=speech, preferences=preferences)


def stack_rows(rows: Sequence[OmniBatch]) -> OmniBatch:
    """Rows of the same shape as one batch, in their order."""

    def joined(parts: Sequence[Any]) -> Any:
        if parts[0] is None or isinstance(parts[0], np.ndarray):
            return None if parts[0] is None else np.concatenate(parts)
        names = [field.name for field in fields(parts[0])]
        return type(parts[0])(**{name: joined([getattr(part, name) for part in parts]) for name in names})

    return joined(rows)


def _text(examples: Sequence[Example], starts: Sequence[int], length: int) -> dict[str, np.ndarray]:
    row = {name: np.zeros((1, length), np.int32) for name in ("token_ids", "segment_ids", "labels", "task_ids")}
    row |= {"position_ids": np.zeros((1, 3, length), np.int32), "weights": np.zeros((1, length), np.float32)}
    for segment, (example, start) in enumerate(zip(examples, starts), start=1):
        stop = start + len(example.token_ids)
        row["token_ids"][0, start:stop] = example.token_ids
        row["position_ids"][0, :, start:stop] = example.position_ids
        row["segment_ids"][0, start:stop] = segment
        row["task_ids"][0, start:stop] = example.task
        # nothing follows the last token
        row["labels"][0, start : stop - 1] = example.token_ids[1:]
        row["weights"][0, start : stop - 1] = example.weights[1:]
    return row


def _sources(own_rows: Sequence[np.ndarray], places: np.ndarray, length: int) -> np.ndarray:
    """Rows of each example's own features -> places among all features of the row, int32 [1, length]."""
    sources, start, done = np.full((1, length), -1, np.int32), 0, 0
    for own in own_rows:
        here = np.flatnonzero(own >= 0)
        sources[0, start + here] = places[done + own[here]]
        start, done = start + len(own), done + len(here)
    return sources


def _audio(examples: Sequence[Example], count: int, cfg: AudioEncoderConfig) -> tuple[AudioBlocks | None, np.ndarray]:
    """`count` blocks, and of each audio token its place in their flat output."""
    blocks, places = cut_into_blocks([mel for example in examples for mel in example.audio], cfg)
    if not count:
        return None, places
    mel = np.zeros((1, count, cfg.block_frames, cfg.num_mel_bins), np.float32)
    frames = np.zeros((1, count), np.int32)
    for i, block in enumerate(blocks):
        mel[0, i, : len(block)], frames[0, i] = block, len(block)
    return AudioBlocks(mel, frames), places


def _vision(
    examples: Sequence[Example], count: int, cfg: VisionEncoderConfig
) -> tuple[VisionPatches | None, np.ndarray]:
    """`count` patches, and of each vision token its place among the merged ones."""
    if not count:
        return None, np.zeros(0, np.int32)
    return vision_row([item for example in examples for item in example.vision], count, cfg)


def vision_row(items: Sequence[Patches], count: int, cfg: VisionEncoderConfig) -> tuple[VisionPatches, np.ndarray]:
    """Pictures and films as one row of `count` patches, [1, count, ...], and each token's place among the merged."""
    packed = sort_by_window(items, count, cfg)
    window, frame = (_bounds(sizes, count)[None] for sizes in (packed.windows, packed.frames))
    return VisionPatches(packed.patches[None], packed.coordinates[None], window, frame), packed.rows


def _bounds(sizes: np.ndarray, count: int) -> np.ndarray:
    """First and one past the last of the run that each place lies in, int32 [count, 2].

    sizes [2, 1], count 4  ->  [[0, 2], [0, 2], [2, 3], [3, 4]]: padding stands alone
    """
    stops = np.cumsum(sizes)
    real = int(sizes.sum())
    alone = np.arange(real, count)
    first = np.concatenate([np.repeat(stops - sizes, sizes), alone])
    return np.stack([first, np.concatenate([np.repeat(stops, sizes), alone + 1])], axis=1).astype(np.int32)


def _speech(
    examples: Sequence[Example], starts: Sequence[int], length: int, config: OmniConfig
) -> tuple[SpeechTrack, list[list[int]]]:
    """The Talker's row, and the segment ids of each example's answers in it."""
    ids = {name: np.zeros((1, length), np.int32) for name in ("labels", "segment_ids", "task_ids")}
    ids |= {name: np.full((1, length), -1, np.int32) for name in ("text_source", "text_token", "codes")}
    row = ids | {"weights": np.zeros((1, length), np.float32), "position_ids": np.zeros((1, 3, length), np.int32)}
    done, segments, last = 0, [], 0
    for example, start in zip(examples, starts):
        own = []
        for answer in example.speech:
            here = slice(done, done + example.reply[0] + 2 + len(answer.codes))
            for name, values in _spoken(example, answer, start, config.talker_config).items():
                row[name][0, ..., here] = values
            done, last = here.stop, last + 1
            row["segment_ids"][0, here], row["task_ids"][0, here] = last, example.task
            own.append(last)
        segments.append(own)
    return SpeechTrack(**row), segments


def _spoken(example: Example, answer: SpeechExample, start: int, cfg: TalkerConfig) -> dict[str, np.ndarray]:
    """One answer; see the drawing above. `start`: place of the example in its row."""
    prompt, stop = example.reply
    reply, count = stop - prompt, len(answer.codes)
    text_source, text_token = np.full((2, prompt + 2 + count), -1)
    text_source[:prompt] = start + np.arange(prompt)
    text_token[prompt] = answer.voice_token
    said = min(reply, count + 1)  # a short recording may end before its text
    text_source[prompt + 1 : prompt + 1 + said] = start + prompt + np.arange(said)
    after = text_token[prompt + 1 + said :]
    after[:] = cfg.tts_text_pad_token_id
    after[:1] = cfg.tts_text_end_token_id
    codes = np.full(prompt + 2 + count, -1)
    codes[prompt:] = [cfg.tts_codec_pad_token_id, cfg.tts_codec_start_token_id, *answer.codes]
    labels = np.zeros_like(codes)
    labels[prompt + 1 :] = [*answer.codes, cfg.tts_codec_end_token_id]
    weights = np.arange(len(codes)) > prompt
    asked = example.position_ids[:, :prompt]
    spoken = asked.max() + 1 + np.arange(count + 2)
    position_ids = np.concatenate([asked, np.broadcast_to(spoken, (3, len(spoken)))], axis=1)
    return dict(
        text_source=text_source,
        text_token=text_token,
        codes=codes,
        labels=labels,
        weights=weights,
        position_ids=position_ids,
    )


def _preferences(examples: Sequence[Example], segments: Sequence[list[int]], count: int) -> Preferences:
    chosen, rejected = np.zeros((2, 1, count), np.int32)
    reference = np.zeros((2, 1, count), np.float32)
    pairs = [(example, own) for example, own in zip(examples, segments) if len(own) == 2]
    for i, (example, own) in enumerate(pairs):
        chosen[0, i], rejected[0, i] = own
        reference[:, 0, i] = example.reference or 0
    return Preferences(chosen, rejected, *reference)
