"""One conversation as numpy arrays: token ids, positions, mel features and patches, before padding.

Two doors: `prepare` takes messages and reads the media; `assemble` takes token ids that hold one placeholder per
medium, and features that are already there. Training examples go through the same rooms: `open_medium`,
`media_features`, `place_parts`.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import chat, media, tmrope
from input_pipeline.mel import log_mel, num_mel_frames
from input_pipeline.patches import Patches, frame_size, image_patches, smart_resize, video_patches
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig, ProcessorConfig, ThinkerConfig
from omni_jax.errors import CapacityError, ConfigError, MediaError, PromptError

_REMEDIES = {
    "image": "fewer pixels per image (image_max_pixels)",
    "video": "a lower fps or fewer pixels per frame (video_max_pixels), or a shorter film",
    "audio": "a shorter clip",
    "text": "a shorter text",
}


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt without padding.

    token_ids: int32 [T]. position_ids: int32 [3, T] (time, height, width).
    next_position: position of the first token to be generated, in all three rows.
    audio: mel features float32 [mel bins, L] of each clip or sound track, in order of appearance.
    vision: patches of each image or film, in order of appearance.
    seconds_per_grid: for each of `vision`, the time from one frame group to the next, None for an image.
    audio_row, vision_row: int32 [T]; which row of this request's audio tokens, or of its merged vision tokens (both
        joined in order of appearance, films frame by frame), belongs at this place; -1 at other tokens.
    stage_seconds: how long each step of the preparation took.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    next_position: int
    audio: tuple[np.ndarray, ...]
    vision: tuple[Patches, ...]
    seconds_per_grid: tuple[float | None, ...]
    audio_row: np.ndarray
    vision_row: np.ndarray
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """A film for `assemble`. `mel`, float32 [mel bins, L]: its sound, to be heard with the pictures."""

    patches: Patches
    seconds_per_grid: float
    mel: np.ndarray | None = None


def prepare(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    config: OmniConfig,
    processor: ProcessorConfig,
    *,
    use_audio_in_video: bool = False,
    add_generation_prompt: bool = True,
    add_vision_id: bool = False,
    add_audio_id: bool = False,
    max_tokens: int | None = None,
) -> Request:
    """Turn messages (see `chat.render`) into a request: read media, compute features, place tokens.

    Args:
        use_audio_in_video: hear the sound tracks of films that do not say `use_audio` themselves.
        max_tokens: largest prompt to accept; never more than the model's `max_position_embeddings`.

    Raises:
        PromptError: malformed messages.
        MediaError: a medium cannot be read, or a film that should be heard has no sound track.
        CapacityError: the prompt is too long; raised as soon as sizes are known, before features are computed.
        ConfigError: tokenizer and model disagree about a control token.
    """
    thinker, seconds = config.thinker_config, {}
    check_control_tokens(tokenizer, thinker)
    with _timed(seconds, "text"):
        segments = chat.render(
            messages,
            tokenizer,
            add_generation_prompt=add_generation_prompt,
            add_vision_id=add_vision_id,
            add_audio_id=add_audio_id,
        )
    budget = _Budget(thinker, max_tokens)
    budget.add("text", "text", sum(len(s.ids) for s in segments if isinstance(s, chat.TextSegment)))
    opened: list[OpenMedium] = []
    with _timed(seconds, "load"):
        for segment in segments:
            if isinstance(segment, chat.MediaSegment):
                opened.append(open_medium(segment, thinker, processor, use_audio_in_video))
                budget.add(opened[-1].name, segment.kind, tmrope.token_count(opened[-1].part, _merge(thinker)))
    with _timed(seconds, "features"):
        mels, patches = media_features(opened, processor)
    remaining = iter(opened)
    parts = [tmrope.Text(s.ids) if isinstance(s, chat.TextSegment) else next(remaining).part for s in segments]
    return place_parts(parts, mels, patches, thinker, seconds)


def assemble(
    token_ids: Sequence[int],
    config: OmniConfig,
    *,
    audio: Sequence[np.ndarray] = (),
    images: Sequence[Patches] = (),
    videos: Sequence[VideoFeatures] = (),
    max_tokens: int | None = None,
) -> Request:
    """Turn ids with one placeholder per medium, inside its begin and end markers, into a request.

    Args:
        token_ids: as `chat.placeholder_ids` makes them.
        audio: mel features float32 [mel bins, L] of the clips (not of sound tracks), in order of appearance.
        images, videos: in order of appearance.

    Raises:
        PromptError: placeholders and media differ in number, or a placeholder stands outside its markers.
        CapacityError: the prompt is too long.
    """
    thinker = config.thinker_config
    ids = [int(i) for i in token_ids]
    kinds = {
        thinker.audio_token_id: "audio",
        thinker.image_token_id: "image",
        thinker.video_token_id: "video",
    }
    places = [(place, kinds[token]) for place, token in enumerate(ids) if token in kinds]
    _check_counts(places, {"audio": len(audio), "image": len(images), "video": len(videos)})
    budget = _Budget(thinker, max_tokens)
    budget.add("text", "text", len(ids) - 3 * len(places))
    queues = {"audio": iter(audio), "image": iter(images), "video": iter(videos)}
    parts: list[tmrope.Part] = []
    mels: list[np.ndarray] = []
    patches: list[Patches] = []
    seen: Counter[str] = Counter()
    done = 0
    for place, kind in places:
        _check_markers(ids, place, kind, thinker)
        feature = next(queues[kind])
        seen[kind] += 1
        name = f"{kind} {seen[kind]}"
        part = _part(feature, kind, name)
        parts += [tmrope.Text(ids[done : place - 1]), part]
        done = place + 2
        budget.add(name, kind, tmrope.token_count(part, _merge(thinker)))
        sound = feature if kind == "audio" else getattr(feature, "mel", None)
        mels += [] if sound is None else [sound]
        if kind != "audio":
            patches.append(feature.patches if kind == "video" else feature)
    return place_parts([*parts, tmrope.Text(ids[done:])], mels, patches, thinker, {})


def audio_tokens(mel_frames: int) -> int:
    """Tokens (40 ms) that the audio encoder makes of a clip of 10 ms mel frames."""
    return (mel_frames + 1) // 4


class _Budget:
    """Counts tokens by item and complains as soon as they are too many."""

    def __init__(self, thinker: ThinkerConfig, max_tokens: int | None):
        positions = thinker.text_config.max_position_embeddings
        self._limit, self._reason = positions, f"the model's {positions} positions (max_position_embeddings)"
        if max_tokens is not None and max_tokens < positions:
            self._limit, self._reason = max_tokens, f"max_tokens = {max_tokens}"
        self._items: list[tuple[str, str, int]] = []

    def add(self, name: str, kind: str, tokens: int) -> None:
        self._items.append((name, kind, tokens))
        total = sum(tokens for *_, tokens in self._items)
        if total <= self._limit:
            return
        table = "\n".join(f"  {tokens:8d}  {name}" for name, _, tokens in self._items)
        remedies = dict.fromkeys(_REMEDIES[kind] for _, kind, _ in reversed(self._items))
        raise CapacityError(
            f"The prompt needs at least {total} tokens, more than {self._reason}. Tokens so far:\n{table}\n"
            f"Try {'; '.join(remedies)}."
        )


@dataclass(frozen=True, eq=False)
class OpenMedium:
    """A medium that is decoded, so that its size is known, and whose features are not yet computed.

    name: its path or place, for messages. part: what it takes of the prompt. waveform: float32 [W], of a clip or of a
    film that is heard. image: uint8 [H, W, 3]. frames: uint8 [T, H, W, 3].
    """

    name: str
    part: tmrope.Part
    waveform: np.ndarray | None = None
    image: np.ndarray | None = None
    frames: np.ndarray | None = None


def open_medium(
    segment: chat.MediaSegment, thinker: ThinkerConfig, processor: ProcessorConfig, use_audio_in_video: bool
) -> OpenMedium:
    """Decodes a medium and finds out its size.

    Raises:
        MediaError: it cannot be read, or a film that should be heard has no sound track.
    """
    name = _name(segment)
    side, rate = processor.patch_size, processor.sampling_rate
    if segment.kind == "audio":
        waveform = media.load_audio(segment.source, sampling_rate=rate, max_seconds=processor.max_audio_seconds)
        return OpenMedium(name, tmrope.Audio(_waveform_tokens(waveform, processor, name)), waveform=waveform)
    if segment.kind == "image":
        image = media.load_image(segment.source)
        bounds = processor.image_min_pixels, processor.image_max_pixels
        height, width = smart_resize(*image.shape[:2], side * processor.merge_size, *bounds, name=name)
        return OpenMedium(name, tmrope.Image((1, height // side, width // side)), image=image)

    want_audio = use_audio_in_video if segment.use_audio is None else segment.use_audio
    if want_audio and not isinstance(segment.source, tuple) and not media.has_audio_track(segment.source):
        raise _silent_film(name, segment)  # before the pictures are decoded
    video = media.load_video(segment.source, processor, fps=segment.fps, want_audio=want_audio)
    if want_audio and video.audio is None:
        raise _silent_film(name, segment)
    pair = processor.temporal_patch_size
    groups = -(-len(video.frames) // pair)
    height, width = frame_size(*video.frames.shape[1:3], groups * pair, processor, name=name)
    sound = _waveform_tokens(video.audio, processor, name) if want_audio else None
    part = tmrope.Video((groups, height // side, width // side), pair * video.seconds_per_frame, sound)
    return OpenMedium(name, part, waveform=video.audio if want_audio else None, frames=video.frames)


def media_features(opened: Sequence[OpenMedium], processor: ProcessorConfig) -> tuple[list[np.ndarray], list[Patches]]:
    """Mel features float32 [mel bins, L] of all sound, and patches of all pictures and films, in order."""
    mels, patches = [], []
    for item in opened:
        if item.waveform is not None:
            mels.append(log_mel(item.waveform, processor, name=item.name))
        if item.image is not None:
            patches.append(image_patches(item.image, processor, name=item.name))
        if item.frames is not None:
            patches.append(video_patches(item.frames, processor, name=item.name))
    return mels, patches


def place_parts(
    parts: Sequence[tmrope.Part],
    mels: Sequence[np.ndarray],
    patches: Sequence[Patches],
    thinker: ThinkerConfig,
    seconds: dict[str, float],
) -> Request:
    """Lays the parts out and joins them with their features.

    Raises:
        CapacityError: films reach beyond the model's positions.
    """
    with _timed(seconds, "layout"):
        layout = tmrope.layout(parts, thinker)
    positions = thinker.text_config.max_position_embeddings
    if layout.next_position > positions:
        raise CapacityError(
            f"The prompt has {len(layout.token_ids)} tokens, but its films reach position {layout.next_position} of "
            f"{positions}.\nTry a shorter film."
        )
    return Request(
        token_ids=layout.token_ids,
        position_ids=layout.position_ids,
        next_position=layout.next_position,
        audio=tuple(mels),
        vision=tuple(patches),
        seconds_per_grid=tuple(
            getattr(part, "seconds_per_grid", None) for part in parts if isinstance(part, (tmrope.Image, tmrope.Video))
        ),
        audio_row=layout.audio_row,
        vision_row=layout.vision_row,
        stage_seconds=seconds,
    )


def _part(feature: Any, kind: str, name: str) -> tmrope.Part:
    if kind == "audio":
        return tmrope.Audio(_mel_tokens(feature.shape[1], name))
    if kind == "image":
        return tmrope.Image(feature.grid)
    sound = None if feature.mel is None else _mel_tokens(feature.mel.shape[1], name)
    return tmrope.Video(feature.patches.grid, feature.seconds_per_grid, sound)


def _check_counts(places: Sequence[tuple[int, str]], given: Mapping[str, int]) -> None:
    asked = Counter(kind for _, kind in places)
    wrong = [kind for kind in given if asked[kind] != given[kind]]
    if wrong:
        counts = "; ".join(f"{asked[kind]} {kind} placeholders, {given[kind]} given" for kind in wrong)
        raise PromptError(
            f"The prompt and its media do not match: {counts}.\n"
            "Give one medium per placeholder, in order of appearance."
        )


def _check_markers(ids: Sequence[int], place: int, kind: str, thinker: ThinkerConfig) -> None:
    if kind == "audio":
        markers = thinker.audio_start_token_id, thinker.audio_end_token_id
    else:
        markers = thinker.vision_start_token_id, thinker.vision_end_token_id
    around = (ids[place - 1] if place else None), (ids[place + 1] if place + 1 < len(ids) else None)
    if around != markers:
        raise PromptError(
            f"Token {place}: the {kind} placeholder stands between {around[0]} and {around[1]}, but it belongs between "
            f"the markers {markers[0]} and {markers[1]}.\nWrite one placeholder per medium, inside its own markers."
        )


def check_control_tokens(tokenizer: Tokenizer, thinker: ThinkerConfig) -> None:
    """Raises `ConfigError` where tokenizer and model disagree about the tokens of media."""
    expected = {
        "<|AUDIO|>": thinker.audio_token_id,
        "<|IMAGE|>": thinker.image_token_id,
        "<|VIDEO|>": thinker.video_token_id,
        "<|audio_bos|>": thinker.audio_start_token_id,
        "<|audio_eos|>": thinker.audio_end_token_id,
        "<|vision_bos|>": thinker.vision_start_token_id,
        "<|vision_eos|>": thinker.vision_end_token_id,
    }
    for name, token_id in expected.items():
        if tokenizer.token_id(name) != token_id:
            raise ConfigError(
                f"{name} is {tokenizer.token_id(name)} in the tokenizer but {token_id} in config.json.\n"
                "Take both from the same checkpoint."
            )


def _waveform_tokens(waveform: np.ndarray, processor: ProcessorConfig, name: str) -> int:
    return _mel_tokens(num_mel_frames(len(waveform), processor), name)


def _mel_tokens(mel_frames: int, name: str) -> int:
    if audio_tokens(mel_frames) == 0:
        raise MediaError(
            f"{name}: {mel_frames} mel frames are too short for one audio token.\n"
            "Give at least 3 frames (more than 20 ms), or append silence."
        )
    return audio_tokens(mel_frames)


def _silent_film(name: str, segment: chat.MediaSegment) -> MediaError:
    option = "--use-audio-in-video was given" if segment.use_audio is None else '"use_audio" asks for it'
    return MediaError(f"{name} has no sound track, but {option}.\nLeave the option out, or add a sound track.")


def _name(segment: chat.MediaSegment) -> str:
    source = segment.source
    if isinstance(source, (str, Path)) and not str(source).startswith("data:"):
        return str(source)
    return f"{segment.kind} of {segment.where}"


def _merge(thinker: ThinkerConfig) -> int:
    return thinker.vision_config.spatial_merge_size


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
