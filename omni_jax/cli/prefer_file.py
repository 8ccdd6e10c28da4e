"""The file of judged answers beside the pairs: a stopped run goes on with it, and pairs can be chosen from it anew."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omni_jax.cli.prefer_answers import with_speech
from omni_jax.errors import DataError
from omni_jax.evaluation.line_file import LineFile, read_whole_lines
from omni_jax.training.preferences import SpokenSample


class AnswerFile(LineFile):
    """Texts with their judged answers, a line each. One that was cut short by a crash is cut off, and drawn again."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """See `LineFile`."""
        self.done: set[int] = set()
        super().__init__(path, settings)

    def _added(self, row: Mapping[str, Any]) -> None:
        self.done.add(row["index"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """In the order of the texts."""
        places = {}
        with open(self.path, "rb") as stream:
            stream.readline()
            while True:
                place, line = stream.tell(), stream.readline()
                if not line:
                    break
                places[json.loads(line)["index"]] = place
            for index in sorted(places):
                stream.seek(places[index])
                yield json.loads(stream.readline())

    def _go_on(self, settings: Mapping[str, Any]) -> None:
        def take(number: int, row: dict[str, Any]) -> None:
            if number == 0:
                self._check(row["settings"], settings)
            else:
                self._added(row)

        whole = read_whole_lines(self.path, take, "{path}: line {number} is damaged. Delete the file.")
        os.truncate(self.path, whole)

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        names = [name for name in new if old.get(name) != new[name]]
        if names:
            what = ", ".join(f"{name} ({old.get(name)!r:.40}, now {new[name]!r:.40})" for name in names)
            raise DataError(
                f"{self.path} was begun with another {what}.\nGive another --to, or delete that file to draw anew."
            )


def pair_line(row: Mapping[str, Any], chosen: SpokenSample, rejected: SpokenSample) -> dict[str, Any]:
    """A line of training data, without the reference; "preference" says how the pair came about."""
    item = {"type": "speech", "voice": row["voice"], "chosen": list(chosen.codes), "rejected": list(rejected.codes)}
    sides = {"chosen": chosen, "rejected": rejected}
    told = ("seed", "guard", "transcript", "wer", "pause")
    about = {side: {key: getattr(sample, key) for key in told} for side, sample in sides.items()}
    return {"messages": with_speech(row["messages"], item), "preference": {"from": row["name"], **about}}
