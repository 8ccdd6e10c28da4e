"""How the vision encoder begins: it tells what pictures show before there is a language model to read it.

Qwen2.5-Omni takes its vision encoder from Qwen2.5-VL. Ours begins with random parameters, and behind the whole language
model a picture costs almost three times as much. So it first learns as image classifiers do (arXiv:2010.11929), but the
classes are the words of the caption.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omni_jax.config import OmniConfig
from omni_jax.errors import ConfigError
from omni_jax.training.batches import OmniBatch
from omni_jax.training.objectives import score_tokens
from omni_jax.training.packed_thinker import Params, own_rows
from omni_jax.training.run_stages import ThinkerStage
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses
from omni_jax.training.thinker_task import ThinkerTask

if TYPE_CHECKING:
    from omni_jax.training.run_config import RunConfig

WORDS = ("thinker/embed/embedding", "thinker/lm_head/kernel")  # what serves of the Thinker


@dataclass(frozen=True)
class EyesStage(ThinkerStage):
    """Each word of a caption is told from the word before it and from the mean of the picture's tokens."""

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> "EyesTask":
        """Raises ConfigError where rows have no room for pictures, or some for sound."""
        if not run.data.shape.patches or run.data.shape.audio_blocks:
            raise ConfigError("This stage learns from pictures only. Set data.shape.audio_blocks to 0, patches above.")
        usual = super().task(run, model, sources)
        return EyesTask(**{field.name: getattr(usual, field.name) for field in fields(usual)})


@dataclass(frozen=True)
class EyesTask(ThinkerTask):
    """Cross-entropy of the next token, of which the Thinker's layers know nothing: they are left out.

    Of the Thinker's parameters the embeddings and the head serve, as those of a log-linear model.
    """

    def check_trained(self, trained: Collection[str], adapted: Collection[str], weight_decay: float) -> None:
        """Raises ConfigError where something is to be trained that no gradient reaches: it would only decay."""
        lost = [path for path in sorted(trained) if not path.startswith("vision_encoder/") and path not in WORDS]
        if lost:
            raise ConfigError(f"{lost[0]} is left out of this stage. Set freeze = ['^thinker/(layers|final_norm)/'].")

    def loss(self, params: Params, batch: OmniBatch, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`."""
        params = compute_copy(params, self.dtype)
        seen = mean_of_pictures(self._thinker.see(params, batch.vision), batch)
        hidden = (_scaled(self._thinker.embed(params, batch.token_ids)) + _scaled(seen)).astype(self.dtype)
        head = params["thinker"]["lm_head"]["kernel"]
        scores = score_tokens(hidden, head, batch.labels, batch.weights, chunk=self.chunk)
        return Losses(scores.total, {"accuracy": scores.accuracy})


def mean_of_pictures(seen: Float[Array, "B Q H"], batch: OmniBatch) -> Float[Array, "B T H"]:
    """At each token, the mean of all tokens of pictures in its conversation, float32; zeros where there are none."""
    tokens = own_rows(seen, batch.vision_source).astype(jnp.float32)
    is_picture = (batch.vision_source >= 0).astype(jnp.float32)

    def of_row(tokens, is_picture, conversation):
        many = len(conversation) + 1
        sums = jax.ops.segment_sum(tokens, conversation, many)
        counts = jax.ops.segment_sum(is_picture, conversation, many)
        return (sums / jnp.maximum(counts, 1)[:, None])[conversation]

    return jax.vmap(of_row)(tokens, is_picture, batch.segment_ids)


def _scaled(x: Float[Array, "... H"]) -> Float[Array, "... H"]:
    """Of size 1 on average, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
