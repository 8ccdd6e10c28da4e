"""Speech codes to sound: the DiT makes a mel spectrogram, BigVGAN a waveform.

codes 50 Hz ─► mel 100 Hz ─► waveform 24 kHz          one code is 480 samples

Two named decoders over one set of modules:

    full     the whole utterance in one flow: what the published model computes; waits for the last code
    block    each block of 12 codes in a window of its own (`models/dit_block.py`): what streaming computes, and the
             same offline. `sampling/sound.py` runs it as codes come.
"""

import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from input_pipeline.packing import bucket
from omni_jax.config import BigVGANConfig, DiTConfig, Token2WavConfig
from omni_jax.errors import CapacityError
from omni_jax.models import dit
from omni_jax.models.bigvgan import BigVGAN, WindowPlan, samples_per_frame
from omni_jax.models.flow import FlowOptions, block_noise
from omni_jax.sampling import sound_programs
from omni_jax.sampling.sound import SoundStreams
from omni_jax.sampling.voices import Speaker
from omni_jax.sharding.scope import program

Params = Any

# Code counts that the programs are compiled for: up to 15 blocks of 12 codes each number, then eight sizes an octave.
# Padding costs as much as speech, and for long.
_CODE_BUCKETS = tuple(sorted({12 * m << k for m in range(8, 16) for k in range(8)} | {12 * m for m in range(1, 8)}))
VOCODER_CONTEXT = 20  # mel frames
_MODULATIONS = 4  # sets of options whose modulations are kept; one set is 20 MB as published


