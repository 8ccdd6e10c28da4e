"""What the forward pass keeps for the backward pass, by name."""

import flax.linen as nn
import jax

from omni_jax.errors import ConfigError
from omni_jax.layers.rounded_products import rounded

# none: everything. dots: results of matrix products with parameters; the rest is made again. full: each layer's input.
_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
NAMES = ("none", *_POLICIES)


def rematerialised(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """`layer`, which the backward pass runs again as far as `policy` has not kept its values.

    Raises:
        ConfigError: no such policy.
    """
    if policy not in NAMES:
        raise ConfigError(f"There is no remat policy {policy!r}. Policies: {', '.join(NAMES)}.")
    # inside a scan nothing can be shared between the two passes anyway; rounded layers stand one after another
    return layer if policy == "none" else nn.remat(layer, prevent_cse=rounded(), policy=_POLICIES[policy])
