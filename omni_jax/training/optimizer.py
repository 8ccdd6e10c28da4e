"""AdamW as the Qwen2.5 family is trained, or Muon; warm-up and cosine decay; which parameters move, and how fast."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optax
from optax.contrib import MuonDimensionNumbers, muon

from omni_jax.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    kind: "adamw", or "muon" (Jordan 2024), which makes the steps of matrices orthogonal: a model that begins with
        random parameters learns from far fewer examples. Embeddings, heads over a vocabulary, biases and norms go by
        Adam there, too. Its steps are as long as AdamW's at an equal rate (Liu et al. 2025, arXiv:2502.16982).
    learning_rate: the highest, reached after `warmup_steps`; it falls along a cosine to `final_fraction` of it.
    momentum: Muon's. beta1, beta2, epsilon: Adam's.
    clip: largest global norm of the gradients.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-5
    warmup_steps: int = 100
    total_steps: int = 1000
    final_fraction: float = 0.1
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self):
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ConfigError(
                f"warmup_steps = {self.warmup_steps} must be at least 0 and below total_steps = {self.total_steps}."
            )
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ConfigError(f"learning_rate = {self.learning_rate} and clip = {self.clip} must be above 0.")


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Step -> learning rate."""
    return optax.warmup_cosine_decay_schedule(
        0.0 if config.warmup_steps else config.learning_rate,
        config.learning_rate,
        config.warmup_steps,
        config.total_steps,
        config.learning_rate * config.final_fraction,
    )


def make_optimizer(
    config: OptimizerConfig, axes: Mapping[str, tuple], factors: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon; biases, norms and other vectors are not decayed.

    It works on flat dicts, path -> array. `axes` are the logical axes of the parameters, which tell Muon inputs from
    outputs. `factors` scale the learning rate (and the decay) of some paths.
    """
    rate = learning_rate(config)
    if config.kind == "muon":
        moved = _moved_by_muon(axes)
        rule = muon(
            rate,
            beta=config.momentum,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=lambda params: {path: moved.get(path) for path in params},
            consistent_rms=0.2,
        )
    else:
        rule = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: {path: is_matrix(path) for path in params},
        )
    transforms = [optax.clip_by_global_norm(config.clip), rule]
    if factors:
        transforms.append(
            optax.stateless(lambda updates, _: {path: u * factors.get(path, 1.0) for path, u in updates.items()})
        )
    return optax.chain(*transforms)


def _moved_by_muon(axes: Mapping[str, tuple]) -> dict[str, MuonDimensionNumbers]:
    """Which axes of a parameter are inputs, and which outputs. Layers, stacked, are matrices of their own."""
    found = {}
    for path, names in axes.items():
        if path.endswith("/kernel") and "vocab" not in names:
            stack, split = cuts(names)
            found[path] = MuonDimensionNumbers(tuple(range(stack, split)), tuple(range(split, len(names))))
    return found


def is_matrix(path: str) -> bool:
    """Whether the parameter at `path` ("thinker/layers/mlp/up/kernel") is a kernel or an embedding, not a vector."""
    return path.rsplit("/", 1)[-1] in ("kernel", "embedding", "lora_in", "lora_out")


def cuts(axes: tuple) -> tuple[int, int]:
    """Of a matrix's logical axes: how many are stacked matrices, and where inputs end and outputs begin.

    ("layers", "embed", "heads", "head_dim") -> 1, 2        ("layers", "heads", "head_dim", "embed") -> 1, 3
    """
    stack = 1 if axes and axes[0] == "layers" else 0
    return stack, stack + 1 if axes[stack] == "embed" else len(axes) - 1


def frozen_paths(patterns: Sequence[str], paths: Iterable[str]) -> frozenset[str]:
    """The paths in which any of the regular expressions is found.

    frozen_paths(["^thinker/", "norm/scale$"], ["thinker/embed/embedding", "talker/final_norm/scale", …])

    Raises:
        ConfigError: a pattern is found in no path, or everything would be frozen.
    """
    paths = list(paths)
    frozen = frozenset(path for pattern in patterns for path in matching(pattern, paths, "freeze"))
    if len(frozen) == len(paths):
        raise ConfigError(f"freeze = {list(patterns)} leaves nothing to train. Leave a pattern out.")
    return frozen


def rate_factors(rates: Mapping[str, float], paths: Iterable[str]) -> dict[str, float]:
    """Path -> factor of the learning rate; where several patterns are found in a path, the last one counts.

    Raises:
        ConfigError: a pattern is found in no path, or a factor is not above 0 (freeze instead).
    """
    paths, factors = list(paths), {}
    for pattern, factor in rates.items():
        if not factor > 0:
            raise ConfigError(f"rates[{pattern!r}] = {factor} must be above 0. To keep parameters fixed, freeze them.")
        factors |= dict.fromkeys(matching(pattern, paths, "rates"), float(factor))
    return factors


def matching(pattern: str, paths: Sequence[str], setting: str) -> list[str]:
    """The paths in which a regular expression is found.

    Raises:
        ConfigError: it is found in none, or is not a regular expression; `setting` says where it stands.
    """
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise ConfigError(f"{setting}: {pattern!r} is not a regular expression ({error}).") from error
    if not found:
        groups = sorted({"/".join(path.split("/")[:2]) for path in paths})
        raise ConfigError(
            f"{setting}: the pattern {pattern!r} matches no parameter. Parameters begin with {', '.join(groups)}."
        )
    return found
