"""Parity of the audio and the vision encoder: end to end, and every layer alone on the reference's inputs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.packing import AudioBatch, VisionBatch
from omni_jax.config import AudioEncoderConfig, VisionEncoderConfig
from omni_jax.interop.parity_rows import Row, Step, Where, compare
from omni_jax.layers.rotary import axial_tables
from omni_jax.models.audio_encoder import AudioEncoder, AudioEncoderLayer, seen_positions
from omni_jax.models.vision_encoder import VisionEncoder, VisionLayer
from omni_jax.sampling.generate import vision_layout

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

TOLERANCE = 1e-4  # end to end
TOLERANCE_ALONE = 2e-5  # one layer


def audio_encoder_rows(subject: "Subject") -> Iterator[Row]:
    """Rows of the audio encoder, over all its recordings and sound tracks in one batch."""
    if subject.inputs.audio is None:
        return
    config = subject.config.thinker_config.audio_config
    yield from _rows(AudioRun(config, subject.inputs.audio), subject)


def vision_encoder_rows(subject: "Subject") -> Iterator[Row]:
    """Rows of the vision encoder, over all its pictures and films in one batch."""
    if subject.inputs.vision is None:
        return
    config = subject.config.thinker_config.vision_config
    yield from _rows(VisionRun(config, subject.inputs.vision), subject)


def _rows(run: "AudioRun | VisionRun", subject: "Subject") -> Iterator[Row]:
    params = subject.weights.tree(run.part)
    title = run.part.replace("_", " ")
    theirs = [subject.reference.joined(f"{run.part}.layers.{index}") for index in range(run.layers)]
    entrance = subject.reference.joined(f"{run.part}.input")

    first = run.entrance(params)
    output, outputs = run.whole(params)
    subject.encoded[run.part] = output
    walk = [Step(f"{run.part}.input", first, entrance, run.where)]
    walk += [
        Step(f"{run.part}.layers.{index} output", ours, their, run.where)
        for index, (ours, their) in enumerate(zip(outputs, theirs))
    ]
    tokens = np.asarray(output)[run.token_rows]
    walk.append(Step(f"{run.part} output", tokens, subject.reference.joined(f"{run.part}.output"), run.where_token))
    yield compare(title, walk, tolerance=TOLERANCE)

    def alone() -> Iterator[Step]:
        for index, (before, after) in enumerate(zip([entrance, *theirs], theirs)):
            layer = jax.tree.map(lambda x, index=index: x[index], params["layers"])
            yield Step(f"{run.part}.layers.{index} alone", run.layer(layer, index, before), after, run.where)

    yield compare(f"{title}, each layer alone", alone(), tolerance=TOLERANCE_ALONE)


def _silent_layer(params: Any) -> dict[str, Any]:
    """Parameters with a single layer of zeros. Such a layer passes its input on, so its trace is the stack's input."""
    return {**params, "layers": jax.tree.map(lambda x: jnp.zeros_like(x[:1]), params["layers"])}


@partial(jax.jit, static_argnames=("config",))
def _encode_audio(params, mel, frames, *, config: AudioEncoderConfig):
    return AudioEncoder(config, trace=True).apply({"params": params}, mel, frames)


@partial(jax.jit, static_argnames=("config",))
def _audio_layer(params, x, frames, *, config: AudioEncoderConfig):
    seen = seen_positions(frames, x.shape[1])
    return AudioEncoderLayer(config, jnp.float32, jnp.float32).apply({"params": params}, x, seen)[0]


@partial(jax.jit, static_argnames=("config",))
def _encode_vision(params, patches, layout, *, config: VisionEncoderConfig):
    return VisionEncoder(config, trace=True).apply({"params": params}, patches, layout)


@partial(jax.jit, static_argnames=("config",))
def _vision_layer(params, x, whole_frame, layout, *, config: VisionEncoderConfig):
    tables = axial_tables(layout.coordinates, head_dim=config.head_dim, theta=config.rope_theta)
    layer = VisionLayer(config, jnp.float32, jnp.float32)
    return layer.apply({"params": params}, x, whole_frame, tables, layout)[0]


