"""The `omni-jax` command: finds the subcommand, and imports only that one."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from omni_jax.cli import console
from omni_jax.errors import OmniError


class Command(NamedTuple):
    """A subcommand: `module` has a frozen dataclass `arguments`, whose docstring is the help, and `run(arguments)`."""

    module: str
    arguments: str
    summary: str


COMMANDS = {
    "chat": Command("omni_jax.cli.chat", "ChatArgs", "Ask about text, pictures, sound and films; hear the answer."),
    "voices": Command("omni_jax.cli.voices", "VoicesArgs", "List the voices of a checkpoint, or add one."),
    "import": Command("omni_jax.cli.import_", "ImportArgs", "Turn a published checkpoint into one for JAX."),
    "assemble": Command("omni_jax.cli.assemble", "AssembleArgs", "Begin a model from a language model and encoders."),
    "export": Command("omni_jax.cli.export", "ExportArgs", "Turn a JAX checkpoint into the published form."),
    "prepare": Command("omni_jax.cli.prepare", "PrepareArgs", "Turn conversations and media into training shards."),
    "prefer": Command("omni_jax.cli.prefer", "PreferArgs", "Make pairs of better and worse speech, to train on."),
    "speech-pairs": Command(
        "omni_jax.cli.speech_pairs", "SpeechPairsArgs", "Make sound whose speech codes are known, to train on."
    ),
    "speech-codes": Command(
        "omni_jax.cli.speech_codes", "SpeechCodesArgs", "Turn recordings into speech codes, to train on."
    ),
    "speech-report": Command(
        "omni_jax.cli.speech_report", "SpeechReportArgs", "Report how good the codes of a speech tokenizer are."
    ),
    "train": Command("omni_jax.cli.train", "TrainArgs", "Train a stage of the paper, as a configuration file says."),
    "eval": Command("omni_jax.cli.eval", "EvalArgs", "Score a checkpoint by the rules of the published figures."),
    "compile": Command("omni_jax.cli.compile", "CompileArgs", "Report what a chip would need, without having one."),
    "parity": Command("omni_jax.cli.parity", "ParityArgs", "Compare every part with PyTorch, number by number."),
    "demo": Command("omni_jax.cli.demo", "DemoArgs", "Watch a small model hear, see and speak."),
}

_HELP = """usage: omni-jax [--debug] COMMAND [options]

Qwen2.5-Omni in JAX.

commands:
{commands}

options:
  -h, --help  show this help; omni-jax COMMAND --help tells a command's options
  --version   show the version
  --debug     show tracebacks (or set {debug}=1)

example:
  omni-jax import --from Qwen2.5-Omni-3B --to omni-3b
  omni-jax chat --checkpoint omni-3b --image cat.jpg --text "What is this?" --speech-out reply.wav

exit status:
  0 done, 1 a check failed or the program broke, 2 bad usage or input, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `omni-jax argv...` and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no 你 shall still show the rest
    debug = os.environ.get(console.DEBUG_VARIABLE, "0") not in ("", "0")
    if "--debug" in argv:
        debug = True
        argv.remove("--debug")
    return console.run_guarded(lambda: _dispatch(argv), debug=debug)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return console.OK if argv else console.BAD_INPUT
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"omni-jax {version('omni-jax')}")
        return console.OK
    name, *rest = argv
    if name not in COMMANDS:
        raise UsageError(f"omni-jax has no command {name!r}. Commands: {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    try:
        # a command may have options that depend on a file, and then parses them itself
        own = getattr(module, "parse", None)
        arguments = own(rest) if own is not None else _parse(getattr(module, command.arguments), name, rest)
    except SystemExit as stop:  # --help, or a usage error that is already printed
        return stop.code if isinstance(stop.code, int) else console.BAD_INPUT
    return module.run(arguments)


class UsageError(OmniError):
    """The command line itself is wrong."""


def _parse(arguments: type, name: str, rest: list[str]):
    import tyro

    return tyro.cli(arguments, prog=f"omni-jax {name}", args=rest, config=(tyro.conf.FlagCreatePairsOff,))


def _help() -> str:
    commands = "\n".join(f"  {name:<13}  {command.summary}" for name, command in COMMANDS.items())
    return _HELP.format(commands=commands, debug=console.DEBUG_VARIABLE)


if __name__ == "__main__":
    sys.exit(main())
