"""Batches of recordings for training the speech tokenizer, the DiT and the vocoder, as numpy arrays of fixed shapes.

Every field leads with the batch axis B. Lengths that do not fill their row are padded, and said:

    one code    20 ms    320 samples at 16 kHz, 480 at 24 kHz    2 mel frames
    one block   2 s      200 mel frames, 100 codes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from input_pipeline.mel import log_mel
from input_pipeline.speech_mel import MEL_16K, MEL_24K, speech_mel
from omni_jax.config import ProcessorConfig
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


@dataclass(frozen=True, eq=False)
class VoicedCodes:
    """Codes, the mel they stand for, and the voice it is in.

    codes: int32 [B, C]. mel: float32 [B, 2 · C, bins]. lengths: int32 [B], mel frames that are real.
    ref_mel: float32 [B, R, bins], another recording of the voice, all of it real. speaker: float32 [B, E], its vector.
    """

    codes: np.ndarray
    mel: np.ndarray
    lengths: np.ndarray
    ref_mel: np.ndarray
    speaker: np.ndarray


@dataclass(frozen=True, eq=False)
class SoundedMel:
    """A mel and its sound. mel: float32 [B, T, bins]. waveform: float32 [B, 240 · T], 24 kHz. lengths: int32 [B],
    frames that are real; 0 for a row that does not count. What lies beyond them is silence."""

    mel: np.ndarray
    waveform: np.ndarray
    lengths: np.ndarray


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
        raise DataError(f"{name} has {len(mel)} mel frames, over the {most} of {blocks} blocks. Cut it shorter.")
    padded = np.zeros((most, mel.shape[1]), np.float32)
    padded[: len(mel)] = mel
    frames = np.clip(len(mel) - BLOCK_FRAMES * np.arange(blocks), 0, BLOCK_FRAMES)
    return padded.reshape(blocks, BLOCK_FRAMES, -1), frames.astype(np.int32)


def coded_speech(
    clips: Sequence[tuple[np.ndarray, np.ndarray]], blocks: int, processor: ProcessorConfig
) -> CodedSpeech:
    """From (16 kHz waveform, the codes it was made of) of each row.

    Raises:
        DataError: a clip is too long, or its codes are not of its length.
    """
    rows = [mel_blocks(waveform, blocks, processor, name=f"Clip {i}") for i, (waveform, _) in enumerate(clips)]
    codes = np.full((len(clips), blocks * BLOCK_FRAMES // 2), -1, np.int32)
    for i, (waveform, own) in enumerate(clips):
        if abs(len(waveform) - 320 * len(own)) >= 320:
            raise DataError(
                f"Clip {i}: {len(waveform)} samples at 16 kHz are {len(waveform) / 320:.1f} codes long, but "
                f"{len(own)} codes are given. Give the sound that these codes made, resampled to 16 kHz."
            )
        codes[i, : len(own)] = own
    return CodedSpeech(np.stack([mel for mel, _ in rows]), np.stack([frames for _, frames in rows]), codes)


def transcribed_speech(
    clips: Sequence[tuple[np.ndarray, np.ndarray, Sequence[int]]],
    blocks: int,
    labels: int,
    processor: ProcessorConfig,
) -> TranscribedSpeech:
    """From (16 kHz waveform to hear, 16 kHz waveform to restore, labels of the text) of each row.

    The waveform to hear may be in another voice (`augment.random_speaker`): then codes learn to leave the voice out.

    Raises:
        DataError: a clip is too long, the two waveforms differ in length, or a text has too many labels.
    """
    rows, text = [], np.zeros((len(clips), labels), np.int32)
    target = np.full((len(clips), blocks * BLOCK_FRAMES, MEL_16K.num_mel_bins), np.log(MEL_16K.floor), np.float32)
    for i, (heard, original, ids) in enumerate(clips):
        name = f"Clip {i}"
        if len(heard) != len(original):
            raise DataError(f"{name}: {len(heard)} samples to hear and {len(original)} to restore. Make them equal.")
        if len(ids) > labels or min(ids, default=1) < 1:
            raise DataError(f"{name}: {len(ids)} labels; give at most {labels}, all above 0, which is the blank.")
        rows.append(mel_blocks(heard, blocks, processor, name=name))
        mel = speech_mel(original, MEL_16K, name=name)
        target[i, : len(mel)], text[i, : len(ids)] = mel, ids
    return TranscribedSpeech(np.stack([mel for mel, _ in rows]), np.stack([frames for _, frames in rows]), text, target)


UTF8_LABELS = 257  # with the blank


def utf8_labels(text: str) -> list[int]:
    """Labels of a text of any script, without a vocabulary: its UTF-8 bytes, from 1 to 256."""
    return [byte + 1 for byte in text.encode()]


def voiced_codes(clips: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], length: int) -> VoicedCodes:
    """From (codes, their 24 kHz waveform, mel of another recording of the voice, speaker vector) of each row.

    Args:
        length: codes of a row, C.

    Raises:
        DataError: more codes than that, or codes that are not of the waveform's length.
    """
    codes = np.zeros((len(clips), length), np.int32)
    mel = np.zeros((len(clips), 2 * length, MEL_24K.num_mel_bins), np.float32)
    for i, (own, waveform, _, _) in enumerate(clips):
        if len(own) > length or abs(len(waveform) - 480 * len(own)) >= 480:
            raise DataError(
                f"Clip {i}: {len(own)} codes and {len(waveform)} samples at 24 kHz ({len(waveform) / 480:.1f} codes). "
                f"Give sound of the codes' length, and at most {length} codes."
            )
        waveform = np.pad(waveform, (0, max(0, 480 * len(own) - len(waveform))))[: 480 * len(own)]
        codes[i, : len(own)], mel[i, : 2 * len(own)] = own, speech_mel(waveform, name=f"Clip {i}")
    lengths = np.asarray([2 * len(own) for own, *_ in clips], np.int32)
    ref_mels, speakers = (np.stack([np.asarray(clip[j], np.float32) for clip in clips]) for j in (2, 3))
    return VoicedCodes(codes, mel, lengths, ref_mels, speakers)


def sounded_mel(waveforms: Sequence[np.ndarray], frames: int) -> SoundedMel:
    """From 24 kHz recordings, of which whole frames are used, at most `frames` each."""
    mel = np.full((len(waveforms), frames, MEL_24K.num_mel_bins), np.log(MEL_24K.floor), np.float32)
    sound = np.zeros((len(waveforms), frames * MEL_24K.hop_length), np.float32)
    lengths = np.zeros(len(waveforms), np.int32)
    for i, waveform in enumerate(waveforms):
        own = speech_mel(waveform, name=f"Clip {i}")[:frames]
        samples = len(own) * MEL_24K.hop_length
        mel[i, : len(own)], sound[i, :samples], lengths[i] = own, waveform[:samples], len(own)
    return SoundedMel(mel, sound, lengths)