class AudioRun:
    """Our audio encoder over one batch. Rows are the real positions, block after block, as the reference packs them."""

    part = "audio_encoder"

    def __init__(self, config: AudioEncoderConfig, batch: AudioBatch):
        self.config, self.layers = config, config.encoder_layers
        self._mel, self._frames = jnp.asarray(batch.mel), jnp.asarray(batch.frames)
        self._real = np.arange(config.n_window) < (batch.frames[:, None] + 1) // 2
        self._places = np.argwhere(self._real)
        self.token_rows = batch.rows
        self._per_block = config.n_window // 2

    def whole(self, params) -> tuple[jax.Array, Iterator[np.ndarray]]:
        """Flat tokens, padding included, and the real rows of each layer's output."""
        tokens, outputs = _encode_audio(params, self._mel, self._frames, config=self.config)
        return tokens.reshape(-1, tokens.shape[-1]), (np.asarray(one)[self._real] for one in outputs)

    def entrance(self, params) -> np.ndarray:
        one = replace(self.config, encoder_layers=1)
        _, outputs = _encode_audio(_silent_layer(params), self._mel, self._frames, config=one)
        return np.asarray(outputs[0])[self._real]

    def layer(self, params, index: int, rows: np.ndarray) -> np.ndarray:
        x = np.zeros((*self._real.shape, rows.shape[-1]), np.float32)
        x[self._real] = rows
        return np.asarray(_audio_layer(params, x, self._frames, config=self.config))[self._real]

    @property
    def where(self) -> Where:
        def place(index):
            block, position = self._places[index[0]]
            return f"block {block}, position {position}, channel {index[1]}"

        return place

    @property
    def where_token(self) -> Where:
        def place(index):
            block, token = divmod(int(self.token_rows[index[0]]), self._per_block)
            return f"block {block}, token {token}, channel {index[1]}"

        return place


class VisionRun:
    """Our vision encoder over one batch. Rows are the real patches in window order, as the reference permutes them."""

    part = "vision_encoder"

    def __init__(self, config: VisionEncoderConfig, batch: VisionBatch):
        self.config, self.layers = config, config.depth
        self._patches, self._layout = jnp.asarray(batch.patches), vision_layout(batch)
        self._count = int(batch.valid.sum())
        self._padded = len(batch.valid)
        self._coordinates = batch.coordinates
        self._frame = np.concatenate([np.full(len(frame), i) for i, frame in enumerate(batch.frames())])
        self._cell = config.spatial_merge_size**2
        self.token_rows = np.arange(self._count // self._cell)

    def whole(self, params) -> tuple[jax.Array, Iterator[np.ndarray]]:
        """Tokens in window order, padding included, and the real rows of each layer's output."""
        tokens, outputs = _encode_vision(params, self._patches, self._layout, config=self.config)
        return tokens, (np.asarray(one)[: self._count] for one in outputs)

    def entrance(self, params) -> np.ndarray:
        one = replace(self.config, depth=1, fullatt_block_indexes=(0,))
        _, outputs = _encode_vision(_silent_layer(params), self._patches, self._layout, config=one)
        return np.asarray(outputs[0])[: self._count]

    def layer(self, params, index: int, rows: np.ndarray) -> np.ndarray:
        x = np.zeros((self._padded, rows.shape[-1]), np.float32)
        x[: self._count] = rows
        whole_frame = jnp.asarray(index in self.config.fullatt_block_indexes)
        return np.asarray(_vision_layer(params, x, whole_frame, self._layout, config=self.config))[: self._count]

    @property
    def where(self) -> Where:
        def place(index):
            row, column = self._coordinates[index[0]]
            return f"frame {self._frame[index[0]]}, patch row {row}, column {column}, channel {index[1]}"

        return place

    @property
    def where_token(self) -> Where:
        def place(index):
            first = index[0] * self._cell
            row, column = self._coordinates[first] // self.config.spatial_merge_size
            return f"frame {self._frame[first]}, token row {row}, column {column}, channel {index[1]}"

        return place
