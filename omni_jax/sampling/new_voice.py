"""A checkpoint with one voice more: a row of the Thinker's embedding, a speaker vector and a reference mel.

The row is what the Talker hears before it speaks. It begins as that of another voice, so the new one speaks like that
one until talker_speaker has trained its row on recordings; vector and mel, which the DiT hears, count at once.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorstore as ts

from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError, PromptError
from omni_jax.interop.restore import load_checkpoint_info
from omni_jax.interop.write_aside import write_aside
from omni_jax.sampling.voices import FILE, Speaker, choose_speaker, load_speakers, voice_from_recording
from omni_jax.sampling.voices_file import write_voices

WORDS = "thinker/embed/embedding"


@dataclass(frozen=True)
class NewVoice:
    """What is to be added.

    like: the voice that it begins as; None for the default one.
    waveform: mono, 16 kHz, or None for the reference of `like`; vector: see `voice_from_recording`.
    """

    name: str
    like: str | None = None
    waveform: np.ndarray | None = None
    vector: np.ndarray | None = None


def add_voice(source: str | Path, destination: str | Path, new: NewVoice, *, overwrite: bool = False) -> Speaker:
    """Writes a copy of the checkpoint `source` that has the voice too.

    Raises:
        CheckpointError: no checkpoint, one that cannot speak, no free row, or a place that cannot be written.
        PromptError: the name is taken, there is no voice to begin as, or the vector does not fit. MediaError: a bad
            recording.
    """
    source, destination = Path(source).resolve(), Path(destination).resolve()
    config = read_config(source)
    speakers = load_speakers(source, config)
    if not new.name or new.name in speakers:
        raise PromptError(f"The voice {new.name!r} is there already, or is no name. Voices: {', '.join(speakers)}.")
    like = choose_speaker(speakers, new.like)
    voice = like
    if new.waveform is not None:
        voice = voice_from_recording(like, new.waveform, new.vector, name=new.name)
    elif new.vector is not None:
        raise PromptError("A speaker vector was given, but no recording. Both are of one voice: give both.")
    speaker = Speaker(new.name, free_row(source, config, speakers), voice.vector, voice.ref_mel)
    params = load_checkpoint_info(source).params.resolve()
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with write_aside(destination, needs_bytes=size, overwrite=overwrite, keep=source) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        copy_row(folder / params.relative_to(source), like.token_id, speaker.token_id)
        entries = {
            each.name: {"bos_token": each.token_id, "cond": each.vector[None], "ref_mel": each.ref_mel[None]}
            for each in (*speakers.values(), speaker)
        }
        write_voices(folder / FILE, entries)
    return speaker


def free_row(folder: Path, config: OmniConfig, speakers: dict[str, Speaker]) -> int:
    """The first row of the embedding after all that tokens, marks of the Talker and voices use.

    Raises:
        CheckpointError: there is none.
    """
    talker, rows = config.talker_config, config.thinker_config.text_config.vocab_size
    marks = talker.tts_text_start_token_id, talker.tts_text_end_token_id, talker.tts_text_pad_token_id
    used = (Tokenizer.load(folder).vocab_size - 1, *marks, *(each.token_id for each in speakers.values()))
    if max(used) + 1 >= rows:
        raise CheckpointError(f"{folder}: all {rows} rows of the embedding are in use, so there is none for a voice.")
    return max(used) + 1


def copy_row(params: Path, origin: int, target: int) -> None:
    """Copies a row of the stored embedding, in place: of the whole checkpoint no more is read.

    Raises:
        CheckpointError: the embedding is not stored as we and Orbax do.
    """
    key = WORDS.replace("/", ".")
    plain = {"driver": "file", "path": f"{params / key}/"}
    packed = {"driver": "ocdbt", "base": f"file://{params}/", "path": f"{key}/"}
    store = plain if (params / key / ".zarray").is_file() else packed
    try:
        table = ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
        table[target].write(table[origin].read().result()).result()
    except ValueError as error:
        raise CheckpointError(f"{params}: {WORDS} cannot be changed ({str(error).splitlines()[0][:200]}).") from error
