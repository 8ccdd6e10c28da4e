"""One training step: loss, gradients, update. State in, state out, nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import DictKey
from jaxtyping import Array, Float, Int, UInt32

from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError, ShardingError
from omni_jax.layers.rounded_products import rounding_products
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sharding.hosts import assemble
from omni_jax.sharding.rules import TRAINING, Rules, partition_spec, parts, replicated, shardings
from omni_jax.sharding.scope import on_mesh
from omni_jax.training.batches import batch_axes
from omni_jax.training.lora import LORA, LoraConfig, adapted, lora_parts, merge_lora, start_lora
from omni_jax.training.optimizer import (
    OptimizerConfig,
    frozen_paths,
    is_matrix,
    learning_rate,
    make_optimizer,
    matching,
    rate_factors,
)
from omni_jax.training.task import Losses, Task

Params = Any
flat, nested = partial(flatten_dict, sep="/"), partial(unflatten_dict, sep="/")


@dataclass(frozen=True)
class Guard:
    """Which steps are skipped: those whose gradients are not finite, or leap.

    spike: a norm above this many times its running average; None for no limit.
    settle: steps taken before that average is trusted.
    patience: after so many skipped steps in a row the run should stop.
    """

    spike: float | None = 20.0
    settle: int = 100
    patience: int = 10

    def __post_init__(self):
        if self.settle < 1:
            raise ConfigError(f"guard: settle = {self.settle} must be at least 1. To have no limit, set spike to None.")
        if (self.spike is not None and self.spike <= 1) or self.patience < 1:
            raise ConfigError(
                f"guard: spike = {self.spike} must be above 1, and patience = {self.patience} at least 1."
            )


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    params: flat dict, path -> array; what is trained is float32. step counts all steps, also skipped ones.
    """

    step: Int[Array, ""]
    params: dict[str, Array]
    optimizer_state: Any
    key: UInt32[Array, "2"]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    usual_norm: Float[Array, ""]  # running average of the norms of gradients that were used


def compute_copy(params: Params, dtype: Any) -> Params:
    """Matrices and embeddings in the compute dtype; norms and biases, small, as they are. A nested dict."""

    def cast(path, x):
        return x.astype(dtype) if is_matrix(path[-1].key) else x

    return jax.tree_util.tree_map_with_path(cast, params)


