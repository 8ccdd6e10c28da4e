"""The stages of training as a configuration names them. Each knows the task that it stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from omni_jax.config import DiscriminatorConfig, OmniConfig
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.errors import CheckpointError, ConfigError
from omni_jax.presets import speech_tokenizer_preset
from omni_jax.training.task import Params, Task

if TYPE_CHECKING:
    from omni_jax.training.run_config import RunConfig


Stored = Callable[[str], Params]
OpenData = Callable[..., Any]  # see run.py


def _common(run: "RunConfig") -> dict:
    shape = run.data.shape
    media = dict(audio=shape.audio_blocks > 0, vision=shape.patches > 0)
    return dict(dtype=jnp.dtype(run.dtype), remat=run.remat, **media)


def _check_room(run: "RunConfig", *kinds: str) -> None:
    for kind in kinds:
        if not getattr(run.data.shape, kind):
            raise ConfigError(f"data.shape.{kind} is 0, and this stage learns from nothing else. Give rows some room.")


def _conversations(run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
    """Data of the stages that learn from conversations."""
    from omni_jax.training.run_data import Conversations

    return Conversations(run, voices, progress=progress)


def _clips(kind: str, stage: Any, run: "RunConfig") -> OpenData:
    """Data of the stages that learn from recordings."""
    from omni_jax.training import run_clips

    model = model_of(stage, read_config(run.checkpoint))
    return run_clips.OpenClips(run, model, read_processor_config(run.checkpoint), getattr(run_clips, kind))


@dataclass(frozen=True)
class ThinkerStage:
    """Next-token prediction: pre-training and instruction tuning (paper, section 3).

    chunk: positions whose logits exist at a time on a device.
    """

    chunk: int = 512

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> Task:
        from omni_jax.training.thinker_task import ThinkerTask

        return ThinkerTask(model, chunk=self.chunk, tasks=sources, **_common(run))

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        return _conversations(run, voices, progress)


@dataclass(frozen=True)
class TalkerStage:
    """Prediction of speech codes by the Talker (section 4).

    text_weight: above 0 the Thinker learns the text at the same time, by its own loss; it must not be frozen then.
    """

    text_weight: float = 0.0
    chunk: int = 512

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> Task:
        from omni_jax.training.talker_task import TalkerTask

        _check_room(run, "speech")
        return TalkerTask(model, chunk=self.chunk, tasks=sources, text_weight=self.text_weight, **_common(run))

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        return _conversations(run, voices, progress)


@dataclass(frozen=True)
class DpoStage:
    """Preference between two spoken answers (section 4, equation 1); see `DpoTask` for beta and sft_weight.

    other_reference: take pairs whose reference log-probabilities are those of another checkpoint than the run's.
    """

    beta: float = 0.1
    sft_weight: float = 0.0
    chunk: int = 512
    other_reference: bool = False

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> Task:
        from omni_jax.training.dpo import DpoTask

        _check_room(run, "speech", "pairs")
        return DpoTask(model, chunk=self.chunk, beta=self.beta, sft_weight=self.sft_weight, **_common(run))

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        from omni_jax.training.reference_policy import SameReference
        from omni_jax.training.run_data import Conversations

        check = SameReference(run.checkpoint, run.dtype, self.other_reference)
        return Conversations(run, voices, progress=progress, check=check)


@dataclass(frozen=True)
class SpeechTokenizerStage:
    """Waveform to speech codes. Nothing of it is published, so both routes are of this project.

    route: inversion, where the codes of a published decoder are recognised; scratch, with codes of its own.
    size: a preset of `omni_jax.presets.speech_tokenizer_preset`, for checkpoints without one.
    mel_weight: see `ScratchTask`. from_audio_encoder: begin with the layers of the checkpoint's audio encoder.
    """

    route: Literal["inversion", "scratch"] = "inversion"
    size: str = "large"
    mel_weight: float = 1.0
    from_audio_encoder: bool = True

    def model(self, published: OmniConfig) -> OmniConfig:
        if published.speech_tokenizer_config is not None:
            return published
        return replace(published, speech_tokenizer_config=speech_tokenizer_preset(self.size, self.route))

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> Task:
        from omni_jax.training.speech_tokenizer_task import InversionTask, ScratchTask

        common = dict(dtype=jnp.dtype(run.dtype), remat=run.remat)
        if self.route == "inversion":
            return InversionTask(model.speech_tokenizer_config, **common)
        return ScratchTask(model.speech_tokenizer_config, mel_weight=self.mel_weight, **common)

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        return _clips("CodedClips" if self.route == "inversion" else "TranscribedClips", self, run)

    def start(self, component: str, model: OmniConfig, stored: Stored, key: jax.Array) -> Params:
        from omni_jax.models.speech_tokenizer import from_audio_encoder, init_params

        params = nn.unbox(jax.jit(init_params, static_argnums=1)(key, model.speech_tokenizer_config))
        if not self.from_audio_encoder:
            return params
        wanted, there = model.speech_tokenizer_config, model.thinker_config.audio_config
        if (wanted.d_model, wanted.encoder_layers) != (there.d_model, there.encoder_layers):
            raise ConfigError(
                f"The speech tokenizer has {wanted.encoder_layers} layers of width {wanted.d_model}, the checkpoint's "
                f"audio encoder {there.encoder_layers} of width {there.d_model}. Choose another size, or set "
                "stage.from_audio_encoder to False."
            )
        return from_audio_encoder(params, stored("audio_encoder"), wanted)


@dataclass(frozen=True)
class Token2WavStage:
    """Codes to mel by conditional flow matching in the blocks that streaming has (section 2.4)."""

    drop: float = 0.2

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> Task:
        from omni_jax.training.token2wav_task import FlowMatchingTask

        dtype = jnp.dtype(run.dtype)
        return FlowMatchingTask(model.token2wav_config.dit_config, self.drop, dtype, remat=run.remat != "none")

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        return _clips("VoicedClips", self, run)


@dataclass(frozen=True)
class VocoderStage:
    """Mel to waveform against discriminators; see `VocoderTask` for the weights."""

    segment: int = 48
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    adversarial_weight: float = 1.0

    def model(self, published: OmniConfig) -> OmniConfig:
        return replace(published, discriminator_config=published.discriminator_config or DiscriminatorConfig())

    def task(self, run: "RunConfig", model: OmniConfig, sources: tuple[str, ...]) -> Task:
        from omni_jax.training.vocoder_task import VocoderTask

        if run.data.clip_seconds * 100 < self.segment:
            raise ConfigError(
                f"data.clip_seconds = {run.data.clip_seconds:g} is shorter than stage.segment = {self.segment} frames "
                "of 10 ms. Give longer clips, or a shorter segment."
            )
        weights = self.mel_weight, self.feature_weight, self.adversarial_weight
        sizes = model.token2wav_config.bigvgan_config, model.discriminator_config
        return VocoderTask(*sizes, self.segment, *weights, dtype=jnp.dtype(run.dtype))

    def open_data(self, run: "RunConfig", voices: Mapping[str, int], progress: Any = None) -> OpenData:
        return _clips("SoundClips", self, run)

    def start(self, component: str, model: OmniConfig, stored: Stored, key: jax.Array) -> Params:
        from omni_jax.models.discriminators import init_params

        return nn.unbox(jax.jit(init_params, static_argnums=1)(key, model.discriminator_config))


Stage = ThinkerStage | TalkerStage | DpoStage | SpeechTokenizerStage | Token2WavStage | VocoderStage


def model_of(stage: Stage, published: OmniConfig) -> OmniConfig:
    """The model that a stage trains: the checkpoint's, and what the stage adds to it."""
    extend = getattr(stage, "model", None)
    return published if extend is None else extend(published)


def fresh(stage: Stage, component: str, model: OmniConfig, stored: Stored, key: jax.Array) -> Params:
    """New parameters of a component that the checkpoint does not have; `stored` gives those of one that it has.

    Raises:
        CheckpointError: the stage needs it from the checkpoint.
    """
    start = getattr(stage, "start", None)
    if start is None:
        raise CheckpointError(f"The checkpoint has no {component}, which this stage needs. Begin with one that has.")
    return start(component, model, stored, key)
