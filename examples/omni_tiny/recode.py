"""What has learnt to read and to say codes goes on with those of a tokenizer that has learnt more.

    python -m examples.omni_tiny.recode --base omni_tiny --before a.jsonl --after b.jsonl --to recoded

A speech tokenizer that is trained further gives the same sound other codes. Both have coded the same recordings, so it
is known how often each new code stands where each old one stood. A new code begins as the mean of those old ones, by
Token2Wav and by the Talker, which reads and says them. Codes that no recording has stay as they are.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float
from tyro.conf import arg

from input_pipeline.clip_files import codes_of
from input_pipeline.jsonl import JsonLines
from omni_jax.errors import DataError, OmniError

ROWS = (("dit", "codes", "embedding"), ("talker", "embed", "embedding"))  # a row for each code
COLUMNS = (("talker", "codec_head", "kernel"),)
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
    codes = model.token2wav_config.dit_config.num_embeds
    shares = old_shares(JsonLines(args.before), JsonLines(args.after), codes)
    parts: dict[str, Any] = restore_params(args.base, model, components=("dit", "talker"))
    for part, module, name in (*ROWS, *COLUMNS):
        table = np.asarray(parts[part][module][name])
        if (part, module, name) in COLUMNS:
            parts[part][module][name] = recoded(table.T, shares).T
        else:
            parts[part][module][name] = recoded(table, shares, kept=(UNTOLD,) if part == "dit" else ())
    about = {"recoded": {key: str(value) for key, value in vars(args).items()}}
    save_model(args.to, parts, model, source=args.base, mesh=make_mesh(fsdp=1), about=about)
    known = shares.sum(axis=1) > 0
    print(f"{known.sum()} codes begin as those before, {np.diag(shares)[known].mean():.0%} as themselves, in {args.to}")


def old_shares(before: JsonLines, after: JsonLines, codes: int) -> Float[np.ndarray, "V V"]:
    """At [new, old], how often an old code stands where that new one does, as a share; zeros for codes that never come.

    Raises:
        DataError: not the same recordings, or other numbers of codes.
    """
    if len(before) != len(after):
        raise DataError(f"{before.path} has {len(before)} recordings, {after.path} {len(after)}. Code the same ones.")
    counts = np.zeros((codes, codes))
    for place in range(len(after)):
        old, new = before.value(place), after.value(place)
        if old["audio"] != new["audio"] or len(old["codes"]) != len(new["codes"]):
            raise DataError(f"{after.path}:{place + 1} is another recording than in {before.path}. Code the same ones.")
        np.add.at(counts, (codes_of(new), codes_of(old)), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def recoded(table: np.ndarray, shares: Float[np.ndarray, "V V"], kept: tuple[int, ...] = ()) -> np.ndarray:
    """`table` [W, E] whose first V rows are the means of its old ones; rows `kept` and of no code stay."""
    known = shares.sum(axis=1) > 0
    known[list(kept)] = False
    codes = min(len(shares), len(table))
    found = np.array(table, np.float32)
    found[:codes][known[:codes]] = (shares[:codes, :codes] @ found[:codes])[known[:codes]]
    return found.astype(table.dtype)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OmniError as error:
        sys.exit(f"error: {error}")
