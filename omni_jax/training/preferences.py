"""Which of several spoken answers to the same text is preferred (paper, section 4.3), without any model.

    answers ─► guards: no end, loop, length ─► score: word errors + weight * pause errors ─► best against worst

An answer that a guard stops has no score. It can be the rejected one of a pair, never the chosen one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from omni_jax.errors import ConfigError

# Guards, in the order in which they are asked.
UNUSABLE = ("silent", "unknown code")  # not even to be rejected: training takes codes that there are, one at least
GUARDS = (*UNUSABLE, "loop", "no end", "length")


@dataclass(frozen=True)
class GuardOptions:
    """What no answer may be that is chosen.

    shortest, longest: its codes, as a multiple of the median of the answers that came to an end. The bounds are those
        of public builders of such data.
    codes_per_token: stands in for that median where fewer than three came to an end; 15 are 0.3 s for each token of
        text, a usual pace of reading.
    cycle, span: codes are looping where so many (100 are 2 s) are one cycle of at most `cycle` (half a second), over
        and over. No sentence ends with a longer pause.

    Raises:
        ConfigError: a range that is empty, or a loop that is shorter than two cycles.
    """

    shortest: float = 0.5
    longest: float = 2.0
    codes_per_token: float = 15.0
    cycle: int = 25
    span: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest or self.codes_per_token <= 0:
            raise ConfigError(f"lengths of {self.shortest} to {self.longest} times the median are no range.")
        if not 1 <= self.cycle <= self.span // 2:
            raise ConfigError(f"span = {self.span} must be at least two cycles of {self.cycle} codes.")


@dataclass(frozen=True)
class SpokenSample:
    """One spoken answer.

    codes: without the end. finish_reason: see `CodeEvent`; only "stop" is an end of its own accord.
    guard: why it must not be chosen, one of `GUARDS`, or None. transcript, wer, pause: of answers without a guard.
    """

    seed: int
    codes: tuple[int, ...]
    finish_reason: str
    guard: str | None = None
    transcript: str | None = None
    wer: float | None = None
    pause: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SpokenSample":
        return cls(**{**value, "codes": tuple(value["codes"])})

    def score(self, pause_weight: float) -> float | None:
        """The lower the better; None where a guard stopped it."""
        return None if self.guard is not None else self.wer + pause_weight * self.pause


@dataclass(frozen=True)
class Choice:
    """Pairs (chosen, rejected) of one text; of those that were looked at and not taken, how many and why."""

    pairs: tuple[tuple[SpokenSample, SpokenSample], ...]
    dropped: Counter = field(default_factory=Counter)


def guard_samples(
    samples: Sequence[SpokenSample], tokens: int, num_codes: int, options: GuardOptions = GuardOptions()
) -> list[SpokenSample]:
    """All answers to one text, with the guard that stops each.

    Args:
        tokens: of the text that is said.
        num_codes: codes that there are, see `speech_codes`.
    """
    first = [_own_guard(sample, num_codes, options) for sample in samples]
    ended = [len(sample.codes) for sample, guard in zip(samples, first) if guard is None]
    usual = float(np.median(ended)) if len(ended) >= 3 else options.codes_per_token * tokens
    guarded = []
    for sample, guard in zip(samples, first):
        if guard is None and not options.shortest * usual <= len(sample.codes) <= options.longest * usual:
            guard = "length"
        guarded.append(replace(sample, guard=guard))
    return guarded


def has_loop(codes: Sequence[int], cycle: int, span: int) -> bool:
    """Whether some `span` codes in a row are one cycle of at most `cycle` codes, repeated.

    has_loop([9, 1, 2, 1, 2, 1, 2, 7], cycle=2, span=6)  ->  True
    """
    codes = np.asarray(codes)
    for period in range(1, min(cycle, len(codes) - 1) + 1):
        same = np.concatenate([[0], codes[period:] == codes[:-period], [0]])
        edges = np.flatnonzero(np.diff(same))  # where runs of repeated codes begin and end, in turn
        if len(edges) and (edges[1::2] - edges[::2]).max() >= span - period:
            return True
    return False


def choose_pairs(
    samples: Sequence[SpokenSample], *, margin: float, pause_weight: float = 1.0, most: int = 2, max_wer: float = 0.5
) -> Choice:
    """The best against the worst, the second best against the second worst, …; each answer in one pair at most.

    An answer that a guard stopped counts as worse than all that have a score, by more than any margin; of several, the
    shortest is taken first, because training pays for each code. Drops are counted as "tie" or "no margin", and as "no
    answer to choose" or "one answer only" where not even the first pair could be looked at.

    Args:
        margin: least difference of scores.
        most: pairs.
        max_wer: no answer with more word errors is chosen: the better of two that nobody understands is no example.
    """
    scored = [sample for sample in samples if sample.guard is None]
    scored.sort(key=lambda sample: sample.score(pause_weight))
    stopped = [sample for sample in samples if sample.guard is not None and sample.guard not in UNUSABLE]
    ranked = scored + sorted(stopped, key=lambda sample: -len(sample.codes))
    good = [sample for sample in scored if sample.wer <= max_wer]
    if not good:
        return Choice((), Counter({"no answer to choose": 1}))
    if len(ranked) < 2:
        return Choice((), Counter({"one answer only": 1}))
    pairs, dropped = [], Counter()
    ranked = good + [sample for sample in ranked if sample not in good]
    for chosen, rejected in list(zip(good, reversed(ranked)))[: min(most, len(ranked) // 2)]:
        if rejected.guard is None:
            difference = rejected.score(pause_weight) - chosen.score(pause_weight)
            if difference <= 0 or difference < margin:
                dropped["no margin" if difference else "tie"] += 1
                continue
        pairs.append((chosen, rejected))
    return Choice(tuple(pairs), dropped)


class Tally:
    """Figures of a whole data set, a text at a time."""

    def __init__(self) -> None:
        self.prompts, self.answers, self.pairs = 0, 0, 0
        self.guarded, self.dropped_pairs, self.dropped_prompts = Counter(), Counter(), Counter()
        self._values: dict[tuple[str, str], list[float]] = {}

    def leave_out(self, reason: str) -> None:
        """A text that no answer was drawn for."""
        self.prompts += 1
        self.dropped_prompts[reason] += 1

    def add(self, samples: Sequence[SpokenSample], choice: Choice) -> None:
        self.prompts += 1
        self.answers += len(samples)
        self.pairs += len(choice.pairs)
        self.guarded.update(sample.guard for sample in samples if sample.guard is not None)
        self.dropped_pairs.update(choice.dropped)
        self._note("all", samples)
        self._note("chosen", [chosen for chosen, _ in choice.pairs])
        self._note("rejected", [rejected for _, rejected in choice.pairs])

    def as_json(self) -> dict[str, Any]:
        """Counts, and means of both errors over the answers that have a score; None where there is none."""

        def mean(values: Iterable[float]) -> float | None:
            values = list(values)
            return float(np.mean(values)) if values else None

        sides = "all", "chosen", "rejected"
        return {
            "prompts": self.prompts,
            "answers": self.answers,
            "pairs": self.pairs,
            "guarded": dict(self.guarded),
            "dropped_prompts": dict(self.dropped_prompts),
            "dropped_pairs": dict(self.dropped_pairs),
            **{kind: {side: mean(self._values.get((kind, side), ())) for side in sides} for kind in ("wer", "pause")},
        }

    def _note(self, side: str, samples: Iterable[SpokenSample]) -> None:
        for sample in samples:
            if sample.guard is None:
                self._values.setdefault(("wer", side), []).append(sample.wer)
                self._values.setdefault(("pause", side), []).append(sample.pause)


def _own_guard(sample: SpokenSample, num_codes: int, options: GuardOptions) -> str | None:
    if not sample.codes:
        return "silent"
    if min(sample.codes) < 0 or max(sample.codes) >= num_codes:
        return "unknown code"
    if sample.finish_reason == "loop" or has_loop(sample.codes, options.cycle, options.span):
        return "loop"
    return None if sample.finish_reason == "stop" else "no end"
