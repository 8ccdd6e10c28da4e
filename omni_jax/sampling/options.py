"""What a caller may choose about an answer, checked before any expensive work."""

import math
from dataclasses import dataclass

from omni_jax.errors import PromptError


@dataclass(frozen=True)
class SamplingOptions:
    """Options of one request. The defaults are greedy decoding, as in the published generation settings.

    Raises:
        PromptError: a value out of range, with the range.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, allowed: str) -> None:
            if not condition:
                raise PromptError(f"{name} = {getattr(self, name)!r} is out of range. Give {allowed}.")

        need(1 <= self.max_new_tokens < 2**31, "max_new_tokens", "a value from 1 to 2147483647")
        need(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "0 (greedy) or more")
        need(0 <= self.top_k < 2**31, "top_k", "0 (off), or a value up to 2147483647")
        need(0 < self.top_p <= 1, "top_p", "a value above 0 and at most 1")
        need(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "a positive value; 1 is off",
        )
        need(0 <= self.seed < 2**31, "seed", "a value from 0 to 2147483647")
