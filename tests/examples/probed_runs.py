"""What is tested of every stage with a probe (`ProbedStage`)."""

from collections.abc import Callable
from contextlib import closing

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from input_pipeline.loader_ahead import Report
from omni_jax.config_json import read_config
from omni_jax.interop.restore import restore_params
from omni_jax.training.batch_shapes import batch_shapes
from omni_jax.training.run import Rows, run
from omni_jax.training.run_config import RunConfig


class NumberedLoader:
    """As the loader's contract says: batches that its step alone decides."""

    def __init__(self):
        self.step, self.closed = 0, False

    def __iter__(self):
        while True:
            self.step += 1
            yield f"talk {self.step}", Report(1, 1, ("one",), ())

    def state(self):
        return {"step": self.step}

    def restore(self, state):
        assert set(state) == {"step"}
        self.step = state["step"]

    def seek(self, step):
        self.step = step

    def close(self):
        self.closed = True


def check_run(config: Callable[[str, int], RunConfig], encoder: str) -> None:
    """A run that is resumed is the whole one, trains `encoder` alone, keeps no probe, and has the batches it tells.

    Args:
        config: of an output and a number of steps; with an even rate, so that a shorter run begins a longer one.
    """

    def trained(output: str, steps: int, **options):
        given = config(output, steps)
        summary = run(given, given.stage.open_data(given, {}), **options)
        return flatten_dict(restore_params(summary.model, read_config(summary.model)), sep="/")

    whole = trained("whole", 4)
    trained("parts", 2)
    parts = trained("parts", 4, allow_change=("optimizer.total_steps",))
    assert whole.keys() == parts.keys() and not [path for path in whole if "probe" in path]
    for path, value in whole.items():
        np.testing.assert_array_equal(parts[path], value, err_msg=path)
    given = config("whole", 4)
    before = flatten_dict(restore_params(given.checkpoint, read_config(given.checkpoint)), sep="/")
    moved = {path for path in whole if not np.array_equal(whole[path], before[path])}
    assert {path.split("/")[0] for path in moved} == {encoder}
    with closing(given.stage.open_data(given, {})(given.data.sources, Rows(1, slice(0, 1), 1))) as data:
        loaded, _ = next(iter(data))
    expected = batch_shapes(given, read_config(given.checkpoint), 1)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    own, told = ([(x.shape, x.dtype) for x in jax.tree.leaves(batch)] for batch in (loaded, expected))
    assert own == told
