"""What a stage of training brings to the loop: the parts it needs and the loss it makes smaller."""

from typing import Any, Protocol

import jax
from flax import struct

from omni_jax.training.objectives import Total

Params = Any


@struct.dataclass
class Losses:
    """The result of one batch, in sums that can be added over micro-batches and devices.

    total: what is made smaller is total.loss / total.weight.
    parts: further means to report, by name: losses by source, accuracy. They do not train anything.
    """

    total: Total
    parts: dict[str, Total] = struct.field(default_factory=dict)


class Task(Protocol):
    """One objective. Its loss is a pure function; a batch is a pytree whose arrays all lead with the batch axis.

    It may have `auxiliary`: parameters of its own, as of a probe that is thrown away, path -> (logical axes, first
    value as a numpy array), under names that no component has. They come with the others and are trained and resumed
    beside them, and the trained model is without them. `rates` may name them, `freeze` may not; there is no LoRA then.
    """

    components: tuple[str, ...]  # whose parameters it needs: names of omni_jax/models/logical_axes.py

    def loss(self, params: Params, batch: Any, key: jax.Array) -> Losses:
        """Losses of one batch.

        Args:
            params: nested dict of the components' parameters, float32; frozen ones may be of the compute dtype.
            key: of this step and micro-batch; unused by objectives that draw nothing.
        """
        ...
