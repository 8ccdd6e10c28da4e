"""Parity of a Qwen2.5 decoder, the Thinker's or the Talker's: every layer alone, all of them end to end, final norm."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import TalkerConfig, TextConfig
from omni_jax.interop.parity_rows import Row, Step, Where, compare
from omni_jax.layers.decoder import Decoder

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

TOLERANCE = 1e-4  # end to end
TOLERANCE_ALONE = 2e-5  # one layer


@partial(jax.jit, static_argnames=("config",))
def _decode(params, x, position_ids, *, config: TextConfig | TalkerConfig):
    hidden, _, outputs = Decoder(config, trace=True).apply({"params": params}, x, position_ids)
    return hidden, outputs


class DecoderRun:
    """Our decoder `part` over a padded batch [B, T]; rows are the real places, prompt after prompt."""

    def __init__(
        self,
        subject: "Subject",
        part: str,
        config: TextConfig | TalkerConfig,
        lengths: np.ndarray,
        position_ids: np.ndarray,
    ):
        """`lengths` [B], 0 for rows of padding; `position_ids` [3, B, T]."""
        self.subject, self.part, self.config = subject, part, config
        self._real = np.arange(position_ids.shape[-1]) < lengths[:, None]
        self._places = np.argwhere(self._real)
        self.positions = jnp.asarray(position_ids)
        self.ends = np.cumsum(lengths[lengths > 0]) - 1

    def real(self, x: Any) -> np.ndarray:
        return np.asarray(x)[self._real]

    def padded(self, rows: np.ndarray) -> np.ndarray:
        x = np.zeros((*self._real.shape, *rows.shape[1:]), rows.dtype)
        x[self._real] = rows
        return x

    def theirs(self, stage: str) -> np.ndarray:
        return self.subject.reference.joined(f"{self.part}.{stage}")

    def decoder_rows(self, x: jax.Array) -> Iterator[Row]:
        """Rows of the decoder, whose input is `x` [B, T, D]; leaves its final hidden states, real rows, in `hidden`.

        With all weights in memory the model runs as it is. Otherwise it runs layer by layer, the weights of one layer
        at a time. Either way each layer also runs alone on the reference's inputs.
        """
        name = f"{self.part}, each layer alone"
        if self.subject.in_memory:
            hidden, outputs = self.whole(x)
            alone = compare(name, self._each_alone(), tolerance=TOLERANCE_ALONE)
        else:
            outputs = []
            alone = compare(name, self._alone_and_carried(x, outputs), tolerance=TOLERANCE_ALONE)
            hidden = outputs.pop()
        yield alone
        steps = (
            Step(f"{self.part}.layers.{index} output", self.real(ours), self.theirs(f"layers.{index}"), self.where)
            for index, ours in enumerate(outputs)
        )
        yield compare(f"{self.part} layers, end to end", steps, tolerance=TOLERANCE)
        self.hidden = self.real(hidden)
        norm = Step(f"{self.part}.final_norm output", self.hidden, self.theirs("output"), self.where)
        yield compare(f"{self.part} final norm", [norm], tolerance=TOLERANCE)

    def whole(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Final hidden states and the layers' outputs, by the model as it is."""
        raise NotImplementedError

    def carry(self, index: int, params: Any) -> None:
        """For a chain of its own through the layers; called with the weights of each in turn."""

    def _each_alone(self) -> Iterator[Step]:
        for index in range(self.config.num_hidden_layers):
            _, output = self._layer(self._weights(index), self.padded(self._before(index)), self.positions)
            yield self._alone(index, output)

    def _alone_and_carried(self, x: jax.Array, outputs: list[np.ndarray]) -> Iterator[Step]:
        """Two chains through each layer at once: the reference's inputs, and our own. Ours goes into `outputs`."""
        batch, positions = len(x), jnp.concatenate([self.positions] * 2, axis=1)
        carried = np.asarray(x)
        for index in range(self.config.num_hidden_layers):
            params = self._weights(index)
            both = np.concatenate([self.padded(self._before(index)), carried])
            hidden, output = self._layer(params, both, positions)
            carried = np.asarray(output[batch:])
            outputs.append(carried)
            self.carry(index, params)
            yield self._alone(index, output[:batch])
        outputs.append(np.asarray(hidden[batch:]))

    def _weights(self, index: int) -> dict[str, Any]:
        self.subject.progress(f"{self.part} layer {index}")
        weights = self.subject.weights
        final_norm = weights.tree(f"{self.part}/final_norm")
        return {"layers": weights.layer(f"{self.part}/layers", index), "final_norm": final_norm}

    def _layer(self, params: Any, x: np.ndarray, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A decoder of one layer: hidden states after the final norm, and before it."""
        hidden, outputs = _decode(params, x, positions, config=replace(self.config, num_hidden_layers=1))
        return hidden, outputs[0]

    def _before(self, index: int) -> np.ndarray:
        return self.theirs(f"layers.{index - 1}" if index else "input")

    def _alone(self, index: int, output: jax.Array) -> Step:
        return Step(f"{self.part}.layers.{index} alone", self.real(output), self.theirs(f"layers.{index}"), self.where)

    @property
    def where(self) -> Where:
        return self.named("channel")

    def named(self, last: str) -> Where:
        names = list(self.subject.requests)

        def place(index):
            prompt, token = self._places[index[0]]
            return f"prompt '{names[prompt]}', token {token}, {last} {index[1]}"

        return place
