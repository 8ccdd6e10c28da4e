"""Parity of Token2Wav: speaker encoder, one evaluation of the DiT and its whole flow, BigVGAN.

Codes, noise and mel are drawn, so that each component gets the same on both sides; voices are the checkpoint's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import BigVGANConfig, DiTConfig
from omni_jax.interop import reference_speech
from omni_jax.interop.parity_rows import Row, Step, Where, compare, named_axes
from omni_jax.models import dit
from omni_jax.models.bigvgan import BigVGAN
from omni_jax.models.flow import FlowOptions, guide
from omni_jax.models.speaker_encoder import SpeakerEncoder
from omni_jax.sampling.token2wav import mel_full
from omni_jax.sampling.voices import Speaker

if TYPE_CHECKING:
    from omni_jax.interop.parity import Subject

TOLERANCE = 1e-4
# The flow feeds each of its evaluations with the last; full scale of the waveform is 1.
TOLERANCE_FLOW = 1e-3
_TIMES = (0.0, 0.13397, 0.65798, 0.98)
_GUIDANCE = 0.5
_CODES = 40  # three blocks and a part of one


@partial(jax.jit, static_argnames=("config",))
def _timbre(params, mels, *, config: DiTConfig):
    return SpeakerEncoder(config).apply({"params": params}, mels)


@partial(jax.jit, static_argnames=("config",))
def _evaluate(params, x, codes, speaker, ref_mel, time, *, config: DiTConfig):
    """Velocities [3, T, M]: conditional, null and guided; and each layer's output [L, 2, T, D]."""
    voice = dit.make_voice(params, config, speaker[None], ref_mel[None])
    conditioning = dit.condition(params, config, codes[None], voice)
    modulation = dit.modulate(params, config, time[None])
    valid, positions = jnp.ones((1, len(x)), bool), jnp.arange(len(x))[None]
    model = dit.DiT(config, trace=True)
    velocities, layers = model.apply({"params": params["dit"]}, x[None], modulation, conditioning, valid, positions)
    conditional, null = velocities[0]
    return jnp.stack([conditional, null, guide(conditional, null, _GUIDANCE)]), layers[:, 0]


@partial(jax.jit, static_argnames=("config",))
def _vocode(params, mel, *, config: BigVGANConfig):
    waveform, stages = BigVGAN(config).apply({"params": params}, mel[None], trace=True)
    return waveform[0], [stage[0] for stage in stages]


@dataclass(frozen=True)
class Utterance:
    """What the DiT is given. codes: int32 [C]; noise: float32 [2 · C, M]."""

    voice: Speaker
    codes: np.ndarray
    noise: np.ndarray

    @classmethod
    def drawn(cls, voice: Speaker, config: DiTConfig, *, codes: int = _CODES, seed: int = 0) -> "Utterance":
        rng = np.random.default_rng(seed)
        own = rng.integers(0, config.num_embeds, codes).astype(np.int32)
        return cls(voice, own, rng.standard_normal((codes * config.repeats, config.mel_dim), np.float32))


def token2wav_rows(subject: "Subject") -> Iterator[Row]:
    """Rows of the three components; none where the subject does not speak. One component is in memory at a time."""
    if not subject.speaks:
        return
    config, weights = subject.config.token2wav_config, subject.weights
    params = {name: weights.tree(name) for name in ("speaker_encoder", "dit")}
    utterance = Utterance.drawn(next(iter(subject.voices.values())), config.dit_config)
    yield from dit_rows(params, config.dit_config, subject.reference.speech.dit(), subject.voices.values(), utterance)
    del params
    mel = 3 * np.random.default_rng(0).standard_normal((_CODES, config.bigvgan_config.mel_dim), np.float32) - 5
    vocoder = subject.reference.speech.bigvgan()
    yield from bigvgan_rows(weights.tree("bigvgan"), config.bigvgan_config, vocoder, mel)


