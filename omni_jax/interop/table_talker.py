"""Weight table of the Talker."""

from omni_jax.config import TalkerConfig
from omni_jax.interop.table_thinker import decoder_layers
from omni_jax.interop.weight_table import Entry, Table, identity, linear


def table(config: TalkerConfig) -> Table:
    """Codec embedding (in the Thinker's width), projection to the Talker's width, decoder, codec head."""
    c = config
    return [
        Entry("talker.model.embed_tokens.weight", "talker/embed/embedding", identity, (c.vocab_size, c.embedding_size)),
        Entry(
            "talker.thinker_to_talker_proj.weight",
            "talker/projection/kernel",
            linear,
            (c.hidden_size, c.embedding_size),
        ),
        Entry("talker.thinker_to_talker_proj.bias", "talker/projection/bias", identity, (c.hidden_size,)),
        *decoder_layers("talker.model.layers.{i}.", "talker/layers/", c),
        Entry("talker.model.norm.weight", "talker/final_norm/scale", identity, (c.hidden_size,)),
        Entry("talker.codec_head.weight", "talker/codec_head/kernel", linear, (c.vocab_size, c.hidden_size)),
    ]
