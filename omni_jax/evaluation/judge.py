"""From an answer to the statistics of each measure, with the scorers that there are; the same of the true recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from omni_jax.evaluation.data import Item, TaskData
from omni_jax.evaluation.scorers import Heard, Scorers
from omni_jax.evaluation.task import SCORER_OF, Measure

RATE = 24_000
_LOWEST_OPINION = 1.0

Statistics = dict[str, list[float]]


@dataclass(eq=False)
class Judge:
    """Scores the answers of one task."""

    data: TaskData
    scorers: Scorers

    @property
    def measures(self) -> list[Measure]:
        """Those whose scorer is there."""
        return [m for m in self.data.task.measures if SCORER_OF[m.of] in self.scorers]

    def score(self, item: Item, text: str, seen: Any, waveform: np.ndarray | None) -> tuple[Statistics, str | None]:
        """Statistics by the name of the measure, and what the recogniser heard.

        Args:
            seen: (width, height) of the first picture as the model saw it, or None.
            waveform: float32 [W], 24 kHz; of a spoken answer.
        """
        return self._scored(item, _Answer(text, waveform, seen, self.scorers), truth=False)

    @property
    def asked(self) -> set[str]:
        """Names of the scorers, of those there are, that answers and true recordings of this task will be given to."""
        task = self.data.task
        names = {"recognizer" if measure.of == "timed" else SCORER_OF[measure.of] for measure in task.measures}
        if task.speak is None and any(task.truth(item.line) is not None for item in self.data.items):
            names.add("recognizer")
        return {name for name in names if name is not None and name in self.scorers}

    def floor(self, item: Item, seen: Any = None) -> Statistics:
        """The same of the truth: the best that the scorers could say.

        The truth is the true recording, where the line has one; of text that is not of a recording the reference, where
        it is a text or a number and so could be an answer.
        """
        task, found = self.data.task, {}
        recording = task.truth(item.line)
        if recording is not None and self.scorers.functions:
            waveform = self._sound(self.data.path(recording))
            answer = _Answer(None, waveform, seen, self.scorers)
            if task.speak is not None:
                found = self._scored(item, answer, truth=True)[0]
            elif "recognizer" in self.scorers:
                answer.text = answer.heard.text
                found = self._scored(item, answer, truth=True)[0]
        if recording is None or task.speak is not None:
            found |= self._of_references(item, seen)
        return found

    def _of_references(self, item: Item, seen: Any) -> Statistics:
        """Of the measures of text; the best where there are several references."""
        found: Statistics = {}
        for measure in self.data.task.measures:
            if measure.of == "text" and (measure.where is None or measure.where(item.line)):
                tried = [
                    self._measured(measure, item, _Answer(text, None, seen, self.scorers), truth=True)
                    for text in _texts(measure.reference(item.line))
                ]
                if tried:
                    sign = 1 if measure.metric.higher_is_better else -1
                    best = max(tried, key=lambda stats: sign * measure.metric.total(np.array(stats, np.float64)))
                    found[measure.name] = [float(x) for x in best]
        return found

    def _scored(self, item: Item, answer: "_Answer", *, truth: bool) -> tuple[Statistics, str | None]:
        found: Statistics = {}
        for measure in self.measures:
            if measure.where is not None and not measure.where(item.line):
                continue
            stats = self._measured(measure, item, answer, truth)
            if stats is not None:
                found[measure.name] = [float(x) for x in stats]
        heard = answer.heard.text if "heard" in answer.__dict__ else None
        return found, heard

    def _measured(self, measure: Measure, item: Item, answer: "_Answer", truth: bool) -> Any:
        line, score = item.line, measure.metric.score
        if measure.of == "text":
            if answer.text is None:
                return None
            line = line if answer.seen is None else {**line, "seen": answer.seen}
            return score(measure.extract(answer.text, line), measure.reference(item.line))
        if measure.of == "heard":
            return score(measure.extract(answer.heard.text, line), measure.reference(line))
        if not len(answer.waveform):  # nothing was said: the worst
            return {"timed": (1.0, 1.0), "mos": (_LOWEST_OPINION, 1.0)}.get(measure.of, (0.0, 1.0))
        if measure.of == "timed":
            words = answer.heard.words if "recognizer" in self.scorers else None
            return score((answer.waveform, RATE, words), measure.reference(line))
        if measure.of == "mos":
            return score(answer.opinion, None)
        if measure.of == "voice":
            other = self._sound(self.data.path(measure.reference(line)))
            return score(answer.voice, self.scorers.voice(other, RATE))
        name = measure.reference(line)
        voices = self._voices_without(item) if truth else self._mean_voices
        return score(answer.voice, (name, voices)) if name in voices else None

    @cached_property
    def _vectors(self) -> dict[str, dict[int, np.ndarray]]:
        """Of the true recordings, by voice and line."""
        found: dict[str, dict[int, np.ndarray]] = {}
        for item in self.data.items:
            recording, voice = self.data.task.truth(item.line), self.data.task.voice(item.line)
            if recording is not None and voice is not None:
                vector = self.scorers.voice(self._sound(self.data.path(recording)), RATE)
                found.setdefault(voice, {})[item.index] = vector / max(np.linalg.norm(vector), 1e-12)
        return found

    @cached_property
    def _mean_voices(self) -> dict[str, np.ndarray]:
        return {voice: np.mean(list(own.values()), axis=0) for voice, own in self._vectors.items()}

    def _voices_without(self, item: Item) -> Mapping[str, np.ndarray]:
        """The same, of other lines than this one: a recording is not compared with itself."""
        voices = dict(self._mean_voices)
        for voice, own in self._vectors.items():
            if item.index in own:
                others = [vector for index, vector in own.items() if index != item.index]
                if others:
                    voices[voice] = np.mean(others, axis=0)
                else:
                    del voices[voice]
        return voices

    def _sound(self, path: str) -> np.ndarray:
        from input_pipeline.media import load_audio

        return load_audio(path, sampling_rate=RATE)


def _texts(reference: Any) -> list[str]:
    """A reference, or each of several, as a model would write it; none of one that is no text, as a box."""
    if isinstance(reference, (str, int, float)):
        return [str(reference)]
    several = isinstance(reference, Sequence) and all(isinstance(each, str) for each in reference)
    return list(reference) if several else []


class _Answer:
    """An answer and what scorers make of it, each asked once and only if somebody wants to know."""

    def __init__(self, text: str | None, waveform: np.ndarray | None, seen: Any, scorers: Scorers):
        self.text, self.seen, self._scorers = text, seen, scorers
        self.waveform = np.zeros(0, np.float32) if waveform is None else waveform

    @cached_property
    def heard(self) -> Heard:
        return self._scorers.hear(self.waveform, RATE)

    @cached_property
    def voice(self) -> np.ndarray:
        return self._scorers.voice(self.waveform, RATE)

    @cached_property
    def opinion(self) -> float:
        return self._scorers.opinion(self.waveform, RATE)
