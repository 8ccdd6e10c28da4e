"""One training step: loss, gradients, update. State in, state out, nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from omni_jax.config import OmniConfig
from omni_jax.errors import ShardingError
from omni_jax.models.logical_axes import logical_axes
from omni_jax.models.thinker import Thinker
from omni_jax.sharding.rules import TRAINING, Rules, partition_spec, parts, replicated, shardings
from omni_jax.sharding.scope import on_mesh
from omni_jax.training.objectives import Total, next_token_loss
from omni_jax.training.optimizer import is_matrix

Params = Any
Loss = Callable[[Params, Any], Total]


@struct.dataclass
class TrainState:
    """Everything that a step changes."""

    step: Int[Array, ""]
    params: Params  # master copy, float32
    optimizer_state: Any


@struct.dataclass
class TextBatch:
    """Packed sequences of tokens. Position t predicts labels[:, t] with weight weights[:, t]."""

    token_ids: Int[Array, "B T"]
    position_ids: Int[Array, "3 B T"]
    segment_ids: Int[Array, "B T"]
    labels: Int[Array, "B T"]
    weights: Float[Array, "B T"]


# Logical axes of a batch, by field.
Axes = Mapping[str, tuple[str | None, ...]]
BATCH_AXES: Axes = {
    "token_ids": ("batch", "length"),
    "position_ids": (None, "batch", "length"),
    "segment_ids": ("batch", "length"),
    "labels": ("batch", "length"),
    "weights": ("batch", "length"),
}


def text_loss(config: OmniConfig, *, dtype: Any = jnp.float32, remat: bool = True, chunk: int = 512) -> Loss:
    """Next-token loss of the Thinker on packed text.

    Args:
        dtype: of compute; parameters are cast to it once, on the devices that hold them, so that what travels between
            devices is of this dtype too.
        remat: keep only each layer's input for the backward pass.
        chunk: positions whose logits exist at a time on a device.
    """
    thinker = Thinker(config.thinker_config.text_config, dtype=dtype, remat=remat)

    def loss(params: Params, batch: TextBatch) -> Total:
        params = compute_copy(params, dtype)["thinker"]
        embeddings = thinker.apply({"params": params}, batch.token_ids, method="embed")
        hidden = thinker.apply(
            {"params": params}, embeddings, batch.position_ids, segment_ids=batch.segment_ids, method="decode"
        ).hidden_states
        return next_token_loss(hidden, params["lm_head"]["kernel"], batch.labels, batch.weights, chunk=chunk)

    return loss


def compute_copy(params: Params, dtype: Any) -> Params:
    """Matrices and embeddings in the compute dtype; norms and biases, small, as they are."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if is_matrix(path) else x, params)


def train_step(
    state: TrainState, batch: Any, *, loss: Loss, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The state after one update; and loss (mean over what counts), weight and norm of the gradients."""

    def mean(params):
        total = loss(params, batch)
        return total.mean, total

    gradients, total = jax.grad(mean, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": total.mean, "weight": total.weight, "gradient_norm": optax.global_norm(gradients)}
    return TrainState(state.step + 1, params, optimizer_state), metrics


class Trainer:
    """The jitted step on a mesh, with the sharding of all that goes in and out."""

    def __init__(
        self,
        config: OmniConfig,
        components: tuple[str, ...],
        loss: Loss,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        *,
        rules: Rules = TRAINING,
    ):
        """Works out where everything lives; nothing is allocated.

        Raises:
            ShardingError: a parameter does not divide over the mesh.
        """
        self.mesh, self.rules, self.optimizer = mesh, rules, optimizer
        axes, shapes = logical_axes(config, components)
        placed = shardings(axes, shapes, mesh, rules)
        start = jax.eval_shape(self._start, shapes)
        whole = replicated(mesh)
        # the optimiser keeps copies of the parameters' form: they live where the parameters do
        moments = optax.tree_map_params(
            optimizer, lambda _, place: place, start.optimizer_state, placed, transform_non_params=lambda _: whole
        )
        self.state_shapes = start
        self.state_shardings = TrainState(whole, placed, moments)
        self.jitted = jax.jit(
            lambda state, batch: train_step(state, batch, loss=loss, optimizer=optimizer),
            out_shardings=(self.state_shardings, whole),
            donate_argnums=0,
        )

    def _start(self, params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

    def start(self, params: Params) -> TrainState:
        """The state before the first step; parameters are put where they belong."""
        params = jax.device_put(params, self.state_shardings.params)
        with on_mesh(self.mesh, self.rules):
            return jax.jit(self._start, out_shardings=self.state_shardings)(params)

    def batch_shardings(self, batch: Any, axes: Axes = BATCH_AXES) -> Any:
        """Where each field of a batch lives.

        Raises:
            ShardingError: the batch or its length does not divide over the mesh.
        """
        places = {}
        for name, names in axes.items():
            value, spec = getattr(batch, name), partition_spec(names, self.rules)
            for axis, size, split in zip(names, value.shape, spec, strict=True):
                # a striped sequence is dealt out in two chunks a device
                count = parts(self.mesh, split) * (2 if axis == "length" and parts(self.mesh, split) > 1 else 1)
                if size % count:
                    raise ShardingError(
                        f"batch.{name}: axis {axis} of size {size} does not divide over {count}. "
                        f"Choose a multiple of {count}, or a smaller mesh."
                    )
            places[name] = NamedSharding(self.mesh, spec)
        return type(batch)(**places)

    def put(self, batch: Any, axes: Axes = BATCH_AXES) -> Any:
        """A batch, the same on every host, onto the devices; each takes its part."""
        return jax.device_put(batch, self.batch_shardings(batch, axes))

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        """One step. `state` is donated: use what comes back."""
        with on_mesh(self.mesh, self.rules):
            return self.jitted(state, batch)

    def abstract(self, batch: Any, axes: Axes = BATCH_AXES) -> tuple[TrainState, Any]:
        """State and batch as shapes with their shardings, to compile ahead of time; `batch` of shapes."""

        def place(shapes, places):
            return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, places)

        return place(self.state_shapes, self.state_shardings), place(batch, self.batch_shardings(batch, axes))
