"""`omni-jax chat`: one question, or a conversation in the terminal."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from omni_jax.cli import console
from omni_jax.cli.conversation import Answerer
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import OmniError, PromptError
from omni_jax.sampling.options import SamplingOptions

KINDS = ("image", "audio", "video")

_HELP = """Type a message and press Enter.
  /image PATH  /audio PATH  /video PATH   send a file with the next message (an empty line sends it alone)
  /reset   forget the conversation and the files
  /quit    leave
  /help    this list"""


@dataclass(frozen=True)
class ChatArgs:
    """Ask about text, pictures, sound and films.

    With a prompt, answers once. Without one, opens a conversation; /help there lists its commands.
    In a prompt, pictures come first, then sound, then films, then the text, each in the order given.

    example:
      omni-jax chat --checkpoint omni-3b --image cat.jpg --text "What is this?"
      omni-jax chat --checkpoint omni-3b --video talk.mp4 --use-audio-in-video --text "What does she say?" --stream
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import wrote."""
    text: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """What to ask."""
    image: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE")] = ()
    """A picture: png, jpg, webp, gif, bmp."""
    audio: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE")] = ()
    """A recording: wav, flac, mp3, ogg, m4a, or the sound track of a film."""
    video: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE")] = ()
    """A film: mp4, webm, mkv, avi."""
    use_audio_in_video: bool = False
    """Hear the sound tracks of the films."""
    fps: float | None = None
    """Pictures a second that are taken of a film. None is the checkpoint's own rate."""
    system: str | None = None
    """The system message. None is the model's usual one."""
    stream: bool = False
    """Print the answer while it is made."""
    json: bool = False
    """End standard output with one JSON object: text, tokens, audio_path, seconds of each stage."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and computation. None is float32 on a CPU, bfloat16 elsewhere."""
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)


def run(args: ChatArgs) -> int:
    imported_checkpoint(args.checkpoint)
    content = [item(kind, source, args.fps) for kind in KINDS for source in getattr(args, kind)]
    content += [{"type": "text", "text": text} for text in args.text]
    answerer = Answerer(args.checkpoint, dtype=args.dtype, use_audio_in_video=args.use_audio_in_video)
    return _once(args, answerer, content) if content else _converse(args, answerer)


def item(kind: str, source: str, fps: float | None = None) -> dict[str, Any]:
    """A medium as an item of a message, after a look whether the file is there.

    Raises:
        MediaError: it is missing, empty, or may not be read.
    """
    from input_pipeline.media_source import media_file

    media_file(source)
    return {"type": kind, kind: source} | ({"fps": fps} if kind == "video" and fps is not None else {})


def _once(args: ChatArgs, answerer: Answerer, content: list[dict[str, Any]]) -> int:
    out = console.Output(args.json)
    messages = [*_opening(args), {"role": "user", "content": content}]
    answer = answerer.answer(messages, args.sampling, _printer(out) if args.stream else None)
    out.write("" if args.stream else answer.text)
    out.result(answer.as_json())
    return console.OK


def _converse(args: ChatArgs, answerer: Answerer) -> int:
    """A conversation with whoever types, or with lines from a pipe. A turn that fails leaves no trace in it."""
    out, terminal = console.Output(args.json), sys.stdin.isatty()
    _ = answerer.sampler  # better to wait before the first question than after it
    if terminal:
        console.note(_HELP)
    history, attached = _opening(args), []
    for line in _lines(terminal):
        try:
            command, _, rest = line.strip().partition(" ")
            if command == "/quit":
                break
            elif command == "/help":
                console.note(_HELP)
            elif command == "/reset":
                history, attached = _opening(args), []
            elif command[1:] in KINDS and command.startswith("/"):
                if not rest.strip():
                    raise PromptError(f"{command} needs the path of a file, for example: {command} PATH")
                attached.append(item(command[1:], _path(rest), args.fps))
            elif command.startswith("/"):
                raise PromptError(f"There is no command {command}. /help lists them.")
            elif line.strip() or attached:
                text = [{"type": "text", "text": line.strip()}] if line.strip() else []
                turn = {"role": "user", "content": attached + text}
                attached = []
                # answers come as they are made: somebody is waiting
                answer = answerer.answer([*history, turn], args.sampling, _printer(out))
                out.write("")
                out.result(answer.as_json())
                history = [*history, turn, {"role": "assistant", "content": answer.text}]
        except OmniError as error:
            console.note(console.describe(error))
        except KeyboardInterrupt:
            console.note("\nStopped. This turn is forgotten.")
    return console.OK


def _path(typed: str) -> str:
    """A path as people type or drop it: with a leading ~, or in quotes."""
    typed = typed.strip()
    if len(typed) > 2 and typed[0] == typed[-1] and typed[0] in "'\"":
        typed = typed[1:-1]
    return os.path.expanduser(typed)


def _lines(terminal: bool) -> Iterator[str]:
    if not terminal:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text shall not end the conversation
        yield from sys.stdin
        return
    import readline  # noqa: F401  gives `input` line editing

    while True:
        try:
            yield input("> ")
        except EOFError:
            console.note("")  # the shell's prompt gets a line of its own
            return
        except KeyboardInterrupt:  # gives up the line, not the conversation
            console.note("\n/quit or Ctrl-D leaves.")


def _opening(args: ChatArgs) -> list[dict[str, Any]]:
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def _printer(out: console.Output):
    return lambda text: out.write(text, end="")
