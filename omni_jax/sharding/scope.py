"""The mesh and the rules that a program is traced under, which is how layers learn where activations live."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from omni_jax.sharding.rules import SAMPLING, Rules


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None, rules: Rules) -> Iterator[None]:
    """Trace and run under `mesh`; nothing changes where it is None.

    Not across a `yield` of a generator: the caller would find itself on the mesh too.
    """
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(rules.items())):
        yield


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the first array of `tree` is spread over, if any."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        return sharding.mesh if isinstance(sharding, NamedSharding) else None
    return None


class Program:
    """A jitted function of (parameters, …) that runs on the mesh of its parameters by the rules of sampling."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        self.jitted = jax.jit(function, **options)
        update_wrapper(self, function)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        with on_mesh(mesh_of(params), SAMPLING):
            return self.jitted(params, *args, **kwargs)

    def lower(self, params: Any, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """For ahead-of-time compilation: `params` may be shapes with shardings."""
        with on_mesh(mesh_of(params), SAMPLING):
            return self.jitted.lower(params, *args, **kwargs)

    def clear_cache(self) -> None:
        """Forgets what was compiled."""
        self.jitted.clear_cache()

    def _cache_size(self) -> int:
        return self.jitted._cache_size()


def program(**options: Any) -> Callable[[Callable[..., Any]], Program]:
    """Decorator: `jax.jit` with its options, see `Program`."""
    return partial(Program, **options)