def dit_rows(
    params: Any,
    config: DiTConfig,
    module: Any,
    voices: Sequence[Speaker],
    utterance: Utterance,
    *,
    options: FlowOptions = dit.DEFAULT_OPTIONS,
    times: Sequence[float] = _TIMES,
) -> Iterator[Row]:
    """Speaker encoder on all voices and on zeros; the DiT's layers and velocities at `times`; the mel of its flow.

    Args:
        params: speaker_encoder and dit; `module` is the PyTorch DiT with the same weights.
        options: of the flow; Runge-Kutta, which is all that the reference has.
    """
    yield compare("speaker encoder", _timbre_steps(params, config, module, voices), tolerance=TOLERANCE)
    yield compare(
        "dit, one evaluation", _evaluation_steps(params, config, module, utterance, times), tolerance=TOLERANCE
    )
    name = f"dit, flow of {options.evaluations} evaluations"
    yield compare(name, [_flow_step(params, config, module, utterance, options)], tolerance=TOLERANCE_FLOW)


def _timbre_steps(params, config: DiTConfig, module, voices: Sequence[Speaker]) -> Iterator[Step]:
    mels = {f"timbre of {voice.name}": voice.ref_mel for voice in voices}
    mels["timbre of silence, for guidance"] = np.zeros_like(next(iter(mels.values())))
    for name, mel in mels.items():
        ours = _timbre(params["speaker_encoder"], mel[None], config=config)[0]
        yield Step(name, np.asarray(ours), reference_speech.timbre(module, mel), named_axes("channel"))


def _evaluation_steps(params, config: DiTConfig, module, utterance: Utterance, times) -> Iterator[Step]:
    voice, branches = utterance.voice, ("conditional", "null", "guided")
    for time in times:
        given = utterance.noise, utterance.codes, voice.vector, voice.ref_mel
        theirs = reference_speech.dit_trace(module, *given, time)
        velocities, layers = _evaluate(params, *given, jnp.float32(time), config=config)
        where = named_axes("branch", "frame", "channel")
        for index, ours in enumerate(np.asarray(layers)):
            their = theirs[f"dit.layers.{index}"].reshape(ours.shape)
            yield Step(f"dit.layers.{index} at t = {time}", ours, their, where)
        conditional, null = theirs["dit.output"].reshape(2, *utterance.noise.shape)
        guided = conditional + (conditional - null) * _GUIDANCE
        for branch, ours, their in zip(branches, np.asarray(velocities), (conditional, null, guided)):
            yield Step(f"dit, {branch} velocity at t = {time}", ours, their, _mel_axes())


def _flow_step(params, config: DiTConfig, module, utterance: Utterance, options: FlowOptions) -> Step:
    noise, codes, voice = utterance.noise, utterance.codes, utterance.voice
    theirs = reference_speech.solve_flow(module, noise, codes, voice.vector, voice.ref_mel, options)
    ours = mel_full(
        params,
        jnp.asarray(codes)[None],
        jnp.asarray(voice.vector)[None],
        jnp.asarray(voice.ref_mel)[None],
        jnp.asarray(noise)[None],
        jnp.asarray([len(noise)], jnp.int32),
        config=config,
        options=options,
    )[0]
    return Step("dit.mel", np.asarray(ours), theirs, _mel_axes())


def bigvgan_rows(params: Any, config: BigVGANConfig, module: Any, mel: np.ndarray) -> Iterator[Row]:
    """The vocoder's stages and waveform over log mel [T, M]; `module` is PyTorch's with the same weights."""
    theirs = reference_speech.bigvgan_trace(module, mel)
    waveform, stages = _vocode(params, mel, config=config)
    where = named_axes("place", "channel")
    steps = [
        Step(f"bigvgan.stages.{index}", np.asarray(ours), theirs[f"bigvgan.stages.{index}"], where)
        for index, ours in enumerate(stages)
    ]
    waveform = Step("bigvgan.waveform", np.asarray(waveform)[:, None], theirs["bigvgan.waveform"], named_axes("sample"))
    yield compare("bigvgan, waveform of a mel", [*steps, waveform], tolerance=TOLERANCE)


def _mel_axes() -> Where:
    return named_axes("frame", "bin")
