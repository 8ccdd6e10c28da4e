"""`omni-jax chat`: one question, or a conversation in the terminal; answers in text, and in speech where asked for."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from omni_jax.cli import console
from omni_jax.cli.conversation import Answer, Answerer
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.cli.sound_file import SoundFile, check_target
from omni_jax.errors import OmniError, PromptError
from omni_jax.sampling.options import SamplingOptions

KINDS = ("image", "audio", "video")
_CUT_SHORT = {"length": "cut off at its limit", "loop": "ended because it went round in circles"}

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

    With --speech-out the answer is spoken too. In a conversation the answers go to reply.wav, reply-2.wav, ...

    example:
      omni-jax chat --checkpoint omni-3b --image cat.jpg --text "What is this?" --speech-out reply.wav
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
    weights: Literal["int8"] | None = None
    """int8 stores the large matrices so: half the memory of bfloat16, at a small cost in accuracy."""
    mesh: Annotated[str | None, arg(metavar="AXIS=SIZE,...")] = None
    """Split the model over several devices, e.g. tensor=4 or tensor=4,fsdp=2. None is one device."""
    speech_out: Annotated[Path | None, arg(metavar="FILE.wav")] = None
    """Speak the answer into this file (24 kHz)."""
    report: Annotated[Path | None, arg(metavar="FILE.html")] = None
    """A page with the answer, its sound and mel, the codes, and what each stage did when. Speaks, too."""
    no_speech: bool = False
    """Text only, also in the report: no Talker and no vocoder are loaded. So it is without the two options above."""
    voice: str | None = None
    """Who speaks; omni-jax voices lists the names. None is the checkpoint's default."""
    voice_reference: Annotated[Path | None, arg(metavar="FILE")] = None
    """A recording (up to 4 s of it) whose timbre the voice takes on, as far as published weights allow."""
    solver: Literal["rk4", "euler"] = "rk4"
    """Of the flow from codes to mel: rk4 as published, or euler, a quarter of the work at the same --steps."""
    steps: int = 10
    """Time points of the solver, both ends counted."""
    decoder: Literal["block", "full"] = "block"
    """block: sound while the answer is made. full: as published, after the last code."""
    max_codes: int = 4096
    """Longest speech; 50 codes are a second."""
    speech_temperature: float = 0.9
    """Of the draw of codes; 0 is greedy."""
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)

    @property
    def speaks(self) -> bool:
        return not self.no_speech and (self.speech_out is not None or self.report is not None)


def run(args: ChatArgs) -> int:
    imported_checkpoint(args.checkpoint)
    spoken = _speech_options(args)
    content = [item(kind, source, args.fps) for kind in KINDS for source in getattr(args, kind)]
    content += [{"type": "text", "text": text} for text in args.text]
    answerer = Answerer(
        args.checkpoint,
        dtype=args.dtype,
        weights=args.weights,
        mesh=args.mesh,
        use_audio_in_video=args.use_audio_in_video,
        speak=args.speaks,
        voice=args.voice,
        voice_reference=args.voice_reference,
    )
    return _once(args, answerer, content, spoken) if content else _converse(args, answerer, spoken)


def _speech_options(args: ChatArgs):
    """`SpeechOptions` if the answer is to be spoken.

    Raises:
        PromptError: options that contradict each other or are out of range; a file that cannot be written.
        ConfigError: too few steps.
    """
    for path, suffix in ((args.speech_out, ".wav"), (args.report, ".html")):
        if path is not None:
            check_target(path, suffix)
    if args.no_speech and args.speech_out is not None:
        raise PromptError("--no-speech and --speech-out contradict each other. Leave one of them out.")
    if not args.speaks:
        if args.voice is not None or args.voice_reference is not None:
            raise PromptError("A voice was given, but nothing to speak into. Add --speech-out FILE.wav.")
        return None
    from omni_jax.models.flow import FlowOptions
    from omni_jax.sampling.speech_options import CODE_SAMPLING, SpeechOptions

    codes = replace(
        CODE_SAMPLING,
        max_new_tokens=args.max_codes,
        temperature=args.speech_temperature,
        seed=args.sampling.seed,
    )
    return SpeechOptions(codes=codes, flow=FlowOptions(args.solver, args.steps), decoder=args.decoder)


def item(kind: str, source: str, fps: float | None = None) -> dict[str, Any]:
    """A medium as an item of a message, after a look whether the file is there.

    Raises:
        MediaError: it is missing, empty, or may not be read.
    """
    from input_pipeline.media_source import media_file

    media_file(source)
    return {"type": kind, kind: source} | ({"fps": fps} if kind == "video" and fps is not None else {})


def _once(args: ChatArgs, answerer: Answerer, content: list[dict[str, Any]], spoken: Any) -> int:
    out = console.Output(args.json)
    messages = [*_opening(args), {"role": "user", "content": content}]
    answer = _answer(args, answerer, messages, spoken, _printer(out) if args.stream else None, args.speech_out)
    out.write("" if args.stream else answer.text)
    if args.report is not None:
        from omni_jax.cli.report import write_report

        write_report(args.report, messages, answer)
    out.result(answer.as_json())
    return console.OK


def _answer(args: ChatArgs, answerer: Answerer, messages, spoken, on_text, target: Path | None) -> Answer:
    """One answer, its sound in a file as it comes."""
    with ExitStack() as stack:
        file = None if target is None else stack.enter_context(SoundFile(target))
        write = None if file is None else file.write
        answer = answerer.answer(messages, args.sampling, on_text, spoken=spoken, on_sound=write)
    answer.audio_path = target
    if answer.speech_reason in _CUT_SHORT:
        console.note(f"The speech was {_CUT_SHORT[answer.speech_reason]} after {len(answer.codes) / 50:.1f} s.")
    return answer


def _converse(args: ChatArgs, answerer: Answerer, spoken: Any) -> int:
    """A conversation with whoever types, or with lines from a pipe. A turn that fails leaves no trace in it."""
    out, terminal = console.Output(args.json), sys.stdin.isatty()
    if args.report is not None:
        raise PromptError("--report is for one question. Give it with --text, or leave it out.")
    answerer.load()  # better to wait before the first question than after it
    if terminal:
        console.note(_HELP)
    history, attached, turns = _opening(args), [], 0
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
                turns += 1
                target = _numbered(args.speech_out, turns)
                if target is not None:
                    check_target(target, ".wav")
                # answers come as they are made: somebody is waiting
                answer = _answer(args, answerer, [*history, turn], spoken, _printer(out), target)
                out.write("")
                out.result(answer.as_json())
                history = [*history, turn, {"role": "assistant", "content": answer.text}]
        except OmniError as error:
            console.note(console.describe(error))
        except KeyboardInterrupt:
            console.note("\nStopped. This turn is forgotten.")
    return console.OK


def _numbered(path: Path | None, turn: int) -> Path | None:
    """reply.wav, reply-2.wav, reply-3.wav ..."""
    return path if path is None or turn == 1 else path.with_stem(f"{path.stem}-{turn}")


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
