"""What a training step is fed: packed rows of examples, as numpy arrays of fixed shapes.

Every field leads with the batch axis B, so that a batch is cut into hosts, devices and micro-batches by rows alone.
A row holds several examples end to end, told apart by segment ids (1, 2, …; 0 is padding). Media lie beside their row:

    token_ids     │ text … <audio> <audio> … text │ text … <image> … text │ padding
    segment_ids   │ 1  1  1  1  1  1  1  1  1  1  │ 2  2  2  2  2  2  2  │ 0  0  0
    audio_source  │-1 -1  0  1  2 …     -1 -1 -1  │-1 …                   │ -1      places among the row's audio tokens
    vision_source │-1 …                           │-1 -1  0  1 …          │ -1      places among its vision tokens
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class AudioBlocks:
    """Sound of each row in blocks of 2 s, G a row. mel float32 [B, G, F, M]; frames int32 [B, G], 0 for padding."""

    mel: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True, eq=False)
class VisionPatches:
    """Pictures and film frames of each row, P patches a row, sorted by attention window.

    patches: float32 [B, P, patch dim]. coordinates: int32 [B, P, 2], patch row and column.
    window, frame: int32 [B, P, 2]; a patch sees the patches from [..., 0] up to, not with, [..., 1]: those of its
        window, or of its whole frame. A patch of padding sees itself.
    """

    patches: np.ndarray
    coordinates: np.ndarray
    window: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True, eq=False)
class SpeechTrack:
    """What the Talker reads and writes, U positions a row; see `omni_jax/models/talker.py` for its two tracks.

    text_source: int32 [B, U], the place in the Thinker's row whose hidden state and embedding are heard here (without
        the embedding where that place is a medium); -1 where none is.
    text_token: int32 [B, U], a token whose Thinker embedding is heard instead (speaker's row, end of text, padding);
        -1 where none is.
    codes: int32 [B, U], the code that is fed, -1 for none. labels: the code to be written; weights: float32, 0 where
        none is. position_ids: int32 [B, 3, U]. segment_ids: int32 [B, U]. task_ids: int32 [B, U].
    """

    text_source: np.ndarray
    text_token: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    task_ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs of answers within a row, Q a row: segment ids of its `SpeechTrack`, 0 where there is no pair.

    chosen, rejected: int32 [B, Q]. reference_chosen, reference_rejected: float32 [B, Q], summed log-probabilities under
    the reference policy.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    reference_chosen: np.ndarray
    reference_rejected: np.ndarray


@dataclass(frozen=True, eq=False)
class OmniBatch:
    """Packed rows of T tokens. Position t predicts labels[:, t], the next token, with weight weights[:, t].

    token_ids, segment_ids, labels, task_ids: int32 [B, T]; task_ids number the sources, for losses by source.
    weights: float32 [B, T]. position_ids: int32 [B, 3, T] (time, height, width), counted anew in each segment.
    audio_source: int32 [B, T], place among the row's G * (n_window / 2) audio tokens, -1 at other tokens.
    vision_source: int32 [B, T], place among the row's P / 4 merged patches, -1 at other tokens.
    audio, vision: None only in runs that never have any: a row without is padding, of the same shape as others.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    task_ids: np.ndarray
    audio_source: np.ndarray
    vision_source: np.ndarray
    audio: AudioBlocks | None = None
    vision: VisionPatches | None = None
    speech: SpeechTrack | None = None
    preferences: Preferences | None = None


@dataclass(frozen=True)
class RowShape:
    """Room in one row. Zero for a kind of which a run has none: its field of the batch is then None.

    tokens T (a power of two divides well over meshes); audio_blocks G; patches P (a multiple of 64);
    speech U positions of the Talker; pairs Q.
    """

    tokens: int
    audio_blocks: int = 0
    patches: int = 0
    speech: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class Sizes:
    """What one example takes of a row, the units of `RowShape`."""

    tokens: int
    audio_blocks: int = 0
    patches: int = 0
    speech: int = 0
    pairs: int = 0


@dataclass(frozen=True, eq=False)
class SpeechExample:
    """One spoken answer: the token of its voice, and codes without start or end."""

    voice_token: int
    codes: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation (or a part of it, cut at a turn) ready to be packed; see `Request` for the shared fields.

    token_ids: int32 [T]; position_ids: int32 [3, T]; weights: float32 [T], of each token as a *target* (1 for the
        words of assistant turns and their end, 0 elsewhere).
    reply: start and stop, in token_ids, of the text that `speech` says: the last assistant turn without its markers.
    speech: nothing, one spoken answer, or for preferences two, chosen and rejected.
    reference: summed log-probabilities of both under the reference policy, once known.
    """

    name: str  # file and line or record, for messages
    token_ids: np.ndarray
    position_ids: np.ndarray
    weights: np.ndarray
    audio: tuple  # mel features of each clip, float32 [mel bins, L]
    vision: tuple  # input_pipeline.patches.Patches
    audio_row: np.ndarray
    vision_row: np.ndarray
    task: int = 0
    reply: tuple[int, int] | None = None
    speech: tuple[SpeechExample, ...] = ()
    reference: tuple[float, float] | None = None
