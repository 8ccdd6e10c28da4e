"""The Talker: a second Qwen2.5 decoder, from the Thinker's thoughts to speech codes, 50 a second (paper, section 2.3).

Each of its positions hears two tracks, both in the Thinker's width, and their sum is projected to its own:

    position   0 … P-1          P                P+1            P+2         P+3
    text       prompt vectors   speaker's row    reply r_1      r_2         r_3 …, end of text, padding, padding …
    codes      none             pad              start          code 1      code 2 …
                                                 └─► code 1     └─► code 2  └─► code 3
"""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omni_jax.config import TalkerConfig
from omni_jax.layers.decoder import Decoder
from omni_jax.layers.kv_cache import KVCache, empty_cache
from omni_jax.layers.linear import Embed, Linear


@struct.dataclass
class TalkerOutput:
    hidden_states: Float[Array, "B T D"]  # after the final norm
    cache: KVCache | None
    layer_outputs: Float[Array, "L B T D"] | None = None  # when traced


class Talker(nn.Module):
    """Code embedding, projection, decoder and codec head. E is the Thinker's width, D the Talker's own."""

    config: TalkerConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    unrolled: bool = False
    remat: str = "none"
    trace: bool = False

    def setup(self) -> None:
        config, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        common = dict(stddev=config.initializer_range, **kinds)
        widths = (config.embedding_size,), (config.hidden_size,)
        self.embed_codes = Embed(
            config.vocab_size, config.embedding_size, ("vocab", "code_embed"), name="embed", **common
        )
        self.projection = Linear(*widths, ("code_embed", "embed"), use_bias=True, **common)
        self.decoder = Decoder(config, unrolled=self.unrolled, remat=self.remat, trace=self.trace, **kinds)
        nn.share_scope(self, self.decoder)  # talker/layers, not talker/decoder/layers
        self.codec_head = Linear((config.hidden_size,), (config.vocab_size,), ("embed", "vocab"), **common)

    def combine(self, text: Float[Array, "B T E"], codes: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """The sum of both tracks; a code of -1 adds nothing. Other ids outside the table are the caller's to reject."""
        rows = self.embed_codes(jnp.maximum(codes, 0))
        return text.astype(self.dtype) + jnp.where((codes >= 0)[..., None], rows, 0)

    def logits(self, hidden_states: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits over codes of hidden states that have passed the final norm."""
        return self.codec_head(hidden_states).astype(jnp.float32)

    def decode(
        self,
        text: Float[Array, "B T E"],
        codes: Int[Array, "B T"],
        position_ids: Int[Array, "3 B T"],
        cache: KVCache | None = None,
        start: Int[Array, "B"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> TalkerOutput:
        """Hidden states of new positions; see `combine` for the two tracks and `Decoder` for the other arguments."""
        x = self.projection(self.combine(text, codes))
        return TalkerOutput(*self.decoder(x, position_ids, cache, start, segment_ids))

    def __call__(
        self,
        text: Float[Array, "B T E"],
        codes: Int[Array, "B T"],
        position_ids: Int[Array, "3 B T"],
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of whole sequences, without a cache."""
        return self.logits(self.decode(text, codes, position_ids, segment_ids=segment_ids).hidden_states)


def talker_cache(
    config: TalkerConfig, *, batch: int, length: int, dtype: DTypeLike = jnp.float32, unrolled: bool = False
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
