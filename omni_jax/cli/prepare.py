"""`omni-jax prepare`: conversations and their media, packed for training at scale."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import DataError

_UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class PrepareArgs:
    """Turn a file of conversations (JSON lines in the OpenAI or ms-swift form) and its media into ArrayRecord shards.

    Every sample is read as training will read it; what cannot be used is left out and listed with its line and the
    reason in report.json. Stopped or killed, the same command goes on with the shards that are missing. The exit status
    is 2 when more than --max-rejected of the lines cannot be used.

    example:
      omni-jax prepare --data train.jsonl --checkpoint omni-3b --to shards --shards 16 --workers 8
    """

    data: Annotated[Path, arg(metavar="FILE")]
    """One conversation in JSON a line; media by path from this file's folder."""
    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import wrote: tokenizer, sizes and voices are taken from it, no weights."""
    destination: Annotated[Path, arg(name="to", metavar="DIR")]
    """The folder of the shards."""
    shards: int = 16
    """Files to make. The same number whoever makes them."""
    workers: int = 2
    """Processes."""
    part: Annotated[str, arg(metavar="I/N")] = "1/1"
    """Make only every N-th shard, from the I-th on: N machines that share the folder each take a part."""
    max_tokens: int = 32768
    """Longer conversations are cut between turns; single turns that are longer are rejected. Media count in full."""
    max_audio_blocks: Annotated[int | None, arg(metavar="INT")] = None
    """Likewise for sound, in blocks of 2 s."""
    max_patches: Annotated[int | None, arg(metavar="INT")] = None
    """Likewise for pictures and films, in patches of 14x14 pixels."""
    max_speech: Annotated[int | None, arg(metavar="INT")] = None
    """Likewise for spoken answers, in positions of the Talker."""
    max_rejected: float = 0.1
    """Share of the lines that may be rejected."""
    use_audio_in_video: bool = False
    """Hear the sound tracks of films that have one."""
    system: Annotated[str | None, arg(metavar="TEXT")] = None
    """System turn of conversations that have none. None for the published one, an empty text for no turn."""
    train_on: Literal["all", "last"] = "all"
    """Learn all answers of a conversation, or the last."""
    overwrite: bool = False
    """Make shards anew that were made from other data or with other options."""
    json: bool = False
    """End standard output with one JSON object: the report without the single samples, and seconds."""


def run(args: PrepareArgs) -> int:
    first, step = _part(args.part)
    for name in ("shards", "workers", "max_tokens"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range. Give 1 or more.")
    if not 0 <= args.max_rejected <= 1:
        raise DataError(f"--max-rejected {args.max_rejected:g} is out of range. Give a share of 0 to 1.")
    imported_checkpoint(args.checkpoint)
    from input_pipeline.prepare_shards import begin, make_shards, report_of
    from input_pipeline.records import INDEX, write_json

    started = time.perf_counter()
    preparation = _preparation(args)
    begin(preparation, overwrite=args.overwrite)
    with console.Progress("preparing", unit=" lines") as bar:
        mine = range(first, args.shards, step)
        markers = make_shards(preparation, mine, workers=args.workers, progress=bar)
    report = report_of(preparation, markers)
    file = args.destination / ("report.json" if step == 1 else f"report-{first + 1}-of-{step}.json")
    write_json(file, report)
    out = console.Output(args.json)
    _tell(out, report, file)
    if not (args.destination / INDEX).exists():
        out.write("Other parts are not done yet; the folder can be read when all are.")
    seconds = time.perf_counter() - started
    out.result({**{key: value for key, value in report.items() if key != "rejected"}, "seconds": seconds})
    if report["rejected_share"] > args.max_rejected:
        console.note(f"More than --max-rejected {args.max_rejected:g} of the lines cannot be used. Mend the data.")
        return console.BAD_INPUT
    return console.OK


def _preparation(args: PrepareArgs) -> Any:
    from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
    from input_pipeline.example_context import ExampleContext, speech_codes
    from input_pipeline.jsonl import JsonLines
    from input_pipeline.prepare_shards import Preparation
    from input_pipeline.tokenizer import Tokenizer
    from input_pipeline.training_batch import RowShape
    from omni_jax.config_json import read_config, read_processor_config
    from omni_jax.sampling.voices import load_speakers

    config = read_config(args.checkpoint)
    speakers = load_speakers(args.checkpoint, config) if config.speaks else {}
    context = ExampleContext(
        Tokenizer.load(args.checkpoint),
        config,
        read_processor_config(args.checkpoint),
        voices={name: speaker.token_id for name, speaker in speakers.items()},
        num_codes=speech_codes(config),
        use_audio_in_video=args.use_audio_in_video,
        default_system=DEFAULT_SYSTEM_TEXT if args.system is None else args.system or None,
        train_on=args.train_on,
    )
    rooms = [
        _UNLIMITED if room is None else room for room in (args.max_audio_blocks, args.max_patches, args.max_speech)
    ]
    limit = RowShape(args.max_tokens, *rooms, pairs=1)
    return Preparation(JsonLines(args.data), context, limit, args.destination, args.shards)


def _part(text: str) -> tuple[int, int]:
    """2/8 -> (1, 8): start and step of the shards."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise DataError(f"--part {text!r} is not one of 1/N to N/N. Write --part 2/8, for example.")
    return part - 1, parts


def _tell(out: console.Output, report: dict[str, Any], file: Path) -> None:
    out.write(
        f"{report['examples']} examples of {report['lines']} lines in {report['shards']} shards, "
        f"{report['bytes'] / 1e6:.1f} MB"
    )
    if report["rejected"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report["rejected_kinds"].items()))
        out.write(f"{report['rejected_lines']} lines rejected in whole or in part ({kinds}); see {file}")
        for each in report["rejected"][:5]:
            out.write(f"  {each['name']}: {each['kind']}: {each['reason']}")
        if len(report["rejected"]) > 5:
            out.write(f"  and {len(report['rejected']) - 5} more")
