"""Training objectives as plain functions of hidden states and labels; losses are float32."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from omni_jax.layers.partitioning import LENGTH, gather, highest, index_along, mesh_axes, over_mesh, summed


@struct.dataclass
class Total:
    """A weighted sum and its weights, so that batches and devices can be added up before dividing."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        """Zero where nothing counts."""
        return self.loss / jnp.maximum(self.weight, 1e-9)


def next_token_loss(
    hidden_states: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int = 512,
) -> Total:
    """Cross-entropy of each position's label, a chunk of positions at a time.

    The logits of a long batch over a vocabulary of 152k would be its largest array by far; here only those of one
    chunk exist, forward and backward, and the backward pass makes them again.

    Args:
        hidden_states: after the final norm; position t predicts labels[:, t].
        head: kernel of the language-model head; products run in its dtype.
        labels: the *next* token of each position; anything where the weight is 0.
        weights: how much each position counts.
        chunk: positions of one device at a time.

    Returns:
        The weighted sum of losses and the sum of weights.
    """
    rows, length = labels.shape
    batch, context, vocab = mesh_axes("batch", rows), mesh_axes(LENGTH, length), mesh_axes("vocab", head.shape[1])
    width = mesh_axes("embed", head.shape[0])

    def on_one_device(hidden_states, head, labels, weights):
        # gathered once, and its gradient summed over devices once; the partitioner would do both in every chunk
        head = gather(head, width, axis=0).astype(jnp.float32)
        first = index_along(vocab) * head.shape[1]  # the part of the vocabulary that is held here

        @jax.checkpoint
        def add(total, piece):
            states, labels, weights = piece
            logits = jnp.einsum("btd,dv->btv", states, head.astype(states.dtype), preferred_element_type=jnp.float32)
            largest = highest(jax.lax.stop_gradient(jnp.max(logits, axis=-1)), vocab)
            log_sum = jnp.log(summed(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1), vocab)) + largest
            # a comparison and a sum: the label's logit may lie on another device
            chosen = first + jnp.arange(logits.shape[-1]) == labels[..., None]
            losses = log_sum - summed(jnp.sum(jnp.where(chosen, logits, 0), axis=-1), vocab)
            return total + jnp.sum(jnp.where(weights > 0, losses, 0) * weights), None

        size = min(chunk, labels.shape[1])

        def in_chunks(x):  # [B, T, ...] -> [chunks, B, size, ...], with positions at the end that do not count
            x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
            return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

        pieces = tuple(map(in_chunks, (hidden_states.astype(compute), labels, weights)))
        loss, _ = jax.lax.scan(add, jnp.float32(0), pieces)
        return summed(loss, batch + context), summed(jnp.sum(weights, dtype=jnp.float32), batch + context)

    compute, flat = head.dtype, PartitionSpec(batch or None, context or None)
    places = PartitionSpec(*flat, None), PartitionSpec(width or None, vocab or None), flat, flat
    return Total(*over_mesh(on_one_device, places, PartitionSpec())(hidden_states, head, labels, weights))
