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

    rule: "adamw", or "muon" (Jordan 2024), which makes the steps of kernels orthogonal: parts that begin with random
        parameters learn from far fewer examples. Heads over a vocabulary, embeddings, biases and norms go by AdamW
        there, too. Its steps are as long as AdamW's at an equal rate (Liu et al. 2025, arXiv:2502.16982). For models
        that fit a device: each device makes all layers of a kernel whole.
    learning_rate: the highest, reached after `warmup_steps`; it falls along a cosine to `final_fraction` of it.
    momentum: Muon's. beta1, beta2, epsilon: Adam's.
    clip: largest global norm of the gradients.

    Raises:
        ConfigError: a setting outside of its range.
    """

    rule: Literal["adamw", "muon"] = "adamw"
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
        if self.rule not in ("adamw", "muon"):
            raise ConfigError(f"optimizer.rule = {self.rule!r} is unknown. Take adamw or muon.")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ConfigError(
                f"warmup_steps = {self.warmup_steps} must be at least 0 and below total_steps = {self.total_steps}."
            )
        # written so that NaN fails, too
        if not (self.learning_rate > 0 and self.clip > 0):
            raise ConfigError(f"learning_rate = {self.learning_rate} and clip = {self.clip} must be above 0.")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 0 and below 1.")
        if not (self.epsilon > 0 and self.weight_decay >= 0):
            raise ConfigError(
                f"epsilon = {self.epsilon} must be above 0, and weight_decay = {self.weight_decay} not below it."
            )


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

    It works on flat dicts, path -> array. `axes` are the logical axes of what is trained, which tell Muon inputs from
    outputs. `factors` scale the learning rate (and the decay) of some paths.

    Raises:
        ConfigError: Muon, and nothing that it could move.
    """
    rule = optax.adamw(
        learning_rate(config),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=lambda params: {path: is_matrix(path) for path in params},
    )
    if config.rule == "muon":
        rule = _with_muon(rule, config, axes)
    transforms = [optax.clip_by_global_norm(config.clip), rule]
    if factors:
        transforms.append(
            optax.stateless(lambda updates, _: {path: u * factors.get(path, 1.0) for path, u in updates.items()})
        )
    return optax.chain(*transforms)


def _with_muon(
    adamw: optax.GradientTransformation, config: OptimizerConfig, axes: Mapping[str, tuple]
) -> optax.GradientTransformation:
    """Muon for kernels, but for heads over a vocabulary; `adamw` for what is left."""
    moved = {}
    for path, names in axes.items():
        if path.endswith("/kernel") and "vocab" not in names:
            stack, split = cuts(names)  # layers, stacked, are matrices of their own
            moved[path] = MuonDimensionNumbers(tuple(range(stack, split)), tuple(range(split, len(names))))
    if not moved:
        raise ConfigError(
            'optimizer.rule = "muon" moves kernels, of which none is trained (adapters are none). Take adamw.'
        )
    kernels = muon(
        learning_rate(config),
        beta=config.momentum,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        # partition hides the other paths
        muon_weight_dimension_numbers=lambda params: {path: moved.get(path, optax.MaskedNode()) for path in params},
        consistent_rms=0.2,
    )
    groups = {"muon": kernels, "adamw": adamw}
    return optax.partition(groups, lambda params: {path: "muon" if path in moved else "adamw" for path in params})


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
