"""The Thinker: a Qwen2.5 decoder over text, audio, image and video embeddings (paper, section 2.2)."""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omni_jax.config import TextConfig
from omni_jax.layers.decoder import Decoder
from omni_jax.layers.kv_cache import KVCache, empty_cache
from omni_jax.layers.linear import Embed, Linear


@struct.dataclass
class ThinkerOutput:
    hidden_states: Float[Array, "B T D"]  # after the final norm
    cache: KVCache | None
    layer_outputs: Float[Array, "L B T D"] | None = None  # when traced


class Thinker(nn.Module):
    """Embedding, decoder and language-model head; three entry points over one set of parameters.

    `embed` and `logits` are separate, so that media embeddings can take their places in between and so that
    logits are computed only where they are needed.
    """

    config: TextConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    unrolled: bool = False
    remat: str = "none"
    trace: bool = False

    def setup(self) -> None:
        config, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.embed_tokens = Embed(
            config.vocab_size, config.hidden_size, stddev=config.initializer_range, name="embed", **kinds
        )
        self.decoder = Decoder(config, unrolled=self.unrolled, remat=self.remat, trace=self.trace, **kinds)
        nn.share_scope(self, self.decoder)  # thinker/layers, not thinker/decoder/layers
        self.lm_head = Linear(
            (config.hidden_size,),
            (config.vocab_size,),
            ("embed", "vocab"),
            stddev=config.initializer_range,
            **kinds,
        )

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embed_tokens(token_ids)

    def logits(self, hidden_states: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states that have passed the final norm."""
        return self.lm_head(hidden_states).astype(jnp.float32)

    def decode(
        self,
        embeddings: Float[Array, "B T D"],
        position_ids: Int[Array, "3 B T"],
        cache: KVCache | None = None,
        start: Int[Array, "B"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> ThinkerOutput:
        """Hidden states of new positions; see `Decoder` for the arguments."""
        return ThinkerOutput(*self.decoder(embeddings, position_ids, cache, start, segment_ids))

    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        position_ids: Int[Array, "3 B T"],
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of whole text sequences, without a cache."""
        return self.logits(self.decode(self.embed(token_ids), position_ids, segment_ids=segment_ids).hidden_states)


def thinker_cache(
    config: TextConfig, *, batch: int, length: int, dtype: DTypeLike = jnp.float32, unrolled: bool = False
) -> KVCache:
    """An empty cache of `length` slots a row."""
    return empty_cache(
        layers=config.num_hidden_layers,
        batch=batch,
        kv_heads=config.num_key_value_heads,
        length=length,
        head_dim=config.head_dim,
        dtype=dtype,
        unrolled=unrolled,
    )


def place_media(
    embeddings: Float[Array, "B T D"], media: Float[Array, "R D"], source: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Puts encoder outputs at their tokens: where source >= 0, row `source` of `media` replaces the embedding."""
    rows = media[jnp.maximum(source, 0)].astype(embeddings.dtype)
    return jnp.where((source >= 0)[..., None], rows, embeddings)
