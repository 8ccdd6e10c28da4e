"""Glances: the vision encoder learns from many pictures by a probe, and from a few by what the Thinker answers.

Behind the Thinker, in a conversation of 90 tokens with a system's turn, a picture costs twenty times as much as alone,
nearly all of it for words that the Thinker can say already. So most pictures are judged by a linear probe on their
tokens, which is thrown away: digits by their place, colours, shapes, counts. Conversations, as those of
configs/sight.py, keep the tokens in the Thinker's language meanwhile. (Auxiliary classifiers: Lee et al. 2015,
arXiv:1409.5185.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from examples.omni_tiny.album import SQUARE, WIDE, Album
from examples.omni_tiny.beside import Beside, ProbedStage
from examples.omni_tiny.pictures import SIDE
from input_pipeline.pack_rows import vision_row
from input_pipeline.patches import image_patches
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import ConfigError
from omni_jax.models.vision_encoder import VisionBounds, VisionEncoder
from omni_jax.training.batches import abstract_batch
from omni_jax.training.objectives import Total
from omni_jax.training.packed_thinker import Params
from omni_jax.training.run_stages import OpenData
from omni_jax.training.step import compute_copy
from omni_jax.training.task import Losses
from omni_jax.training.thinker_task import ThinkerTask

if TYPE_CHECKING:
    from omni_jax.training.run_config import RunConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlanceBatch:
    """Conversations, and pictures for the probe: twice as many square ones as wide ones."""

    talk: Any  # OmniBatch
    wide: UInt8[Array, "N 56 112 3"]
    wide_answers: Int[Array, "N 5"]
    square: UInt8[Array, "M 56 56 3"]
    square_answers: Int[Array, "M 4"]


@dataclass(frozen=True)
class GlancesStage(ProbedStage):
    """A probe of pictures beside conversations on pictures.

    album: captions, image_text.jsonl. wide: pictures of several digits in each step; twice as many others.
    talk_weight: the loss is half the sum of what a picture of either kind costs the probe, in all of its questions,
        and this times the mean loss of the Thinker's tokens.

    Raises:
        ConfigError: no pictures.
    """

    album: str = "image_text.jsonl"
    wide: int = 64
    talk_weight: float = 3.0

    def __post_init__(self):
        if self.wide < 1:
            raise ConfigError(f"stage.wide = {self.wide}: give at least one picture for each step.")

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> "GlancesTask":
        """Raises ConfigError, see `ProbedStage`."""
        usual = self.usual(run, model, sources, "patches")
        return GlancesTask(**usual, talk_weight=self.talk_weight)

    def batch_shapes(self, run: "RunConfig", model: OmniConfig, rows: int) -> "GlanceBatch":
        """As `omni_jax.training.batch_shapes`."""

        def of(count: int, width: int, questions: tuple[int, ...]):
            pixels = jax.ShapeDtypeStruct((count, SIDE, width, 3), jnp.uint8)
            return pixels, jax.ShapeDtypeStruct((count, len(questions)), jnp.int32)

        talk = abstract_batch(run.data.shape, rows, config=model)
        return GlanceBatch(talk, *of(self.wide, 2 * SIDE, WIDE), *of(2 * self.wide, SIDE, SQUARE))

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        """Conversations as usual, and beside them pictures of the album."""
        conversations = super().open_data(run, voices, progress)

        def opened(sources, rows, *, held_out: bool = False) -> Beside:
            loader = conversations(sources, rows, held_out=held_out)
            return with_pictures(loader, Album.read(Path(self.album), progress), self.wide, run.data.seed)

        return opened


def with_pictures(loader: Any, album: Album, wide: int, seed: int) -> Beside:
    """Batches of a loader, and beside each `wide` wide pictures and twice as many square ones."""

    def put(talk: Any, step: int) -> GlanceBatch:
        return GlanceBatch(talk, *album.wide.at(step, wide, seed), *album.square.at(step, 2 * wide, seed))

    return Beside(loader, put, name="album", about=[len(album.wide.pixels), len(album.square.pixels)])


@dataclass(frozen=True)
class GlancesTask(ThinkerTask):
    """What pictures cost the probe, and conversations the Thinker, see `GlancesStage`.

    Reports `talk`, the Thinker's loss, and its parts; `wide`, `digit` and `shapes`: the share of such pictures
    of which the probe answers all questions right.
    """

    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    talk_weight: float = 3.0

    @cached_property
    def auxiliary(self) -> dict[str, tuple[tuple[str | None, ...], Float[np.ndarray, "..."]]]:
        """The probe, see `Task`: the tokens of a picture, side by side, to the answers of all questions.

        Its logical axes are those of a head, which Muon leaves to AdamW.
        """
        width, found = self.config.thinker_config.vision_config.out_hidden_size, {}
        for name, tokens, questions in (("wide", 8, WIDE), ("square", 4, SQUARE)):
            found[f"probe/{name}/kernel"] = ("embed", "vocab"), np.zeros((tokens * width, sum(questions)), np.float32)
            found[f"probe/{name}/bias"] = ("vocab",), np.zeros(sum(questions), np.float32)
        return found

    def loss(self, params: Params, batch: GlanceBatch, key: jax.Array | None = None) -> Losses:
        """See `Task`; nothing is drawn from `key`."""
        talk = super().loss(params, batch.talk, key)
        copied = compute_copy(params, self.dtype)
        wide, square = self._tokens(copied["vision_encoder"], batch.wide, batch.square)
        first, right_wide = _asked(wide, copied["probe"]["wide"], WIDE, batch.wide_answers)
        second, right_square = _asked(square, copied["probe"]["square"], SQUARE, batch.square_answers)
        digits = (batch.square_answers[:, 0] > 0).astype(jnp.float32)
        parts = {
            "talk": talk.total,
            "wide": _share(right_wide, jnp.ones(len(right_wide))),
            "digit": _share(right_square, digits),
            "shapes": _share(right_square, 1 - digits),
        }
        one = jnp.ones((), jnp.float32)
        return Losses(Total((first + second) / 2 + self.talk_weight * talk.total.mean, one), talk.parts | parts)

    def _tokens(
        self, vision: Params, wide: UInt8[Array, "N H V 3"], square: UInt8[Array, "M H W 3"]
    ) -> tuple[Float[Array, "N 8 D"], Float[Array, "M 4 D"]]:
        """A row of the encoder is one wide picture or two square ones."""
        config = self.config.thinker_config.vision_config
        many, pairs = len(wide), len(square) // 2
        patches = [patches_of(pictures, self.processor) for pictures in (wide, square)]
        rows = jnp.concatenate([patches[0], patches[1].reshape(pairs, -1, patches[1].shape[-1])])
        bounds = jax.tree.map(
            lambda one, two: jnp.concatenate([jnp.repeat(one, many, axis=0), jnp.repeat(two, pairs, axis=0)]),
            _bounds([(SIDE, 2 * SIDE)], self.config, self.processor),
            _bounds([(SIDE, SIDE)] * 2, self.config, self.processor),
        )
        # a picture is a film of two equal frames: the sum of their kernels on one of them is half of the work
        kernel = vision["patch_embed"]["kernel"]
        kernel = kernel.reshape(3, 2, -1, kernel.shape[-1]).sum(axis=1).reshape(-1, kernel.shape[-1])
        vision = {**vision, "patch_embed": {**vision["patch_embed"], "kernel": kernel}}
        encoder = VisionEncoder(replace(config, temporal_patch_size=1), dtype=self.dtype, remat=self.remat)
        tokens, _ = encoder.apply({"params": vision}, rows.astype(self.dtype), bounds)
        return tokens[:many], tokens[many:].reshape(len(square), -1, tokens.shape[-1])


def patches_of(pictures: UInt8[Array, "N H W 3"], processor: ProcessorConfig) -> Float[Array, "N P 588"]:
    """As `input_pipeline.patches.image_patches`, of one frame only: each patch is channel, y, x."""
    side, merge = processor.patch_size, processor.merge_size
    x = pictures.astype(jnp.float32) / 255
    x = (x - jnp.array(processor.image_mean, jnp.float32)) / jnp.array(processor.image_std, jnp.float32)
    number, height, width, _ = x.shape
    x = x.reshape(number, height // side // merge, merge, side, width // side // merge, merge, side, 3)
    x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # cell row, cell column, 2, 2, channel, y, x
    return x.reshape(number, -1, 3 * side * side)


def _bounds(shapes: list[tuple[int, int]], config: OmniConfig, processor: ProcessorConfig) -> VisionBounds:
    """Of one row with pictures of these sizes."""
    items = [image_patches(np.zeros((*shape, 3), np.uint8), processor) for shape in shapes]
    packed, _ = vision_row(items, sum(len(item.pixels) for item in items), config.thinker_config.vision_config)
    return VisionBounds(*(jnp.asarray(each) for each in (packed.coordinates, packed.window, packed.frame)))


def _asked(
    tokens: Float[Array, "N T D"], probe: Mapping[str, Array], questions: tuple[int, ...], answers: Int[Array, "N Q"]
) -> tuple[Float[Array, ""], Float[Array, "N"]]:
    """The mean of pictures of the sum of their questions' losses; 1 for each picture with no wrong answer, else 0."""
    tokens = tokens.astype(jnp.float32)
    tokens = tokens * jax.lax.rsqrt(jnp.mean(tokens * tokens, axis=(1, 2), keepdims=True) + 1e-6)
    scores = tokens.reshape(len(tokens), -1) @ probe["kernel"] + probe["bias"]
    ends = np.cumsum(questions)
    loss, right = jnp.zeros((), jnp.float32), jnp.ones(len(tokens))
    for place, part in enumerate(jnp.split(scores, ends[:-1], axis=1)):
        own = answers[:, place]
        loss -= jnp.take_along_axis(jax.nn.log_softmax(part), own[:, None], axis=1).mean()
        right *= part.argmax(axis=1) == own
    return loss, right


def _share(right: Float[Array, "N"], counted: Float[Array, "N"]) -> Total:
    return Total((right * counted).sum(), counted.sum())
