"""What has learnt to read and to say codes goes on with those of a tokenizer that has learnt more.

    python -m examples.omni_tiny.recode --base omni_tiny --before a.jsonl --after b.jsonl --to recoded

A speech tokenizer that is trained further gives the same sound other codes. Both have coded the same recordings, so it
is known how often each new code stands where each old one stood. A new code begins as the mean of those old ones: its
embeddings in Token2Wav and in the Talker, and its column of the Talker's head. Code 0 of Token2Wav, which also says
that nothing is told, stays as it is, and so do codes that no recording has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from tyro.conf import arg

from examples.omni_tiny.program import run_main
from input_pipeline.clip_files import codes_of
from input_pipeline.jsonl import JsonLines
from omni_jax.errors import DataError

UNTOLD = 0  # the row that Token2Wav reads where it is told nothing, too


@dataclass(frozen=True)
class Args:
    """Write a copy of a checkpoint that begins with the codes of another speech tokenizer.

    example:
      python -m examples.omni_tiny.recode --base omni_tiny --before a.jsonl --after b.jsonl --to recoded
    """

    base: Annotated[Path, arg(metavar="DIR")]
    """The checkpoint, which knows the codes of `before`."""
    before: Annotated[Path, arg(metavar="FILE")]
    """Recordings with their old codes, as `omni-jax speech-codes` writes them."""
    after: Annotated[Path, arg(metavar="FILE")]
    """The same recordings in the same order, with their new ones."""
    to: Annotated[Path, arg(metavar="DIR")]
    """The folder to write."""


def main(args: Args) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        OmniError: the files are not of the same recordings, or a part is missing.
    """
    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import restore_params
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.training.checkpoints_model import save_model

    model = read_config(args.base)
    counts = together(JsonLines(args.before), JsonLines(args.after), model.token2wav_config.dit_config.num_embeds)
    parts = with_codes(restore_params(args.base, model, components=("dit", "talker")), counts)
    about = {"recoded": {key: str(value) for key, value in vars(args).items()}}
    # a mean of rounded numbers need not be rounded again: it is trained next
    save_model(args.to, parts, model, source=args.base, mesh=make_mesh(fsdp=1), dtype="float32", about=about)
    kept = np.trace(counts) / counts.sum()
    print(
        f"{(counts.sum(axis=1) > 0).sum()} codes begin as those before, {kept:.0%} of places keep theirs, in {args.to}"
    )


def together(before: JsonLines, after: JsonLines, codes: int) -> Float[np.ndarray, "V V"]:
    """At [new, old], how often the old code stands where the new one does.

    Raises:
        DataError: not the same recordings, a line without codes, or a code beyond `codes`.
    """
    if len(before) != len(after):
        raise DataError(f"{before.path} has {len(before)} recordings, {after.path} {len(after)}. Code the same ones.")
    counts = np.zeros((codes, codes))
    for place in range(len(after)):
        old, new = _coded(before, place, codes), _coded(after, place, codes)
        if old[0] != new[0] or len(old[1]) != len(new[1]):
            raise DataError(f"{after.where(place)} is no recording of {before.where(place)}. Code the same ones.")
        np.add.at(counts, (new[1], old[1]), 1)
    return counts


def _coded(lines: JsonLines, place: int, codes: int) -> tuple[Any, np.ndarray]:
    """Which recording it is, and its codes."""
    line = lines.value(place)
    try:
        return line.get("audio"), codes_of(line, codes)
    except DataError as error:
        raise DataError(f"{lines.where(place)}: {error}") from error


def with_codes(parts: Mapping[str, Any], counts: Float[np.ndarray, "V V"]) -> dict[str, Any]:
    """Parameters of Token2Wav's DiT and of the Talker, whose codes are new ones; see `together` for `counts`."""
    dit, talker = parts["dit"], parts["talker"]
    rows, head = talker["embed"]["embedding"], np.asarray(talker["codec_head"]["kernel"]).T
    return {
        "dit": {**dit, "codes": {"embedding": recoded(dit["codes"]["embedding"], counts, kept=(UNTOLD,))}},
        "talker": {
            **talker,
            "embed": {"embedding": recoded(rows, counts)},
            "codec_head": {**talker["codec_head"], "kernel": recoded(head, counts).T},
        },
    }


def recoded(
    table: Float[np.ndarray, "W E"], counts: Float[np.ndarray, "V V"], kept: tuple[int, ...] = ()
) -> Float[np.ndarray, "W E"]:
    """`table`, float32, whose first V rows are the means of its old ones; rows `kept` and of no code stay.

    Raises:
        DataError: there are fewer rows than codes.
    """
    found = np.array(table, np.float32)
    if len(found) < len(counts):
        raise DataError(f"embeddings of size {found.shape} cannot hold {len(counts)} codes.")
    many = counts.sum(axis=1, keepdims=True)
    known = many[:, 0] > 0
    known[list(kept)] = False
    means = (counts / np.maximum(many, 1)) @ found[: len(counts)]
    found[: len(counts)][known] = means[known]
    return found


if __name__ == "__main__":
    run_main(main, Args)
