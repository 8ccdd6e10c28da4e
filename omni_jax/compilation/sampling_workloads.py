"""Workloads of answers in text: the prompt of a film, and decoding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from input_pipeline.packing import BUCKETS, bucket
from input_pipeline.vision_pieces import vision_pieces
from omni_jax.compilation.abstract import (
    Tree,
    array,
    cache_spec,
    everywhere,
    outputs,
    parameters,
    placed,
    sampling_mesh,
)
from omni_jax.compilation.film import Film, film, seconds_within
from omni_jax.compilation.workloads import Options, Program, Workload
from omni_jax.errors import CapacityError
from omni_jax.sampling import programs
from omni_jax.sampling.generate import VISION_PIECE, vision_layout
from omni_jax.sampling.load import TEXT_COMPONENTS
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.rows import MAX_STOPS, warper_options
from omni_jax.sharding.rules import SAMPLING, replicated

CHUNK, BLOCK = 256, 32  # the defaults of `Sampler`


@dataclass(frozen=True)
class Thinking:
    """The Thinker's part of a request: parameters, caches, and the arguments of its programs, all as shapes."""

    options: Options
    mesh: Mesh
    params: Mapping[str, Tree]
    film: Film
    length: int  # cache slots of a row
    state: programs.PrefillState

    @property
    def static(self) -> dict[str, Any]:
        config = self.options.config.thinker_config.text_config
        return dict(config=config, dtype=jnp.dtype(self.options.dtype), unrolled=False)

    def ints(self, *shape: int) -> jax.ShapeDtypeStruct:
        return array(shape, jnp.int32, replicated(self.mesh))

    def flags(self, *shape: int) -> jax.ShapeDtypeStruct:
        return array(shape, bool, replicated(self.mesh))

    def wide(self, *shape: int) -> jax.ShapeDtypeStruct:
        """Vectors in the Thinker's width."""
        width = self.options.config.thinker_config.text_config.hidden_size
        return array((*shape, width), self.options.dtype, replicated(self.mesh))

    def chunk(self, size: int = CHUNK) -> tuple[Any, ...]:
        """Arguments of `prefill` and `think` after the state."""
        rows = self.options.rows
        one = self.ints(rows)
        return self.wide(rows, size), self.ints(rows, size), self.ints(3, rows, size), one, one

    @property
    def prompt_tokens(self) -> int:
        """Of a row: the film's, or what a smaller cache holds of it."""
        return min(self.film.tokens, self.length)

    def decoding(self) -> programs.DecodeState:
        """The state after the first token."""
        rows, one = self.options.rows, self.ints(self.options.rows)
        warper = everywhere(warper_shapes(rows), self.mesh)
        args = (self.params["thinker"], self.state.last_hidden, self.state.seen, one, one, warper, one)
        state, *_ = outputs(programs.first_token, *args, self.ints(rows, MAX_STOPS), mesh=self.mesh, **self.static)
        return everywhere(state, self.mesh).replace(cache=self.state.cache)

    def encoders(self) -> tuple[Program, Program]:
        """The media encoders, over all films of the batch."""
        thinker, dtype = self.options.config.thinker_config, jnp.dtype(self.options.dtype)
        sound, pictures = self.film.pack(self.options.config, self.options.rows)
        mel, frames = (everywhere(as_shapes(part), self.mesh) for part in (sound.mel, sound.frames))
        pieces = [piece for piece, _ in vision_pieces(pictures, VISION_PIECE)]
        largest = max(pieces, key=lambda piece: len(piece.patches))
        layout = everywhere(as_shapes(vision_layout(largest)), self.mesh)
        patches = (len(largest.patches), thinker.vision_config.patch_dim)
        pixels = array(patches, jnp.float32, replicated(self.mesh))
        audio = (self.params["audio_encoder"], mel, frames), dict(config=thinker.audio_config, dtype=dtype)
        vision = (self.params["vision_encoder"], pixels, layout), dict(config=thinker.vision_config, dtype=dtype)
        return (
            Program("encode_audio", programs.encode_audio, *audio),
            Program("encode_vision", programs.encode_vision, *vision, times=len(pieces)),
        )


def thinking(options: Options, components: tuple[str, ...]) -> Thinking:
    """Shapes for the requests of `options`; `components` decide the default mesh, and are the parameters.

    Raises:
        CapacityError: a context that no bucket holds.
        ShardingError: the mesh does not fit.
    """
    bucket(options.rows, BUCKETS.batch, "requests")
    if options.context is not None and options.context > BUCKETS.cache[-1]:
        raise CapacityError(f"--context {options.context} is more than the largest cache, {BUCKETS.cache[-1]} slots.")
    request = film(options.config, seconds=seconds_within(options.context))
    length = request.context if options.context is None else bucket(options.context, BUCKETS.cache, "cache slots")
    mesh = sampling_mesh(options, components)
    params = parameters(options.config, components, mesh, options.dtype, weights=options.weights)
    text, kind = options.config.thinker_config.text_config, jnp.dtype(options.dtype)
    new = dict(config=text, batch=options.rows, length=length, dtype=kind, unrolled=False)
    state = placed(outputs(programs.new_prefill, mesh=None, **new), cache_spec(mesh), mesh)
    return Thinking(options, mesh, params, request, length, state)


def prefill(options: Options) -> Workload:
    """The prompt of one film a row: both encoders, then chunks of the prompt into the cache."""
    here = thinking(options, TEXT_COMPONENTS)
    chunks = -(-here.prompt_tokens // CHUNK)
    args = (here.params["thinker"], here.state, *here.chunk())
    run = Program("prefill", programs.prefill, args, here.static, times=chunks)
    resident = {"parameters": here.params, "cache": here.state}
    units = here.prompt_tokens * options.rows
    return Workload((*here.encoders(), run), resident, here.mesh, SAMPLING, "prompt token", units, notes(here))


def decode(options: Options) -> Workload:
    """A block of 32 tokens a row, by the loop on the device, with the cache as long as it gets."""
    here = thinking(options, TEXT_COMPONENTS)
    args = (here.params["thinker"], here.decoding(), here.ints())
    run = Program("decode", programs.decode, args, here.static | {"block": BLOCK}, loop=BLOCK)
    resident = {"parameters": here.params, "cache": here.state.cache}
    return Workload((run,), resident, here.mesh, SAMPLING, "token", BLOCK * options.rows, notes(here))


def notes(here: Thinking) -> tuple[str, ...]:
    """What the sizes come from."""
    return (
        f"prompt: a film of {here.film.seconds} s with sound, 480p at 2 frames a second, {here.film.tokens} tokens; "
        f"cache: {here.length} slots x {here.options.rows}",
    )


def as_shapes(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def warper_shapes(rows: int) -> Tree:
    return as_shapes(jax.eval_shape(lambda: warper_options([SamplingOptions()] * rows, rows)))
