"""Batches of recordings for training the speech tokenizer, the DiT and the vocoder, as numpy arrays of fixed shapes.

Every field leads with the batch axis B. Lengths that do not fill their row are padded, and said:

    one code    20 ms    320 samples at 16 kHz, 480 at 24 kHz    2 mel frames
    one block   2 s      200 mel frames, 100 codes

A row is the same thing without the batch axis. An empty one stands where there is no recording, and does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from input_pipeline.mel import log_mel
from input_pipeline.speech_mel import MEL_16K, MEL_24K, speech_mel
from omni_jax.config import ProcessorConfig, SpeechMelConfig
from omni_jax.errors import DataError

CODES_PER_SECOND = 50
BLOCK_FRAMES = 200


@dataclass(frozen=True, eq=False)
class CodedSpeech:
    """Sound and the codes that made it.

    mel: float32 [B, G, F, M], Whisper's log mel in blocks of 2 s. frames: int32 [B, G], valid ones, 0 for padding.
    codes: int32 [B, C], C = F / 2 · G; -1 where there is none.
    """

    mel: np.ndarray
    frames: np.ndarray
    codes: np.ndarray

    @property
    def num_codes(self) -> int:
        """That are real."""
        return int(np.sum(self.codes >= 0))


@dataclass(frozen=True, eq=False)
class TranscribedSpeech:
    """Sound, what is said in it, and the mel that its codes should restore.

    mel, frames: as in `CodedSpeech`. text_ids: int32 [B, S], labels from 1, 0 for padding. target_mel: float32
    [B, T, bins], T = F · G, see `SpeechMelConfig`; valid where `mel` is.
    """

    mel: np.ndarray
    frames: np.ndarray
    text_ids: np.ndarray
    target_mel: np.ndarray

    @property
    def num_codes(self) -> int:
        """That the sound has time for."""
        return int(np.sum((self.frames + 1) // 2))


@dataclass(frozen=True, eq=False)
class VoicedCodes:
    """Codes, the mel they stand for, and the voice it is in.

    codes: int32 [B, C]. mel: float32 [B, 2 · C, bins]. lengths: int32 [B], mel frames that are real.
    ref_mel: float32 [B, R, bins], another recording of the voice, all of it real. speaker: float32 [B, E], its vector.
    Where the length is 0, the row does not count.
    """

    codes: np.ndarray
    mel: np.ndarray
    lengths: np.ndarray
    ref_mel: np.ndarray
    speaker: np.ndarray

    @property
    def num_codes(self) -> int:
        """That are real."""
        return int(np.sum(self.lengths)) // 2


@dataclass(frozen=True, eq=False)
class SoundedMel:
    """A mel and its sound. mel: float32 [B, T, bins]. waveform: float32 [B, 240 · T], 24 kHz. lengths: int32 [B],
    frames that are real; 0 for a row that does not count. What lies beyond them is silence."""

    mel: np.ndarray
    waveform: np.ndarray
    lengths: np.ndarray

    @property
    def num_codes(self) -> int:
        """That the sound has time for."""
        return int(np.sum((self.lengths + 1) // 2))


def stacked(rows: Sequence[Any]) -> Any:
    """The batch of several rows of one kind."""
    kind = type(rows[0])
    return kind(*(np.stack([getattr(row, field.name) for row in rows]) for field in fields(kind)))


def mel_blocks(
    waveform: Float[np.ndarray, " W"], blocks: int, processor: ProcessorConfig, *, name: str = "The recording"
) -> tuple[Float[np.ndarray, "G F M"], Int[np.ndarray, " G"]]:
    """Whisper's log mel of a 16 kHz recording in blocks of 2 s, and the valid frames of each.

    Raises:
        DataError: longer than the blocks. MediaError: no sound, see `log_mel`.
    """
    mel = log_mel(waveform, processor, name=name).T
    most = blocks * BLOCK_FRAMES
    if len(mel) > most:
        message = f"{name} has {len(mel)} mel frames, over the {most} of {blocks} blocks. Cut it shorter."
        raise DataError(message, "too long")
    frames = np.clip(len(mel) - BLOCK_FRAMES * np.arange(blocks), 0, BLOCK_FRAMES)
    return _padded(mel, most).reshape(blocks, BLOCK_FRAMES, -1), frames.astype(np.int32)


def coded_row(
    waveform: Float[np.ndarray, " W"], codes: Int[np.ndarray, " C"], blocks: int, processor: ProcessorConfig
) -> CodedSpeech:
    """A row of a 16 kHz waveform and the codes that it was made of.

    Raises:
        DataError: it is too long, or the codes are not of its length. MediaError: no sound.
    """
    if abs(len(waveform) - 320 * len(codes)) >= 320:
        raise DataError(
            f"{len(waveform)} samples at 16 kHz are {len(waveform) / 320:.1f} codes long, but {len(codes)} codes are "
            "given. Give the sound that these codes made, resampled to 16 kHz."
        )
    mel, frames = mel_blocks(waveform, blocks, processor)
    return CodedSpeech(mel, frames, _padded(codes.astype(np.int32), blocks * BLOCK_FRAMES // 2, -1))


def empty_coded_row(blocks: int, processor: ProcessorConfig) -> CodedSpeech:
    return CodedSpeech(*_no_blocks(blocks, processor), np.full(blocks * BLOCK_FRAMES // 2, -1, np.int32))


def transcribed_row(
    heard: Float[np.ndarray, " W"],
    original: Float[np.ndarray, " W"],
    ids: Sequence[int],
    blocks: int,
    labels: int,
    processor: ProcessorConfig,
) -> TranscribedSpeech:
    """A row of a 16 kHz waveform to hear, a 16 kHz waveform to restore, and the labels of the text.

    The waveform to hear may be in another voice (`augment.random_speaker`): then codes learn to leave the voice out.
    Of both, whole mel frames are used: there would be nothing to restore in a frame that is not whole.

    Raises:
        DataError: too long, the two waveforms differ in length, or there are too many labels. MediaError: no sound.
    """
    if len(heard) != len(original):
        raise DataError(f"{len(heard)} samples to hear and {len(original)} to restore. Make them equal.")
    if len(ids) > labels:
        raise DataError(f"{len(ids)} labels of text; there is room for {labels}. Cut it shorter.", "too long")
    if min(ids, default=1) < 1:
        raise DataError("Labels of text must all be above 0, which is the blank.")
    target = speech_mel(original, MEL_16K)
    mel, frames = mel_blocks(heard[: len(target) * MEL_16K.hop_length], blocks, processor)
    text = _padded(np.asarray(ids, np.int32), labels)
    return TranscribedSpeech(mel, frames, text, _padded(target, blocks * BLOCK_FRAMES, _silence(MEL_16K)))


def empty_transcribed_row(blocks: int, labels: int, processor: ProcessorConfig) -> TranscribedSpeech:
    target = np.full((blocks * BLOCK_FRAMES, MEL_16K.num_mel_bins), _silence(MEL_16K), np.float32)
    return TranscribedSpeech(*_no_blocks(blocks, processor), np.zeros(labels, np.int32), target)


UTF8_LABELS = 257  # with the blank


def utf8_labels(text: str) -> list[int]:
    """Labels of a text of any script, without a vocabulary: its UTF-8 bytes, from 1 to 256."""
    return [byte + 1 for byte in text.encode()]


def voiced_row(
    codes: Int[np.ndarray, " C"],
    waveform: Float[np.ndarray, " W"],
    ref_mel: Float[np.ndarray, "R M"],
    speaker: Float[np.ndarray, " E"],
    length: int,
) -> VoicedCodes:
    """A row of codes, their 24 kHz waveform, the mel of another recording of the voice, and the voice's vector.

    Args:
        length: codes that a row has room for.

    Raises:
        DataError: more codes than that, or codes that are not of the waveform's length. MediaError: no sound.
    """
    count = len(codes)
    if abs(len(waveform) - 480 * count) >= 480:
        raise DataError(
            f"{count} codes and {len(waveform)} samples at 24 kHz ({len(waveform) / 480:.1f} codes). Give sound of the "
            "codes' length."
        )
    if count > length:
        raise DataError(f"{count} codes; a row has room for {length}. Cut it shorter.", "too long")
    mel = speech_mel(_padded(waveform[: 480 * count], 480 * count))
    lengths = np.int32(2 * count)
    voice = ref_mel.astype(np.float32), speaker.astype(np.float32)
    return VoicedCodes(_padded(codes.astype(np.int32), length), _padded(mel, 2 * length), lengths, *voice)


def empty_voiced_row(length: int, ref_frames: int, width: int) -> VoicedCodes:
    bins = MEL_24K.num_mel_bins
    zeros = [np.zeros(shape, np.float32) for shape in ((2 * length, bins), (ref_frames, bins), width)]
    return VoicedCodes(np.zeros(length, np.int32), zeros[0], np.int32(0), *zeros[1:])


def sounded_row(waveform: Float[np.ndarray, " W"], frames: int) -> SoundedMel:
    """A row of a 24 kHz recording, of which whole frames are used, at most `frames`. Raises MediaError: no sound."""
    mel = speech_mel(waveform)[:frames]
    samples, hop = len(mel) * MEL_24K.hop_length, MEL_24K.hop_length
    sound = _padded(waveform[:samples].astype(np.float32), frames * hop)
    return SoundedMel(_padded(mel, frames, _silence(MEL_24K)), sound, np.int32(len(mel)))


def empty_sounded_row(frames: int) -> SoundedMel:
    mel = np.full((frames, MEL_24K.num_mel_bins), _silence(MEL_24K), np.float32)
    return SoundedMel(mel, np.zeros(frames * MEL_24K.hop_length, np.float32), np.int32(0))


def _padded(values: np.ndarray, length: int, fill: float = 0) -> np.ndarray:
    """With `fill` after their end, [length, ...]."""
    out = np.full((length, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out


def _no_blocks(blocks: int, processor: ProcessorConfig) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((blocks, BLOCK_FRAMES, processor.num_mel_bins), np.float32), np.zeros(blocks, np.int32)


def _silence(config: SpeechMelConfig) -> float:
    return float(np.log(config.floor))
