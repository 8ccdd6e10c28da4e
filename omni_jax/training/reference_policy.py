"""Which checkpoint the reference log-probabilities of pairs are of: written with them, and asked for in training.

{"type": "speech", "reference": [-120.5, -119.0], "reference_by": {"checkpoint": …, "digest": …, "dtype": …}, …}
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.sources import Source
from omni_jax.errors import ConfigError, DataError
from omni_jax.interop.checkpoint_digest import checkpoint_digest

BY = "reference_by"
_LOOKED_AT = 64  # pairs of a source; they are spread over it
log = logging.getLogger(__name__)


def policy_of(folder: str | Path, dtype: Any) -> dict[str, str]:
    """What is written with each pair. `dtype`: of the computation."""
    return {"checkpoint": str(Path(folder).resolve()), "digest": checkpoint_digest(folder), "dtype": str(dtype)}


@dataclass(frozen=True)
class SameReference:
    """Asks pairs of a source whether their reference is the checkpoint that the run starts from.

    accept: go on with another one.
    """

    checkpoint: str
    dtype: str
    accept: bool = False

    def __call__(self, source: Source) -> None:
        """Looks at some pairs, from the first to the last. Pairs that do not say whose reference they have, and those
        that were computed in another dtype, are told of in the log only.

        Raises:
            ConfigError: the reference is another checkpoint; both are named.
        """
        digest, unknown, dtypes = checkpoint_digest(self.checkpoint), 0, set()
        count = min(len(source), _LOOKED_AT)
        for place in sorted({round(i * (len(source) - 1) / max(count - 1, 1)) for i in range(count)}):
            try:
                pairs = _pairs(source.conversation(place))
            except (DataError, OSError):  # training will skip it, by its name
                continue
            for item in pairs:
                policy = item.get(BY)
                if not _is_policy(policy):
                    unknown += 1
                elif policy["digest"] != digest:
                    self._refuse(f"{source.name}, example {place}", policy, digest)
                else:
                    dtypes.add(policy["dtype"])
        if unknown:
            words = "%s: pairs do not say which checkpoint is their reference; it should be %s."
            log.warning(words, source.name, self.checkpoint)
        if dtypes - {self.dtype}:
            log.warning(
                f"{source.name}: reference log-probabilities were computed in {', '.join(sorted(dtypes))}, and this "
                f"run computes in {self.dtype}: rounding alone moves the rewards. Make them anew with omni-jax prefer "
                f"--reference-only FILE --dtype {self.dtype}."
            )

    def _refuse(self, name: str, policy: Mapping[str, str], digest: str) -> None:
        if self.accept:
            return
        raise ConfigError(
            f"{name}: its reference log-probabilities are those of {policy['checkpoint']} ({policy['digest'][:8]}), "
            f"but this run starts from {self.checkpoint} ({digest[:8]}), another checkpoint.\nCompute them anew with "
            f"omni-jax prefer --reference-only FILE --checkpoint {self.checkpoint}, or accept them with "
            "stage.other_reference."
        )


def _is_policy(policy: Any) -> bool:
    named = isinstance(policy, Mapping) and (policy.get(key) for key in ("checkpoint", "digest", "dtype"))
    return bool(named) and all(isinstance(value, str) for value in named)


def _pairs(conversation: Any) -> list[Mapping[str, Any]]:
    messages = conversation.get("messages", ()) if isinstance(conversation, Mapping) else ()
    contents = [message.get("content") for message in messages]
    items = [item for content in contents if isinstance(content, (list, tuple)) for item in content]
    return [item for item in items if isinstance(item, Mapping) and item.get("chosen") is not None]
