"""Ranks block sizes of our TPU kernels by the compiler's schedule, for each pattern and generation.

    python benchmarks/block_sizes.py --target v5e v6e --only "causal, 8,192 tokens$"

The winners, and what else speaks for a size (code, memory of a v4), are in kernels/interval_attention/block_sizes.py.
How cycles are counted: see schedule_bundles.py. A size that does not fit the chip's memory is reported as an error.
"""

import argparse
import json
import sys

from tpu_schedule import TOPOLOGIES, measure

# Sizes by kind of pattern: forward, and with gradients. "keys_": of the pass over keys.
WINDOW = ["ours:stage=4", "ours:stage=8", "ours:stage=16", "ours+grad:stage=4", "ours+grad:stage=8"]
FLAT = [
    "ours:block=256:chunk=512:part=256",
    "ours:block=256:chunk=512:part=512",
    "ours:block=512:chunk=512:part=256",
    "ours:block=512:chunk=512:part=512",
    "ours:block=256:chunk=512:part=128",
    "ours+grad:block=256:chunk=512:part=256:keys_block=256:keys_chunk=256:keys_part=256",
    "ours+grad:block=256:chunk=512:part=256:keys_block=256:keys_chunk=256:keys_part=128",
    "ours+grad:block=256:chunk=512:part=128:keys_block=256:keys_chunk=256:keys_part=128",
]
KINDS = [("audio, 30 s", WINDOW), ("windows, 4,096", WINDOW), ("DiT, 10 s", WINDOW), ("frames, 4 of 1,024", FLAT)]
KINDS += [(r"causal, 8,192 tokens$", FLAT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TOPOLOGIES, default=["v5e"])
    parser.add_argument("--only", help="patterns whose name matches this regular expression, instead of one a kind")
    parser.add_argument("--json", action="store_true", help="also print one JSON object as the last line")
    arguments = parser.parse_args()
    rows = []
    for target in arguments.target:
        for name, sides in KINDS:
            if arguments.only and arguments.only != name:
                continue
            found = list(measure(target, name, ",".join(sides)))
            rows += found
            for grad in (False, True):
                some = [row for row in found if ("+grad" in row["side"]) == grad]
                for row in sorted(some, key=lambda row: row.get("cycles", 1 << 62)):
                    cycles = f"{row['cycles']:>12,}" if "cycles" in row else f"{row['error'][:60]:>12}"
                    print(f"{target:6} {row['pattern']:36} {cycles}  {row['side']}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
