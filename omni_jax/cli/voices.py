"""`omni-jax voices`: who can speak, and one more who can."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import PromptError


@dataclass(frozen=True)
class VoicesArgs:
    """List the voices of a checkpoint, or add one.

    A new voice begins with the manner of another one (accent, pace, melody) and takes its timbre from a recording.
    Training by configs/talker_speaker.py, on its speech, gives it a manner of its own.

    example:
      omni-jax voices --checkpoint omni-3b
      omni-jax voices --checkpoint omni-3b --add Anna --like Chelsie --recording anna.wav --to omni-3b-anna
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import or train wrote."""
    add: Annotated[str | None, arg(metavar="NAME")] = None
    """A voice to add, in a copy of the checkpoint."""
    destination: Annotated[Path | None, arg(name="to", metavar="DIR")] = None
    """The copy to write."""
    like: Annotated[str | None, arg(metavar="NAME")] = None
    """The voice that it begins as. None is the checkpoint's default."""
    recording: Annotated[Path | None, arg(metavar="FILE")] = None
    """How it sounds: the first 4 s are kept. None is as --like does."""
    vector: Annotated[Path | None, arg(metavar="FILE.npy")] = None
    """Its speaker vector, if you have the network that computes it (192 numbers). None is that of --like."""
    overwrite: bool = False
    """Replace the folder --to if it holds a checkpoint."""
    json: bool = False
    """End standard output with one JSON object: voices, default; with --add also row, of the embedding, and to."""


def run(args: VoicesArgs) -> int:
    folder, added = imported_checkpoint(args.checkpoint), {}
    out = console.Output(args.json)
    if args.add is not None:
        if args.destination is None:
            raise PromptError("Say where the checkpoint with the new voice shall be written: --to DIR")
        added = _add(args, folder)
        folder = args.destination
        out.write(f"{args.add} is row {added['row']} of the embedding, in {folder}")
    elif any(each is not None for each in (args.destination, args.like, args.recording, args.vector)):
        raise PromptError("--to, --like, --recording and --vector are for a new voice. Name it: --add NAME")
    from omni_jax.config_json import read_config
    from omni_jax.sampling.voices import choose_speaker, load_speakers

    speakers = load_speakers(folder, read_config(folder))
    default = choose_speaker(speakers).name
    for name, speaker in speakers.items():
        seconds = len(speaker.ref_mel) / 100
        out.write(f"{name}{'  (default)' if name == default else ''}  reference of {seconds:g} s")
    out.result({"voices": list(speakers), "default": default} | added)
    return console.OK


def _add(args: VoicesArgs, folder: Path) -> dict[str, Any]:
    from input_pipeline.clip_files import load_array
    from input_pipeline.media import load_audio
    from input_pipeline.voice_mel import RATE
    from omni_jax.sampling.new_voice import NewVoice, add_voice

    vector = None if args.vector is None else load_array(args.vector)
    waveform = None if args.recording is None else load_audio(str(args.recording), sampling_rate=RATE)
    with console.Progress("copying the checkpoint"):
        speaker = add_voice(
            folder, args.destination, NewVoice(args.add, args.like, waveform, vector), overwrite=args.overwrite
        )
    return {"row": speaker.token_id, "to": str(args.destination)}
