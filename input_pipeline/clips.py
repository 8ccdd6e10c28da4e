"""Batches of recordings, decoded ahead of the device, each recording once an epoch.

A recording that cannot be used leaves its row empty, so that nothing else moves; so do the rows of the last step that
are left over. Such rows do not count (`speech_batch.py`).
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from input_pipeline.clip_kinds import ClipKind
from input_pipeline.clip_rows import TOO_LONG, ClipRows, Met, joined, line_of
from input_pipeline.jsonl import JsonLines
from input_pipeline.loader_ahead import Report, StepLoader, check_corrupt, check_unchanged, places_of
from input_pipeline.loader_rows import Skipped
from omni_jax.errors import ConfigError, DataError, OmniError

_LOOKED_AT = 1000  # lines of each file that are checked before the run begins
_ENOUGH = 100  # recordings of which some should be of use
_FATES = "used", "too_long", "corrupt"  # what became of a recording

log = logging.getLogger(__name__)


class Clips(StepLoader):
    """An iterator over (batch of this host's rows, `Report`), see `StepLoader`."""

    def __init__(
        self,
        files: Sequence[JsonLines],
        kind: ClipKind,
        *,
        rows: int,
        own: slice | None = None,
        accumulate: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        in_order: bool = False,
        workers: int = 0,
        prefetch: int = 2,
        max_corrupt_share: float = 0.01,
    ):
        """Looks at the first lines. Work begins when the first batch is asked for.

        Args:
            kind: what a row is made of.
            rows, own, accumulate, workers, prefetch: see `Loader`.
            seed: of the order of recordings, a new one in each epoch, and of what a row leaves to chance.
            epochs: rows that are left over in the last step are empty. None never ends.
            in_order: as the files have them, and with nothing left to chance: for held-out data.
            max_corrupt_share: the run ends when more of the recordings that this host has met are corrupt, from the
                100th on; before, from the 10th on, when more than half are. All count anew in each epoch; one that is
                too long is left out, but not corrupt. The run also ends when none at all can be used.

        Raises:
            ConfigError: `own` is no part of the rows; negative seed, no epochs.
            DataError: too many of the first lines cannot be used; they are named.
        """
        places = places_of(rows, own, accumulate)
        if seed < 0 or (epochs is not None and epochs < 1):
            raise ConfigError(f"data.seed = {seed} must be at least 0, data.epochs = {epochs} at least 1.")
        maker = ClipRows(tuple(files), kind, rows * accumulate, places, seed, epochs, in_order)
        join = partial(joined, kind=type(kind.empty()))
        super().__init__(maker, join, first_step=0, workers=workers, prefetch=prefetch)
        self._rows, self._epochs, self._max_corrupt_share = rows * accumulate, epochs, max_corrupt_share
        self._about = {
            "seed": seed,
            "rows": self._rows,
            "sources": [{"name": each.path.name, "recordings": len(each), "digest": each.digest} for each in files],
        }
        self._recordings = maker.recordings
        self._counts = dict.fromkeys(_FATES, 0)
        self._first_corrupt: list[Skipped] = []
        self._first_left_out: list[Skipped] = []
        for file in files:
            self._look(file, kind)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, None where it never ends."""
        return None if self._epochs is None else -(-self._epochs * self._recordings // self._rows)

    def state(self) -> dict[str, Any]:
        """The place after the last batch that was handed out, as JSON values.

        The same on all hosts but for "seen": what became of the recordings that this host has met.
        """
        return {"step": self._step, "epochs": self._epochs, **self._about, "seen": dict(self._counts)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, which may come from another number of hosts or workers, or another end.

        Raises:
            DataError: the order of recordings is another one now, also where the run is to end elsewhere and has gone
                through the earlier end; what has changed is named.
        """
        check_unchanged(_differences(state, self._about) or self._other_end(state))
        self.seek(int(state["step"]))
        self._counts = {fate: int(state["seen"][fate]) for fate in _FATES}

    def seek(self, step: int) -> None:
        super().seek(step)
        self._counts = dict.fromkeys(_FATES, 0)

    def _other_end(self, state: Mapping[str, Any]) -> list[str]:
        """Why a run cannot go on to another number of epochs: the rows after the earlier end were empty, or not."""
        then, now = state["epochs"], self._epochs
        last = min((each for each in (then, now) if each is not None), default=0) * self._recordings // self._rows
        if then == now or state["step"] <= last:
            return []
        return [
            f"epochs: were {then}, are {now}. After step {last} some recordings would come too often or not at all, "
            f"and this run is at step {state['step']}. To go on in order, go back to a checkpoint of step {last} or "
            "before (remove the later ones). To accept it: --allow-change data"
        ]

    def _counted(self, made: tuple[Any, tuple[Met, ...]], report: Report) -> Any:
        batch, met = made
        for each in met:
            self._meet(each)
        used, too_long, corrupt = (self._counts[fate] for fate in _FATES)
        check_corrupt(corrupt, used + corrupt, self._max_corrupt_share, self._first_corrupt, "recordings")
        left_out = too_long + corrupt
        if not used and left_out >= min(_ENOUGH, self._recordings):
            raise DataError(_of_none(min(left_out, self._recordings), self._first_left_out))
        return batch

    def _meet(self, each: Met) -> None:
        used, too_long, corrupt = _FATES
        fate = used if each.skipped is None else too_long if each.kind == TOO_LONG else corrupt
        self._counts[fate] += 1
        if each.skipped is None:
            return
        log.warning("skipped %s: %s", each.skipped.name, each.skipped.reason)
        for first, wanted in ((self._first_left_out, True), (self._first_corrupt, fate == corrupt)):
            if wanted and len(first) < 5 and each.skipped not in first:
                first.append(each.skipped)

    def _look(self, file: JsonLines, kind: ClipKind) -> None:
        """That the first lines of a file are recordings as `kind` needs them."""
        wrong, looked = [], min(len(file), _LOOKED_AT)
        for index in range(looked):
            try:
                kind.check(line_of(file, index))
            except OmniError as error:
                wrong.append(Skipped(file.where(index), str(error)))
        if len(wrong) == looked:
            raise DataError(_of_none(looked, wrong[:5]))
        check_corrupt(len(wrong), looked, self._max_corrupt_share, wrong[:5], "recordings")


def _of_none(count: int, first: Sequence[Skipped]) -> str:
    shown = "\n  ".join(f"{each.name}: {each.reason}" for each in first)
    return f"None of {count} recordings can be used. The first:\n  {shown}\nMend them, or give others."


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed since a state was taken, in words."""
    found = [f"{key}: was {then.get(key)}, is {now[key]}" for key in ("seed", "rows") if then.get(key) != now[key]]
    old, new = then.get("sources", []), now["sources"]
    if [each["name"] for each in old] != [each["name"] for each in new]:
        return [*found, f"sources: were {[each['name'] for each in old]}, are {[each['name'] for each in new]}"]
    for before, here in zip(old, new, strict=True):
        if before["recordings"] != here["recordings"]:
            found.append(f"source {here['name']}: had {before['recordings']} recordings, has {here['recordings']}")
        elif before["digest"] != here["digest"]:
            found.append(f"source {here['name']}: its lines")
    return found