class Token2Wav:
    """The parameters of the speaker encoder, the DiT and BigVGAN, in float32, and the programs that run them."""

    def __init__(self, params: Mapping[str, Any], config: Token2WavConfig, *, vocoder_context: int = VOCODER_CONTEXT):
        """
        Args:
            params: holds speaker_encoder, dit and bigvgan; others are left alone.
            vocoder_context: mel frames that the vocoder's windows keep on either side of what they speak; see
                `WindowPlan`. Fewer are heard sooner, 34 or more equal the whole utterance by construction.

        Raises:
            ConfigError: a negative context.
        """
        self.config = config
        self.dit = {name: params[name] for name in ("speaker_encoder", "dit")}
        self.bigvgan = params["bigvgan"]
        self.plan = WindowPlan(config.dit_config.block_size, vocoder_context)
        self._voices: weakref.WeakKeyDictionary[Speaker, dit.Voice] = weakref.WeakKeyDictionary()
        self._modulations: dict[FlowOptions, dit.Modulation] = {}

    @property
    def samples_per_code(self) -> int:
        """480."""
        return self.config.dit_config.repeats * samples_per_frame(self.config.bigvgan_config)

    @property
    def codes_per_block(self) -> int:
        """12."""
        return self.config.dit_config.block_size // self.config.dit_config.repeats

    @property
    def most_codes(self) -> int:
        """Codes that `full` has positions for."""
        return self.config.dit_config.max_position_embeddings // self.config.dit_config.repeats

    def voice(self, speaker: Speaker) -> dit.Voice:
        """What the DiT needs to know of a speaker, [1, D] and [D]; computed once and kept as long as the speaker is."""
        if speaker not in self._voices:
            arrays = np.asarray(speaker.vector, np.float32)[None], np.asarray(speaker.ref_mel, np.float32)[None]
            self._voices[speaker] = sound_programs.make_voice(self.dit, *arrays, config=self.config.dit_config)
        return self._voices[speaker]

    def modulation(self, options: FlowOptions) -> dit.Modulation:
        """Modulations of all evaluations of a solver; computed once and kept for the last few `options`."""
        found = self._modulations.pop(options, None)
        if found is None:
            found = sound_programs.solver_modulation(self.dit, config=self.config.dit_config, options=options)
        self._modulations[options] = found  # the last used is the last to go
        if len(self._modulations) > _MODULATIONS:
            del self._modulations[next(iter(self._modulations))]
        return found

    def full(
        self,
        codes: Sequence[int] | np.ndarray,
        speaker: Speaker,
        *,
        seed: int = 0,
        options: FlowOptions = dit.DEFAULT_OPTIONS,
        noise: np.ndarray | None = None,
        seconds: dict[str, float] | None = None,
    ) -> np.ndarray:
        """Waveform of a whole utterance, solved in one flow, as the published model does.

        Args:
            codes: C of them; none gives an empty waveform.
            noise: float32 [2 · C, mel bins], where the flow starts; drawn from `seed` if not given.
            seconds: the time of both stages is added to it.

        Returns:
            float32 [480 · C] in [-1, 1], 24 kHz.

        Raises:
            OmniError: a code that the DiT has no row for.
            CapacityError: more codes than the DiT has positions for.
        """
        c, seconds = self.config.dit_config, {} if seconds is None else seconds
        codes = np.asarray(codes)
        if not codes.size:
            return np.zeros(0, np.float32)
        dit.check_codes(codes, c)
        most = self.most_codes
        if len(codes) > most:
            raise CapacityError(
                f"{len(codes)} speech codes are more than the {most} that the model's DiT has positions for "
                f"({most / 50:.0f} s). Lower the limit on codes, or split the answer."
            )
        frames, padded = len(codes) * c.repeats, min(bucket(len(codes), _CODE_BUCKETS, "speech codes"), most)
        lengths = jnp.asarray([frames], jnp.int32)

        started = time.perf_counter()
        mel = mel_full(
            self.dit,
            jnp.asarray(np.pad(codes, (0, padded - len(codes))), jnp.int32)[None],
            jnp.asarray(speaker.vector)[None],
            jnp.asarray(speaker.ref_mel)[None],
            self._noise(noise, seed, frames, padded * c.repeats)[None],
            lengths,
            config=c,
            options=options,
        ).block_until_ready()
        seconds["dit"] = seconds.get("dit", 0.0) + time.perf_counter() - started
        started = time.perf_counter()
        waveform = np.asarray(vocode(self.bigvgan, mel, lengths, config=self.config.bigvgan_config)[0])
        seconds["bigvgan"] = seconds.get("bigvgan", 0.0) + time.perf_counter() - started
        return waveform[: frames * samples_per_frame(self.config.bigvgan_config)]

    def block(
        self,
        codes: Sequence[int] | np.ndarray,
        speaker: Speaker,
        *,
        seed: int = 0,
        options: FlowOptions = dit.DEFAULT_OPTIONS,
        batched: bool | None = None,
        seconds: dict[str, float] | None = None,
    ) -> np.ndarray:
        """Waveform of a whole utterance, block by block: the windows that streaming computes, all at once.

        Args:
            codes: C of them, as many as you like; none gives an empty waveform.
            batched: several windows a call, see `SoundStreams`; one a call equals a stream bit for bit.
            seconds: the time of both stages is added to it, which makes the host wait for each.

        Returns:
            float32 [480 · C] in [-1, 1], 24 kHz.

        Raises:
            OmniError: a code that the DiT has no row for.
        """
        stream = SoundStreams(self, [speaker], [seed], options, batched=batched, seconds=seconds)
        stream.push(0, codes, last=True)
        return np.concatenate([sound.wait() for sound in stream.dispatch()])

    def _noise(self, given: np.ndarray | None, seed: int, frames: int, padded: int) -> jax.Array:
        c = self.config.dit_config
        if given is None:
            return flow_noise(jnp.int32(seed), config=c, blocks=-(-padded // c.block_size))[:padded]
        if given.shape != (frames, c.mel_dim):
            raise ValueError(f"noise must be {[frames, c.mel_dim]} for these codes, not {list(given.shape)}")
        return jnp.asarray(np.pad(given, ((0, padded - frames), (0, 0))), jnp.float32)


@partial(jax.jit, static_argnames=("config", "blocks"))
def flow_noise(seed: Int[Array, ""], *, config: DiTConfig, blocks: int) -> Float[Array, "T M"]:
    """Noise of the first `blocks` blocks of an utterance: that of block j depends on the seed and j alone."""

    shape = (config.block_size, config.mel_dim)
    noise = jax.vmap(lambda index: block_noise(seed, index, shape))(jnp.arange(blocks))
    return noise.reshape(-1, config.mel_dim)


@program(static_argnames=("config", "options"))
def mel_full(
    params: Params,
    codes: Int[Array, "B C"],
    speaker: Float[Array, "B S"],
    ref_mel: Float[Array, "B R M"],
    noise: Float[Array, "B T M"],
    lengths: Int[Array, "B"],
    *,
    config: DiTConfig,
    options: FlowOptions,
) -> Float[Array, "B T M"]:
    """Log mel of whole utterances in one flow; `lengths` in frames. `params` holds speaker_encoder and dit."""
    return dit.sample_full(params, config, codes, speaker, ref_mel, noise=noise, lengths=lengths, options=options)


@program(static_argnames="config")
def vocode(
    params: Params, mel: Float[Array, "B T M"], lengths: Int[Array, "B"], *, config: BigVGANConfig
) -> Float[Array, "B W"]:
    """Log mel to waveform; `lengths` in frames, silence after them."""
    return BigVGAN(config).apply({"params": params}, mel, lengths)


PROGRAMS = (flow_noise, mel_full, vocode, *sound_programs.PROGRAMS)
