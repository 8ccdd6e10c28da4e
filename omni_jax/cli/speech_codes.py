"""`omni-jax speech-codes`: recordings become speech codes, to train the Talker and Token2Wav on."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.clip_lines import LeftOut, check_new_file, groups, moved, write_lines
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import DataError, OmniError, PromptError


@dataclass(frozen=True)
class SpeechCodesArgs:
    """Turn recordings into speech codes, by a speech tokenizer that was trained with configs/speech_tokenizer_*.py.

    A line of --data is a recording, {"audio": "a.wav", ...}, which gets "codes"; or a conversation whose spoken answers
    are recordings, {"type": "speech", "voice": "Chelsie", "audio": "a.wav"}, which become codes, as the stages of the
    Talker take them. Other lines of conversations stay as they are.

    What cannot be used is left out and told with its line. Stopped, the same command goes on where it was. The exit
    status is 2 when more than --max-rejected of the lines cannot be used.

    example:
      omni-jax speech-codes --checkpoint runs/speech_tokenizer_inversion/model --data talk.jsonl --to coded.jsonl
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder with a speech tokenizer, that omni-jax train wrote."""
    data: Annotated[Path, arg(metavar="FILE")]
    """One recording or conversation in JSON a line; paths start from this file's folder."""
    destination: Annotated[Path, arg(name="to", metavar="FILE.jsonl")]
    """The file to write. In another folder than --data its paths are absolute."""
    batch: int = 64
    """Blocks of 2 s that are encoded at a time."""
    max_rejected: float = 0.1
    """Share of the lines that may be left out."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of computation. None is float32 on a CPU, bfloat16 elsewhere."""
    overwrite: bool = False
    """Replace the file if it exists."""
    json: bool = False
    """End standard output with one JSON object: lines, codes, how many are distinct, what was left out, seconds."""


def run(args: SpeechCodesArgs) -> int:
    if args.batch < 1:
        raise PromptError(f"--batch {args.batch} is out of range. Give 1 or more.")
    if not 0 <= args.max_rejected <= 1:
        raise PromptError(f"--max-rejected {args.max_rejected:g} is out of range. Give a share of 0 to 1.")
    imported_checkpoint(args.checkpoint)
    check_new_file(args.destination, args.data, overwrite=args.overwrite)
    from input_pipeline.jsonl import JsonLines
    from omni_jax.cli.prefer_file import AnswerFile
    from omni_jax.interop.checkpoint_digest import checkpoint_digest
    from omni_jax.sampling.speech_codes import tokenizer_config
    from omni_jax.training.speech_quality import CodeCounts

    started, lines, left = time.perf_counter(), JsonLines(args.data), LeftOut()
    config = tokenizer_config(args.checkpoint)
    settings = {"data": lines.digest, "checkpoint": checkpoint_digest(args.checkpoint), "dtype": args.dtype}
    settings |= {"folder": str(args.data.resolve().parent)}
    kept = AnswerFile(args.destination.with_name(f"{args.destination.stem}.partial.jsonl"), settings)
    _encode(args, lines, kept)
    counts = CodeCounts(config.num_codes)

    def made() -> Iterator[dict[str, Any]]:
        for row in kept.rows():
            if "reason" in row:
                left.add(row["reason"])
                continue
            for codes in _codes_of(row["line"]):
                counts.add(codes)
            yield row["line"]

    write_lines(args.destination, made())
    kept.path.unlink()
    report = {"lines": len(lines), **counts.report(), **left.as_json(), "to": str(args.destination)}
    out = console.Output(args.json)
    used = f"{report['distinct']} of {report['num_codes']} distinct"
    out.write(
        f"{report['codes']} codes ({report['codes'] / 50:.1f} s, {used}) for {report['lines'] - left.count} of "
        f"{report['lines']} lines in {args.destination}"
    )
    left.tell(out)
    out.result(report | {"seconds": time.perf_counter() - started})
    if left.count > args.max_rejected * len(lines):
        console.note(f"More than --max-rejected {args.max_rejected:g} of the lines cannot be used. Mend the data.")
        return console.BAD_INPUT
    return console.OK


def _encode(args: SpeechCodesArgs, lines: Any, kept: Any) -> None:
    """Adds what is missing to the rows; loads the model only if anything is."""
    todo = [index for index in range(len(lines)) if index not in kept.done]
    if not todo:
        return
    console.setup_jax()
    from omni_jax.sampling.speech_codes import SpeechCoder

    coder = SpeechCoder.from_checkpoint(args.checkpoint, dtype=args.dtype, blocks=args.batch)
    with console.Progress("encoding", unit=" lines") as bar:
        for number, group in enumerate(groups(todo, args.batch)):
            bar("encoding", len(lines) - len(todo) + number * args.batch, len(lines))
            rows, found = [], []
            for index in group:
                try:
                    row = {"index": index, "line": _line(lines.value(index), lines, index, args)}
                    heard = [_cut(coder, item, lines.path.parent) for item in _recordings(row["line"])]
                except (OmniError, OSError) as error:
                    row, heard = {"index": index, "reason": f"{lines.where(index)}: {error}"}, []
                rows.append(row)
                found += heard
            for (item, _), codes in zip(found, coder.encode_blocks([cut for _, cut in found]), strict=True):
                item["codes"] = codes.tolist()
            for row in rows:
                _finish(row)
            kept.add(rows)


def _line(value: Any, lines: Any, index: int, args: SpeechCodesArgs) -> dict[str, Any]:
    """A line for the file that is written."""
    if isinstance(value, Mapping) and "messages" in value:
        return lines.read(index)
    if not isinstance(value, Mapping) or not isinstance(value.get("audio"), str):
        raise DataError('give a recording, {"audio": "a.wav"}, or a conversation, {"messages": [...]}.')
    return moved(value, args.data, args.destination)


def _recordings(line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What has "audio" that becomes codes: the line itself, or spoken answers in it."""
    if "messages" not in line:
        yield line
        return
    for number, message in enumerate(line["messages"], start=1):
        for item in message["content"] if isinstance(message["content"], list) else ():
            if item.get("type") != "speech" or "audio" not in item:
                continue
            given = [key for key in ("codes", "chosen", "rejected") if key in item]
            if given or not isinstance(item["audio"], str):
                what = f"{given[0]!r} beside 'audio'" if given else "an 'audio' that is no path"
                raise DataError(f"message {number}: a speech item with {what}. Give the path of a recording only.")
            yield item


def _cut(coder: Any, item: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Any]:
    from input_pipeline.media_audio import load_audio
    from omni_jax.sampling.speech_codes import RATE

    return item, coder.cut(load_audio(str(folder / item["audio"]), sampling_rate=RATE), item["audio"])


def _finish(row: Mapping[str, Any]) -> None:
    """In conversations codes take the place of the recordings."""
    if "messages" in row.get("line", ()):
        for item in _recordings_done(row["line"]):
            item.pop("audio", None)


def _recordings_done(line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for message in line["messages"]:
        if isinstance(message["content"], list):
            yield from (item for item in message["content"] if item.get("type") == "speech")


def _codes_of(line: Mapping[str, Any]) -> Iterator[list[int]]:
    items = _recordings_done(line) if "messages" in line else (line,)
    return (item["codes"] for item in items if "codes" in item)
