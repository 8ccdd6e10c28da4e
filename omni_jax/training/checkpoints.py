"""Checkpoints of a run: state of the step, place in the data, and what the run was, saved while training goes on.

OUTPUT/checkpoints/
  1200/state     parameters, optimiser, step, random key: Orbax, each host writes its own part
  1200/run       one JSON object: configuration, sizes of the model, place in the data, versions
  1300.orbax-checkpoint-tmp    being written; it counts once it is whole and renamed
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from omni_jax.errors import CheckpointError, NumericsError

# Orbax's threads log their tracebacks, several for one full disk, besides raising; here one line tells what it means.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "/orbax/checkpoint/" in record.pathname))

LIBRARIES = ("omni-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_MANY = 12  # differences that a message lists


class Checkpoints:
    """The checkpoints of one run. All processes make the same calls.

    Args:
        folder: made where it is missing. On several hosts it must be one that all of them see.
        keep: how many of the newest stay.
        tolerated: saves that may fail in a row (a full disk) before the run ends. The last good checkpoint stays in
            any case; on several hosts the first failure ends the run, since the others wait for the one that failed.
        say: is told of a save that has failed.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 3, tolerated: int = 2, say: Callable[[str], None] = logging.warning
    ):
        self.folder, self.tolerated, self.say = Path(folder).resolve(), tolerated, say
        self.failures = 0  # in all
        self._in_a_row, self._pending = 0, None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        try:
            handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be written ({error.strerror}). Choose another --output."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # or it would hide what went wrong before
                raise

    def latest(self) -> int | None:
        """The newest whole checkpoint's step."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, run: Mapping[str, Any]) -> bool:
        """Starts to save; returns once the state is copied from the devices, the rest goes on aside.

        Args:
            run: what is stored beside the state; the versions of libraries are added.

        Returns:
            Whether a save has begun: not where `step` is saved already, or where it failed at once (see `failures`).

        Raises:
            CheckpointError: more saves in a row have failed than are tolerated.
            NumericsError: the state holds NaN or infinity; it is not saved.
        """
        self.settle()
        if step == self.latest():
            return False
        if not bool(all_finite(state)):
            raise NumericsError(
                f"The parameters or the optimiser hold NaN or infinity after step {step}; this state is not saved. "
                f"The checkpoint of step {self.latest()} is good: continue from it with a lower learning rate."
            )
        items = {
            "state": ocp.args.StandardSave(state),
            "run": ocp.args.JsonSave({**run, "versions": {name: version(name) for name in LIBRARIES}}),
        }
        self._pending = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds for a disk that does not take it
            self._failed(error)
            return False
        return True

    def settle(self) -> None:
        """Waits for the save under way.

        Raises:
            CheckpointError: it has failed, and so many before it.
        """
        if self._pending is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error)
        else:
            self._in_a_row, self._pending = 0, None

    def confirm(self, step: int) -> None:
        """Waits until the state after `step`, the last of a run, is safely stored.

        Raises:
            CheckpointError: it is not, whatever is tolerated.
        """
        self.settle()
        if self.latest() != step:
            raise CheckpointError(
                f"The last checkpoint could not be written to {self.folder}. Make room, then start the same "
                f"command again: it goes on from step {self.latest()}."
            )

    def _failed(self, error: Exception) -> None:
        step, self._pending = self._pending, None
        self.failures += 1
        self._in_a_row += 1
        alone = jax.process_count() == 1
        if alone:
            self._remove_partial(step)
        self._manager.reload()
        good = self.latest()
        kept = "There is no earlier checkpoint." if good is None else f"The checkpoint of step {good} is whole."
        told = f"The checkpoint of step {step} could not be written to {self.folder}: {_reason(error)} {kept}"
        if self._in_a_row > self.tolerated or not alone:
            raise CheckpointError(f"{told} Make room, then start the same command again to go on from it.") from error
        left = self.tolerated - self._in_a_row
        self.say(f"Warning: {told} Training goes on; it ends if {left + 1} more fail in a row.")

    def _remove_partial(self, step: int | None) -> None:
        """What a failed save has left takes the room that the next one needs."""
        for _ in range(40):  # threads that write other parts of it may not have noticed yet
            remains = list(self.folder.glob(f"{step}.*tmp*"))
            if not remains:
                return
            for left in remains:
                shutil.rmtree(left, ignore_errors=True)
            time.sleep(0.05)

    def about(self, step: int) -> dict[str, Any]:
        """What was stored beside the state.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        except Exception as error:
            raise self._damaged(step, error) from error

    def restore(self, step: int, shapes: Any, shardings: Any) -> Any:
        """The state, placed by `shardings`: on any mesh and any number of hosts, not only those that saved it.

        Args:
            shapes: the state as `jax.ShapeDtypeStruct`; shardings: alike.

        Raises:
            CheckpointError: the stored state has other parts or shapes (they are listed), or is damaged.
        """
        wanted = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, shardings)
        try:
            stored = self._manager.item_metadata(step)["state"].tree
        except Exception as error:
            raise self._damaged(step, error) from error
        problems = differences(stored, wanted)
        if problems:
            shown = problems[:_MANY] + ([f"… {len(problems) - _MANY} more"] if len(problems) > _MANY else [])
            raise CheckpointError(
                f"{self.folder / str(step)} is of another model or kind of training:\n  "
                + "\n  ".join(shown)
                + "\nContinue with the configuration it was made with, or give another --output."
            )
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            return self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / str(step)} cannot be read: {_reason(error)} Remove this folder to continue from the one "
            "before it."
        )

    def close(self) -> None:
        """Waits for the save under way; a failure of it is an error, whatever is tolerated."""
        try:
            before = self.failures
            self.settle()
            if self.failures > before:
                raise CheckpointError(
                    f"The last checkpoint could not be written to {self.folder}. Make room, then start the same "
                    f"command again: it goes on from step {self.latest()}."
                )
        finally:
            self._manager.close()


def differences(stored: Any, wanted: Any) -> list[str]:
    """One line for each leaf that only one of two trees has, or that has another shape or type in them."""
    a, b = _leaves(stored), _leaves(wanted)
    lines = [f"{path}: {_form(a[path])} is stored, this run has none" for path in a if path not in b]
    lines += [f"{path}: nothing is stored, this run has {_form(b[path])}" for path in b if path not in a]
    both = [path for path in a if path in b]
    return lines + [
        f"{path}: {_form(a[path])} is stored, this run has {_form(b[path])}"
        for path in both
        if _form(a[path]) != _form(b[path])
    ]


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def _form(leaf: Any) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as its bits
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{jnp.dtype(leaf.dtype).name} {list(leaf.shape)}"


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether no floating-point value of `tree` is NaN or infinite."""
    kinds = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in kinds] or [jnp.bool_(True)]))


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [repr(error)])[0]
    if "No space left on device" in str(error):
        return "the disk is full."
    return text[:300].rstrip(".") + "."
