"""Attention by the TPU compiler's own schedule: our kernel, plain jax.numpy in two forms, and JAX's splash attention.

    python benchmarks/tpu_schedule.py                          all patterns on v5e (about 15 minutes on 2 cores)
    python benchmarks/tpu_schedule.py --target v6e --only "audio|DiT" --json

No TPU is needed, and none was measured: programs are compiled ahead of time at real sizes, bfloat16, forward pass, and
their cycles counted as `schedule_bundles.py` tells. All sides begin and end with the [T, N*H] columns that projections
give and take, so transpositions count.

    masked     jax.numpy over all scores with a mask, compiled by XLA
    gathered   jax.numpy over the blocks only, cut out of the sequence: as good as it gets without a kernel
    splash     JAX's splash attention with the mask of the pattern (packed segments: segment ids), by the best of
               blocks of 128, 512 and 1,024

With --grad the forward and backward pass are counted together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4", "tpu7x": "tpu7x:2x2x1"}
SIDES = ("ours", "masked", "gathered", "splash128", "splash512", "splash1024")


def measure(target: str, only: str, sides: str):
    """Yields rows as the compiling process prints them."""
    here = Path(__file__).parent
    compilers = Path(sys.prefix) / "compilers"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
    environment |= {
        "PYTHONPATH": f"{compilers}:{here.parent}:{here}",
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    with tempfile.TemporaryDirectory(prefix="tpu_schedule_", ignore_cleanup_errors=True) as folder:
        environment["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, str(here / "schedule_compile.py"), TOPOLOGIES[target], only, sides, folder]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
    if process.returncode:
        raise SystemExit(process.returncode)


def join(rows: list[dict]) -> list[dict]:
    """One row for each pattern; splash by its better block size."""
    found = defaultdict(dict)
    for row in rows:
        found[row["target"], row["pattern"]][row["side"]] = row
    joined = []
    for (target, pattern), sides in found.items():
        splash = [row for side, row in sides.items() if side.startswith("splash") and "error" not in row]
        if splash:
            sides["splash"] = min(splash, key=lambda row: row["cycles"])
        row = {"name": f"{pattern} ({target})", "target": target, "pattern": pattern}
        for side in ("ours", "masked", "gathered", "splash"):
            if side in sides and "error" not in sides[side]:
                row[side] = {key: sides[side][key] for key in sides[side] if key not in ("target", "pattern", "side")}
                if side != "ours" and "ours" in row:
                    row[f"{side}_ratio"] = round(row[side]["cycles"] / row["ours"]["cycles"], 2)
            elif side in sides:
                row[f"{side}_error"] = sides[side]["error"]
        joined.append(row)
    return joined


def table(rows: list[dict]) -> str:
    lines = [
        "| pattern | ours | masked | gathered | splash | ours: temporary | gathered | splash |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["name"], f"{row['ours']['cycles'] / 1e3:,.0f}" if "ours" in row else "–"]
        for side in ("masked", "gathered", "splash"):
            cells.append(f"{row[side]['cycles'] / 1e3:,.0f} ({row[f'{side}_ratio']:g}×)" if side in row else "–")
        for side in ("ours", "gathered", "splash"):
            cells.append(f"{row[side]['temporary'] / 2**20:,.1f} MiB" if side in row else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nThousands of cycles; (ratio to ours, above 1: ours takes fewer)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TOPOLOGIES, default=["v5e"])
    parser.add_argument("--only", default="", help="patterns whose name matches this regular expression")
    parser.add_argument("--sides", default=",".join(SIDES), help="of " + ", ".join(SIDES))
    parser.add_argument("--grad", action="store_true", help="forward and backward pass")
    parser.add_argument("--json", action="store_true", help="also print one JSON object as the last line")
    arguments = parser.parse_args()
    sides = [side + "+grad" * arguments.grad for side in arguments.sides.split(",")]
    rows = []
    for target in arguments.target:
        for row in measure(target, arguments.only, ",".join(sides)):
            row["side"] = row["side"].removesuffix("+grad")
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    joined = join(rows)
    print(table(joined), file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps({"rows": joined}))


if __name__ == "__main__":
    main()
