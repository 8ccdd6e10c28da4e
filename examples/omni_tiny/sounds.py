"""What codes sound like, before anything has learnt it: where the embeddings of codes begin.

    python -m examples.omni_tiny.sounds --base start --data coded_voiced.jsonl --to sounding

A code stands for 20 ms of sound. The mean mel of all places where a recording has that code says more of it than a
random vector does, and codes that sound alike begin alike. So the first numbers of each embedding, of Token2Wav and of
the Talker, are what that mean is along the main directions in which codes differ; the others stay random, and so do
codes that no recording has. Code 0 is also what Token2Wav reads where it is told nothing, as in the published model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from tyro.conf import arg

from examples.omni_tiny.program import run_main
from input_pipeline.clip_files import codes_of, load_sound
from input_pipeline.jsonl import JsonLines
from input_pipeline.speech_mel import MEL_24K, speech_mel
from omni_jax.errors import DataError

EMBEDDINGS = {"dit": ("codes", "embedding"), "talker": ("embed", "embedding")}  # rows are codes
FRAMES = 2  # of mel to a code: 100 a second, and 50
DIRECTIONS = 48  # in which codes are told apart
RECORDINGS = 1500  # enough that a code occurs a hundred times
FEW = 5  # a mean of as many places counts half


@dataclass(frozen=True)
class Args:
    """Write a copy of a checkpoint in which embeddings of codes say how they sound.

    example:
      python -m examples.omni_tiny.sounds --base start --data coded_voiced.jsonl --to sounding
    """

    base: Annotated[Path, arg(metavar="DIR")]
    """The checkpoint, with random embeddings."""
    data: Annotated[Path, arg(metavar="FILE")]
    """Recordings with their codes, as `omni-jax speech-codes` writes them."""
    to: Annotated[Path, arg(metavar="DIR")]
    """The folder to write."""


def main(args: Args) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        OmniError: a recording cannot be read, or a part is missing.
    """
    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import restore_params
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.training.checkpoints_model import save_model

    model = read_config(args.base)
    parts: dict[str, Any] = restore_params(args.base, model, components=tuple(EMBEDDINGS))
    means, counts = mean_sounds(JsonLines(args.data), args.data.parent)
    features = directions(means, counts)
    for part, (module, name) in EMBEDDINGS.items():
        table = np.asarray(parts[part][module][name])
        parts[part][module][name] = told(table, features).astype(table.dtype)
    about = {"sounds": {key: str(value) for key, value in vars(args).items()}}
    save_model(args.to, parts, model, source=args.base, mesh=make_mesh(fsdp=1), about=about)
    print(f"{int((counts > 0).sum())} codes say how they sound, in {args.to}")


def mean_sounds(lines: JsonLines, folder: Path) -> tuple[Float[np.ndarray, "V F"], Float[np.ndarray, " V"]]:
    """Of each code the mean of the log mel frames that it stands for, one frame after another, and how often it comes.

    Raises:
        OmniError: a line has no codes, or its recording cannot be read.
    """
    sums, counts = np.zeros((0, FRAMES * MEL_24K.num_mel_bins)), np.zeros(0)
    for place in np.unique(np.linspace(0, len(lines) - 1, min(RECORDINGS, len(lines))).astype(int)):
        line = lines.value(int(place))
        codes = codes_of(line)
        mel = speech_mel(load_sound(line, folder, MEL_24K.sampling_rate), MEL_24K)
        many = min(len(codes), len(mel) // FRAMES)
        more = max(int(codes.max()) + 1 - len(sums), 0)
        sums, counts = np.pad(sums, ((0, more), (0, 0))), np.pad(counts, (0, more))
        np.add.at(sums, codes[:many], mel[: many * FRAMES].reshape(many, -1))
        np.add.at(counts, codes[:many], 1)
    return sums / np.maximum(counts, 1)[:, None], counts


def directions(means: Float[np.ndarray, "V F"], counts: Float[np.ndarray, " V"]) -> Float[np.ndarray, "V K"]:
    """Principal components of the means, of variance one each over all places of recordings; NaN for codes without any.

    Codes of few places are drawn towards the mean of all, for their own is little known.
    """
    share = counts / counts.sum()
    centred = (means - share @ means) * (counts / (counts + FEW))[:, None]
    values, vectors = np.linalg.eigh((centred * share[:, None]).T @ centred)
    kept = np.argsort(values)[::-1][: min(DIRECTIONS, int((values > 1e-9 * values.max()).sum()))]
    found = centred @ vectors[:, kept] / np.sqrt(values[kept])
    return np.where(counts[:, None] > 0, found, np.nan)


def told(table: Float[np.ndarray, "V E"], features: Float[np.ndarray, "W K"]) -> Float[np.ndarray, "V E"]:
    """`table` with the features as its first columns, as large as the numbers that were there."""
    found, (rows, columns) = np.array(table, np.float32), features.shape
    if rows > len(found) or columns > found.shape[1]:
        raise DataError(f"embeddings of size {found.shape} cannot hold {columns} features of {rows} codes.")
    size = found.std()
    found[:rows, :columns] = np.where(np.isnan(features), found[:rows, :columns], np.clip(features, -3, 3) * size)
    return found


if __name__ == "__main__":
    run_main(main, Args)
