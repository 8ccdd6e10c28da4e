"""What kernels of several folders share."""

import jax
import jax.numpy as jnp


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b, float32 out. Float32 operands are not rounded: Triton's default for them is TF32, with 10 bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def out_like(shape: tuple[int, ...], dtype, *operands: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape of a kernel's output; inside `jax.shard_map` it varies over the mesh axes that any operand varies over."""
    types = [jax.typeof(each) for each in operands]
    if hasattr(types[0], "manual_axis_type"):
        axes = frozenset().union(*(each.manual_axis_type.varying for each in types))
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType(varying=axes))
    return jax.ShapeDtypeStruct(shape, dtype, vma=frozenset().union(*(each.vma for each in types)))  # JAX before 0.10.1
