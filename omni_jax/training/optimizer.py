"""AdamW with warm-up and cosine decay, as the Qwen2.5 family is trained."""

from dataclasses import dataclass

import jax
import optax

from omni_jax.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    learning_rate: the highest, reached after `warmup_steps`; it falls along a cosine to `final_fraction` of it.
    clip: largest global norm of the gradients.
    """

    learning_rate: float = 1e-5
    warmup_steps: int = 100
    total_steps: int = 1000
    final_fraction: float = 0.1
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


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; biases, norms and other vectors are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: is_matrix(path), params),
        ),
    )


def is_matrix(path: tuple) -> bool:
    """Whether the parameter at this path of a tree is a kernel or an embedding: not a bias, not a norm."""
    return path[-1].key in ("kernel", "embedding")
