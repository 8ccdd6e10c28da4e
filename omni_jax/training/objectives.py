"""Training objectives as plain functions of hidden states and labels; losses are float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from omni_jax.layers.partitioning import LENGTH, gather, highest, index_along, mesh_axes, over_mesh, summed
from omni_jax.layers.rounded_products import product, rounded


@struct.dataclass
class Total:
    """A weighted sum and its weights, so that batches and devices can be added up before dividing."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        """Zero where nothing counts."""
        return self.loss / jnp.maximum(self.weight, 1e-9)


@struct.dataclass
class TokenScores:
    """How a model takes the label of each position.

    losses: negative log-probability; 0 where the weight is.
    right: 1 where no other id is likelier, else 0. Not differentiable.
    weights: how much each position counts.
    """

    losses: Float[Array, "B T"]
    right: Float[Array, "B T"]
    weights: Float[Array, "B T"]

    @property
    def total(self) -> Total:
        return _total(self.losses, self.weights)

    @property
    def accuracy(self) -> Total:
        """Share of positions that are right."""
        return _total(self.right, self.weights)

    def by_group(self, groups: Int[Array, "B T"], names: Sequence[str]) -> dict[str, Total]:
        """The total of each group: of the positions where `groups` is i, under names[i]. Other numbers are nobody's."""
        return {
            name: _total(self.losses, jnp.where(groups == number, self.weights, 0)) for number, name in enumerate(names)
        }

    def by_segment(
        self, segment_ids: Int[Array, "B T"], segments: Int[Array, "B Q"]
    ) -> tuple[Float[Array, "B Q"], Float[Array, "B Q"]]:
        """Summed log-probability of the labels that count (weight above 0), whatever they weigh, and how many they are.

        Args:
            segments: ids to look for in the same row; 0 (padding) gives 0.
        """
        of_segment = (segments[:, :, None] == segment_ids[:, None, :]) & (segments[:, :, None] > 0)
        counts = of_segment & (self.weights > 0)[:, None, :]
        log_probs = -jnp.sum(jnp.where(counts, self.losses[:, None, :], 0), axis=-1)
        return log_probs, jnp.sum(counts, axis=-1, dtype=jnp.float32)


def score_tokens(
    hidden_states: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int = 512,
) -> TokenScores:
    """Log-probability of each position's label, a chunk of positions at a time.

    The logits of a long batch over a vocabulary of 152k would be its largest array by far; here only those of one
    chunk exist, forward and backward, and the backward pass makes them again.

    Args:
        hidden_states: after the final norm; position t predicts labels[:, t].
        head: kernel of the language-model head; products run in its dtype.
        labels: the *next* token of each position; anything where the weight is 0.
        weights: how much each position counts.
        chunk: positions of one device at a time.
    """
    rows, length = labels.shape
    batch, context, vocab = mesh_axes("batch", rows), mesh_axes(LENGTH, length), mesh_axes("vocab", head.shape[1])
    width = mesh_axes("embed", head.shape[0])

    def on_one_device(hidden_states, head, labels, weights):
        # gathered once, and its gradient summed over devices once; the partitioner would do both in every chunk
        head = gather(head, width, axis=0).astype(jnp.float32)
        first = index_along(vocab) * head.shape[1]  # the part of the vocabulary that is held here

        @jax.checkpoint
        def score(_, piece):
            states, labels, weights = piece
            rows = states.reshape(-1, states.shape[-1])  # of one axis: see weight_only.matrix_product
            kernel = head.astype(states.dtype)
            logits = (
                product(rows, kernel) if rounded() else jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
            )
            logits = logits.reshape(*labels.shape, -1)
            largest = highest(jax.lax.stop_gradient(jnp.max(logits, axis=-1)), vocab)
            log_sum = jnp.log(summed(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1), vocab)) + largest
            # a comparison and a sum: the label's logit may lie on another device
            chosen = first + jnp.arange(logits.shape[-1]) == labels[..., None]
            own = summed(jnp.sum(jnp.where(chosen, logits, 0), axis=-1), vocab)
            right = jax.lax.stop_gradient((own >= largest).astype(jnp.float32))
            return None, (jnp.where(weights > 0, log_sum - own, 0), right)

        pieces = -(-labels.shape[1] // chunk)
        size = -(-labels.shape[1] // pieces)  # even, so that little is padded

        def in_chunks(x):  # [B, T, ...] -> [chunks, B, size, ...], with positions at the end that do not count
            x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
            return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

        def in_a_row(x):  # back again
            return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, : labels.shape[1]]

        _, scores = jax.lax.scan(score, None, tuple(map(in_chunks, (hidden_states.astype(compute), labels, weights))))
        return tuple(map(in_a_row, scores))

    compute, flat = head.dtype, PartitionSpec(batch or None, context or None)
    places = PartitionSpec(*flat, None), PartitionSpec(width or None, vocab or None), flat, flat
    scores = over_mesh(on_one_device, places, (flat, flat))(hidden_states, head, labels, weights)
    return TokenScores(*scores, weights)


def next_token_loss(
    hidden_states: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int = 512,
) -> Total:
    """Weighted sum of the cross-entropy of each position's label; see `score_tokens` for the arguments."""
    return score_tokens(hidden_states, head, labels, weights, chunk=chunk).total


def _total(values: Float[Array, "B T"], weights: Float[Array, "B T"]) -> Total:
    return Total(jnp.sum(values * weights), jnp.sum(weights, dtype=jnp.float32))
