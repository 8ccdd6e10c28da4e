"""How both kernels lay out queries: the rows of one key-value head together, token by token.

    [B, T, N, H]  ->  [B, K, T * G, H]      row t * G + g is token t of the group's query head g

All of them read the same keys, so one product serves the group; and a block of rows is a run of tokens, whose last one
says where the block's keys end. With T = 1 this moves nothing.
"""

from jaxtyping import Array, Float


def lay_rows(query: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B K R H"]:
    """Rows of each key-value head's group; R = T * G."""
    batch, length, heads, width = query.shape
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width).swapaxes(1, 2)
    return grouped.reshape(batch, kv_heads, -1, width)


def heads_of_rows(rows: Float[Array, "B K R H"], length: int) -> Float[Array, "B T N H"]:
    """Undoes `lay_rows`."""
    batch, kv_heads, _, width = rows.shape
    return rows.reshape(batch, kv_heads, length, -1, width).swapaxes(1, 2).reshape(batch, length, -1, width)