class Trainer:
    """The jitted step of a task on a mesh, with the sharding of all that goes in and out."""

    def __init__(
        self,
        config: OmniConfig,
        task: Task,
        optimizer: OptimizerConfig,
        mesh: Mesh,
        *,
        freeze: Sequence[str] = (),
        rates: Mapping[str, float] | None = None,
        accumulate: int = 1,
        lora: LoraConfig | None = None,
        guard: Guard = Guard(),
        dtype: Any = jnp.float32,
        round_products: bool = False,
        rules: Rules = TRAINING,
    ):
        """Works out what is trained and where everything lives; nothing is allocated.

        Args:
            freeze: regular expressions of the parameters that stay as they are; their matrices are kept in `dtype`.
            rates: regular expression -> factor of the learning rate.
            accumulate: a step's batch is worked through in so many parts, whose gradients are added up.
            lora: adapters are trained instead of the task's parameters, which all stay as they are. What `freeze`
                names gets none.
            dtype: of compute.
            round_products: on a single CPU device, see `RunConfig`; elsewhere it changes nothing.

        Raises:
            ConfigError: a pattern that matches nothing, nothing left to train, or something that the task cannot.
            ShardingError: a parameter does not divide over the mesh.
        """
        self.task, self.mesh, self.rules, self.guard, self.accumulate = task, mesh, rules, guard, accumulate
        self.lora, self.dtype, self.rounded = lora, jnp.dtype(dtype), round_products and mesh.size == 1
        axes, shapes = (flat(tree) for tree in logical_axes(config, task.components))
        self.model_axes = axes
        self.auxiliary = dict(getattr(task, "auxiliary", {}))
        if self.auxiliary and lora is not None:
            raise ConfigError("This stage trains parameters of its own beside the model. Leave out lora.")
        if lora is None:
            self.frozen = frozen_paths(freeze, shapes) if freeze else frozenset()
            axes = axes | {path: names for path, (names, _) in self.auxiliary.items()}
            shapes = shapes | {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, (_, x) in self.auxiliary.items()}
        else:
            fixed = {path for pattern in freeze for path in matching(pattern, list(shapes), "freeze")}
            self.frozen = frozenset(shapes)
            adaptable = {path: leaf for path, leaf in shapes.items() if path not in fixed}
            added_axes, added = lora_parts(lora, axes, adaptable)
            axes = axes | {f"{LORA}/{path}": names for path, names in added_axes.items()}
            shapes = shapes | {f"{LORA}/{path}": leaf for path, leaf in added.items()}
        self.trained = tuple(sorted(path for path in shapes if path not in self.frozen))
        check = getattr(task, "check_trained", None)  # of tasks that do not train all of their components
        if check is not None:
            own = {path for path in self.trained if not path.startswith(f"{LORA}/")}
            check(own | self.adapted, self.adapted, optimizer.weight_decay)
        self.shapes = {path: jax.ShapeDtypeStruct(leaf.shape, self._kept(path)) for path, leaf in shapes.items()}
        self.shardings = flat(shardings(nested(axes), nested(shapes), mesh, rules))
        self.schedule = learning_rate(optimizer)
        factors = rate_factors(rates, self.trained) if rates else None
        self.optimizer = make_optimizer(optimizer, {path: axes[path] for path in self.trained}, factors)
        self.state_shapes = jax.eval_shape(self._start, self.shapes, jax.ShapeDtypeStruct((2,), jnp.uint32))
        self.state_shardings = self._place()
        whole = replicated(mesh)
        self.jitted = jax.jit(self._step, out_shardings=(self.state_shardings, whole), donate_argnums=0)
        self._evaluate = jax.jit(self._losses_of, out_shardings=whole)

    def start(self, params: Params, *, seed: int = 0) -> TrainState:
        """The state before the first step; parameters (a nested dict) are put where they belong, with new adapters."""
        given = dict(flat(params)) | {path: first for path, (_, first) in self.auxiliary.items()}
        key = jax.random.PRNGKey(seed)
        missing = [path for path in self.shapes if path not in given and not path.startswith(f"{LORA}/")]
        if missing:
            raise ConfigError(f"Parameters are missing: {', '.join(missing[:8])}. Load {self.task.components}.")
        with on_mesh(self.mesh, self.rules):
            if self.lora is not None:
                prefix = f"{LORA}/"
                shapes = {path.removeprefix(prefix): self.shapes[path] for path in self.trained}
                fresh = start_lora(jax.random.fold_in(key, 1), shapes, self.model_axes)
                given |= {f"{prefix}{path}": leaf for path, leaf in fresh.items()}
            placed = {}
            for path, shape in self.shapes.items():
                leaf = given[path]
                leaf = leaf.astype(shape.dtype) if leaf.dtype != shape.dtype else leaf
                # a copy: the step donates its state, and the caller keeps what he gave
                placed[path] = jax.device_put(leaf, self.shardings[path], may_alias=False)
            return jax.jit(self._start, out_shardings=self.state_shardings, donate_argnums=0)(placed, key)

    def put(self, batch: Any) -> Any:
        """The rows that this host has loaded onto its devices, as its part of the global batch.

        Raises:
            ShardingError: the batch or its length does not divide over the mesh.
        """
        if self.accumulate > 1:
            rows = jax.tree.leaves(batch)[0].shape[0]
            if rows % self.accumulate:
                raise ShardingError(
                    f"{rows} rows do not divide into {self.accumulate} micro-batches. Choose a multiple, or another "
                    "number of micro-batches (accumulate)."
                )
            batch = jax.tree.map(lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]), batch)
        spec = partition_spec(("batch",), self.rules)
        count = parts(self.mesh, spec[0])
        own = NamedSharding(self.mesh, spec).addressable_devices_indices_map((count,)).values()
        hosts = count // len({index[0].start for index in own})  # groups of hosts with rows of their own
        return assemble(batch, self.batch_shardings(batch, hosts))

    def batch_shardings(self, batch: Any, hosts: int = 1) -> Any:
        """Where each array of a batch lives.

        Args:
            batch: arrays or shapes, with a leading axis of micro-batches if there are several.
            hosts: the global batch has so many times the rows of this one.

        Raises:
            ShardingError: the batch or its length does not divide over the mesh.
        """
        stacked = (None,) * (self.accumulate > 1)

        def place(path, names, leaf):
            spec = partition_spec((*stacked, *names), self.rules)
            for axis, size, split in zip((*stacked, *names), leaf.shape, spec, strict=True):
                # a striped sequence is dealt out in two chunks a device
                count = parts(self.mesh, split) * (2 if axis == "length" and parts(self.mesh, split) > 1 else 1)
                size = size * hosts if axis == "batch" else size
                if size % count:
                    name = jax.tree_util.keystr(path, simple=True, separator=".")
                    raise ShardingError(
                        f"batch.{name}: axis {axis} of size {size} does not divide over {count}. "
                        f"Choose a multiple of {count}, or a smaller mesh."
                    )
            return NamedSharding(self.mesh, spec)

        is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
        return jax.tree_util.tree_map_with_path(place, batch_axes(self._one(batch)), batch, is_leaf=is_axes)

    def _one(self, batch: Any) -> Any:
        """Shapes of a single micro-batch."""
        drop = 1 if self.accumulate > 1 else 0
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[drop:], x.dtype), batch)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        """One step. `state` is donated: use what comes back.

        Returns:
            The new state, the same but for its counters where the step was skipped; scalars: loss (mean over what
            counts) and its weight, gradient_norm, learning_rate, skipped (so far), skipped_in_a_row, and "part/NAME"
            with "weight/NAME" of the task's further means.
        """
        with on_mesh(self.mesh, self.rules):
            return self.jitted(state, batch)

    def evaluate(self, state: TrainState, batch: Any) -> dict[str, Array]:
        """loss, weight and parts of a batch, without an update."""
        with on_mesh(self.mesh, self.rules):
            return self._evaluate(state.params, batch, state.key)

    @property
    def adapted(self) -> frozenset[str]:
        """Paths of the model's parameters that have adapters."""
        prefix = f"{LORA}/"
        return frozenset(path[len(prefix) :].rsplit("/", 1)[0] for path in self.trained if path.startswith(prefix))

    @property
    def untouched(self) -> frozenset[str]:
        """Paths of the model's parameters that training leaves as they are, adapters counted."""
        return self.frozen - self.adapted

    def kept(self, state: TrainState) -> Params:
        """The model's parameters as the state has them, without adapters and not copied: a nested dict."""
        return nested({path: state.params[path] for path in self.model_axes})

    def with_adapter(self, state: TrainState, path: str, weight: Array) -> Float[Array, "..."]:
        """An adapted parameter to export, float32, from its value before training.

        The state may have that value in the compute dtype only, which would round it where it is stored wider.
        """
        sides = (state.params[f"{LORA}/{path}/{side}"] for side in ("lora_in", "lora_out"))
        with on_mesh(self.mesh, self.rules):
            merge = partial(adapted, axes=self.model_axes[path], scale=self.lora.scale, precision="highest")
            return jax.jit(merge, out_shardings=self.shardings[path])(weight, *sides)

    def merged(self, state: TrainState) -> Params:
        """The parameters to answer with, adapters added, each in the dtype that it is kept in: a nested dict."""
        with on_mesh(self.mesh, self.rules):
            places = {path: self.shardings[path] for path in self.model_axes}
            merge = jax.jit(lambda params: {p: x for p, x in self._merge(params, None).items() if p in places},
                            out_shardings=places)  # fmt: skip
            return nested(merge(state.params))

    def abstract(self, batch: Any) -> tuple[TrainState, Any]:
        """State and batch as shapes with their shardings, to compile ahead of time; `batch` of shapes."""

        def place(shapes, places):
            return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, places)

        return place(self.state_shapes, self.state_shardings), place(batch, self.batch_shardings(batch))

    def _kept(self, path: str) -> Any:
        """The dtype that a parameter is kept in."""
        return self.dtype if path in self.frozen and is_matrix(path) else jnp.dtype(jnp.float32)

    def _start(self, params: dict[str, Array], key: Array) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        moments = self.optimizer.init({path: params[path] for path in self.trained})
        return TrainState(zero, params, moments, key, zero, zero, jnp.zeros((), jnp.float32))

    def _place(self) -> TrainState:
        whole = replicated(self.mesh)

        def place(path: tuple, _: Any) -> Any:
            # What the optimiser keeps of a parameter has its form, and lives where it does. By path, for
            # optax.tree_map_params cannot look into optimisers that treat some parameters otherwise.
            return self.shardings[path[-1].key] if path and isinstance(path[-1], DictKey) else whole

        moments = jax.tree_util.tree_map_with_path(place, self.state_shapes.optimizer_state)
        return TrainState(whole, {path: self.shardings[path] for path in self.shapes}, moments, *(whole,) * 4)

    def _merge(self, params: dict[str, Array], dtype: Any) -> dict[str, Array]:
        if self.lora is None:
            return params
        prefix = f"{LORA}/"
        adapters = {path.removeprefix(prefix): leaf for path, leaf in params.items() if path.startswith(prefix)}
        model = {path: leaf for path, leaf in params.items() if not path.startswith(prefix)}
        return merge_lora(model, adapters, self.model_axes, self.lora.scale, dtype)

    def _loss(self, trained: dict[str, Array], fixed: dict[str, Array], batch: Any, key: Array) -> Losses:
        params = self._merge(fixed | trained, self.dtype)
        with rounding_products(self.rounded):
            return self.task.loss(nested(params), batch, key)

    def _losses_of(self, params: dict[str, Array], batch: Any, key: Array) -> dict[str, Array]:
        def one(batch, index):
            return self._loss({}, params, batch, jax.random.fold_in(key, index))

        return _report(self._over_parts(one, batch))

    def _over_parts(self, function: Any, batch: Any) -> Any:
        """The sum of `function(micro-batch, its number)` over the micro-batches of a step."""
        if self.accumulate == 1:
            return function(batch, 0)
        shapes = jax.eval_shape(function, self._one(batch), jax.ShapeDtypeStruct((), jnp.int32))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total, item):
            # without the barrier the TPU compiler tries to move sums over devices out of this loop, and fails
            return jax.tree.map(jnp.add, total, jax.lax.optimization_barrier(function(*item))), None

        return jax.lax.scan(add, zeros, (batch, jnp.arange(self.accumulate)))[0]

    def _step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        trained = {path: state.params[path] for path in self.trained}
        fixed = {path: leaf for path, leaf in state.params.items() if path not in trained}
        key = jax.random.fold_in(state.key, state.step)

        def one(batch, index):
            def summed_loss(trained):
                losses = self._loss(trained, fixed, batch, jax.random.fold_in(key, index))
                return losses.total.loss, losses

            gradients, losses = jax.grad(summed_loss, has_aux=True)(trained)
            # each device adds up the part that it will apply: sums are scattered, not made whole everywhere
            placed = {path: self.shardings[path] for path in gradients}
            return jax.lax.with_sharding_constraint(gradients, placed), losses

        gradients, losses = self._over_parts(one, batch)
        weight = jnp.maximum(losses.total.weight, 1e-9)
        gradients = jax.tree.map(lambda gradient: gradient / weight, gradients)
        norm = optax.global_norm(gradients)
        updates, moments = self.optimizer.update(gradients, state.optimizer_state, trained)
        good = self._good(state, norm) & jnp.isfinite(losses.total.loss)

        def chosen(new, old):
            return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)

        taken = state.step - state.skipped
        # the mean of the first norms, then a running average
        usual = state.usual_norm + (norm - state.usual_norm) / jnp.minimum(taken + 1, self.guard.settle)
        skipped = state.skipped + ~good
        in_a_row = jnp.where(good, 0, state.skipped_in_a_row + 1)
        state = TrainState(
            step=state.step + 1,
            params=fixed | chosen(optax.apply_updates(trained, updates), trained),
            optimizer_state=chosen(moments, state.optimizer_state),
            key=state.key,
            skipped=skipped,
            skipped_in_a_row=in_a_row,
            usual_norm=jnp.where(good, usual, state.usual_norm),
        )
        metrics = _report(losses) | {
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(self.schedule(taken), jnp.float32),
            "skipped": skipped,
            "skipped_in_a_row": in_a_row,
        }
        return state, metrics

    def _good(self, state: TrainState, norm: Array) -> Array:
        if self.guard.spike is None:
            return jnp.isfinite(norm)
        settled = state.step - state.skipped >= self.guard.settle
        return jnp.isfinite(norm) & ~(settled & (norm > self.guard.spike * state.usual_norm))


def _report(losses: Losses) -> dict[str, Array]:
    metrics = {"loss": losses.total.mean, "weight": losses.total.weight}
    for name, part in losses.parts.items():
        metrics |= {f"part/{name}": part.mean, f"weight/{name}": part.weight}
    return metrics
