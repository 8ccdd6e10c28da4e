"""The lines of human digits without those of one person, to take in their place.

    python -m examples.omni_tiny.leave_out --data .omni_tiny --who theo

audio_text_without_theo.jsonl and sft_without_theo.jsonl have the lines of the three others: with them a run hears as
much human speech as before, and nothing of theo.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from examples.omni_tiny.files import write_lines
from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.program import run_main
from input_pipeline.jsonl import JsonLines

KINDS = ("audio_text", "sft")  # files with lines of one person, KIND_PERSON.jsonl


@dataclass(frozen=True)
class Args:
    """Join the lines of all persons but one.

    example:
      python -m examples.omni_tiny.leave_out --data .omni_tiny --who theo
    """

    data: Annotated[Path, arg(metavar="DIR")]
    """The folder that make_data has filled."""
    who: Literal[FSDD_SPEAKERS]
    """The person to leave out."""


def main(args: Args) -> None:
    """Writes both files.

    Raises:
        DataError: lines of a person are missing.
    """
    for kind in KINDS:
        others = [JsonLines(args.data / lines_of(kind, who)) for who in FSDD_SPEAKERS if who != args.who]
        target = args.data / lines_without(kind, args.who)
        count = write_lines(target, (each.value(place) for each in others for place in range(len(each))))
        print(f"{count} lines in {target}")


def lines_of(kind: str, who: str) -> str:
    return f"{kind}_{who}.jsonl"


def lines_without(kind: str, who: str) -> str:
    return f"{kind}_without_{who}.jsonl"


if __name__ == "__main__":
    run_main(main, Args)
