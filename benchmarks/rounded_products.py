"""A training step with products of rounded factors (`RunConfig.round_products`) against one without, on one CPU core.

    taskset -c 0 python benchmarks/rounded_products.py --json

The Thinker of Omni-tiny learns all of its parameters by Muon, in float32, as in examples/omni_tiny/configs/sft.py. Both
sides are ours, in one process, in alternating runs; each figure is the minimum.
"""

import argparse
import contextlib
import json
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from cases import Case, Sides, measure
from training_step import conversations, in_rows

from input_pipeline.pack_rows import pack_row, stack_rows
from input_pipeline.training_batch import RowShape
from omni_jax.config_json import read_config
from omni_jax.interop.restore import restore_params
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.step import Trainer
from omni_jax.training.thinker_task import ThinkerTask

TINY = Path(__file__).parents[1] / "omni_jax" / "assets" / "omni_tiny"


class Step:
    """The jitted step and its state."""

    def __init__(self, batch, round_products: bool):
        config = read_config(TINY)
        task = ThinkerTask(config, audio=False, vision=False, remat="none")
        optimizer = OptimizerConfig("muon", 1e-4, warmup_steps=0, total_steps=10**6)
        self.trainer = Trainer(config, task, optimizer, make_mesh(jax.devices()[:1]), round_products=round_products)
        self.state = self.trainer.start(restore_params(TINY, config, components=("thinker",)))
        self.batch = self.trainer.put(batch)

    def __call__(self) -> None:
        self.state, metrics = self.trainer(self.state, self.batch)
        self.loss = float(metrics["loss"])


def sides(tokens: int) -> Sides:
    """Four rows of `tokens`, two conversations each."""
    config = read_config(TINY)
    examples = conversations(config, (tokens // 2,) * 8)
    batch = stack_rows([pack_row(part, RowShape(tokens=tokens), config) for part in in_rows(examples, 4, tokens)])
    ours, reference = Step(batch, True), Step(batch, False)
    ours()
    reference()
    if abs(ours.loss - reference.loss) > 1e-2 * reference.loss:
        raise SystemExit(f"The two sides do not do the same: losses {ours.loss} and {reference.loss}.")
    return Sides(ours, reference, details=lambda: {"tokens": 4 * tokens})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object as the last line of standard output")
    parser.add_argument("--runs", type=int, default=6)
    options = parser.parse_args()
    rows = []
    with contextlib.redirect_stdout(sys.stderr):
        for tokens in (128, 512, 960):
            row = measure(Case(f"4 rows of {tokens} tokens", partial(sides, tokens)), options.runs)
            rows.append(row)
            line = "{name:24s} rounded {ours_seconds:6.3f} s   float32 {reference_seconds:6.3f} s   ratio {ratio:.2f}"
            print(line.format(**row), flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "devices": str(jax.devices())}))


if __name__ == "__main__":
    main()
