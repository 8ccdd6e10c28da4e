"""The speaking half of the PyTorch side: the Talker, the DiT and BigVGAN of `transformers`, and its whole pipeline.

The published `generate` is run as it is, with three of its faults worked around: pixels must reach the Thinker under
its own prefix, positions kept from an earlier call must be dropped, and stop ids of codes must be given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.request import Request
from omni_jax.config import OmniConfig
from omni_jax.interop.reference import pytorch, quiet, thinker_inputs
from omni_jax.interop.reference_trace import Trace, recorded
from omni_jax.interop.safetensors_shards import Tensor
from omni_jax.models.flow import FlowOptions


@dataclass(frozen=True)
class Spoken:
    """What the reference said to a batch.

    texts: token ids of the answers, equally long; codes: ids of speech codes, stops and padding after them included.
    waveforms: float32 [W] each; noise: float32 [frames, mel bins], what each waveform's flow started from.
    """

    texts: list[list[int]]
    codes: list[list[int]]
    waveforms: list[np.ndarray]
    noise: list[np.ndarray]


def load_model(folder: str | Path) -> Any:
    """The whole model of a published folder that speaks: float32, SDPA attention, evaluation mode."""
    torch, transformers = pytorch()
    quiet()
    return transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()


def speak(
    model: Any,
    requests: Sequence[Request],
    config: OmniConfig,
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    max_codes: int,
    code_stops: Sequence[int] | None = None,
    **options: Any,
) -> Spoken:
    """Greedy text, greedy codes and the sound of a batch, by the reference's own `generate`.

    Args:
        stop_ids, pad_id: of the text.
        code_stops: default the Talker's end and padding ids.
        options: passed on to `generate`, such as `speaker`.
    """
    torch, _ = pytorch()
    inputs = thinker_inputs(requests, config, pad_id=pad_id)
    for name in ("pixel_values", "pixel_values_videos"):  # its Talker does not take them
        if name in inputs:
            inputs[f"thinker_{name}"] = inputs.pop(name)
    talker = config.talker_config
    if code_stops is None:
        code_stops = (talker.tts_codec_pad_token_id, talker.tts_codec_end_token_id)
    talk, codes = model.talker.generate, []

    def recording_talk(*args: Any, **kwargs: Any) -> Any:
        ids = talk(*args, **kwargs)
        codes.append(ids[:, kwargs["input_ids"].shape[1] :])
        return ids

    model.thinker.rope_deltas = model.talker.rope_deltas = None  # kept on the modules between calls
    model.talker.generate = recording_talk
    try:
        with recorded_noise() as drawn, torch.inference_mode():
            texts, waveforms = model.generate(
                **inputs,
                thinker_do_sample=False,
                thinker_max_new_tokens=max_new_tokens,
                thinker_eos_token_id=list(stop_ids),
                thinker_pad_token_id=pad_id,
                talker_do_sample=False,
                talker_max_new_tokens=max_codes,
                talker_eos_token_id=list(code_stops),
                **options,
            )
    finally:
        del model.talker.generate
    waveforms = waveforms if isinstance(waveforms, list) else [waveforms]
    return Spoken(
        texts[:, inputs["input_ids"].shape[1] :].tolist(),
        codes[0].tolist(),
        [waveform.numpy() for waveform in waveforms],
        [item[0] for item in drawn],
    )


@contextmanager
def recorded_noise() -> Iterator[list[np.ndarray]]:
    """Copies of what `torch.randn` draws meanwhile."""
    torch, _ = pytorch()
    draw, drawn = torch.randn, []

    def recording(*args: Any, **kwargs: Any) -> Any:
        value = draw(*args, **kwargs)
        drawn.append(value.numpy().copy())
        return value

    torch.randn = recording
    try:
        yield drawn
    finally:
        torch.randn = draw


@contextmanager
def given_noise(noise: np.ndarray) -> Iterator[None]:
    """`torch.randn` gives `noise` meanwhile, if the shape is asked for."""
    torch, _ = pytorch()
    draw = torch.randn

    def giving(*shape: Any, **kwargs: Any) -> Any:
        wanted = tuple(shape[0]) if isinstance(shape[0], (list, tuple)) else shape
        if wanted != noise.shape:
            raise ValueError(f"the reference draws noise {list(wanted)}, but {list(noise.shape)} was given")
        return torch.from_numpy(noise.copy())

    torch.randn = giving
    try:
        yield
    finally:
        torch.randn = draw


def talker_trace(
    talker: Any, request: Request, config: OmniConfig, *, text: np.ndarray, ids: np.ndarray, codes: Sequence[int]
) -> tuple[Trace, np.ndarray]:
    """The Talker over a prompt in one call, then over given codes one by one with its cache.

    Args:
        text: float32 [P + 2 + codes, E], what it hears at every place.
        ids: [P + 2] tokens of the prompt, the speaker and the answer's first token, for positions.

    Returns:
        Names and arrays as of `reference_trace.trace` for part "talker", and "talker.logits"; and position ids
        int64 [3, places], the reference's own.
    """
    torch, _ = pytorch()
    media = thinker_inputs([request], config, pad_id=0)
    if "feature_attention_mask" in media:
        media["audio_feature_lengths"] = media["feature_attention_mask"].sum(dim=1)
    keys = "image_grid_thw", "video_grid_thw", "use_audio_in_video", "audio_feature_lengths", "video_second_per_grid"
    media = {key: media[key] for key in keys if key in media}
    positions = []
    talker.rope_deltas = None
    with recorded() as tape, torch.inference_mode():
        tape.stack("talker", talker.model.layers, talker.model.norm)
        tape.output("talker.logits", talker.codec_head)
        hook = talker.model.rotary_emb.register_forward_pre_hook(lambda module, args: positions.append(args[1][:, 0]))
        tape.hooks.append(hook)
        out = talker(
            inputs_embeds=_batch(text[: len(ids)]),  # it adds to them in place
            input_text_ids=_batch(ids.astype(np.int64)),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            use_cache=True,
            **media,
        )
        for place, code in enumerate(codes, start=len(ids)):
            out = talker(
                input_ids=torch.tensor([[code]]),
                thinker_reply_part=_batch(text[place : place + 1]),
                attention_mask=torch.ones(1, place + 1, dtype=torch.long),
                past_key_values=out.past_key_values,
                use_cache=True,
            )
    return tape.joined(), torch.cat(positions, dim=1).long().numpy()


def dit_trace(
    dit: Any, x: np.ndarray, codes: np.ndarray, speaker: np.ndarray, ref_mel: np.ndarray, time: float
) -> Trace:
    """One evaluation of the DiT, both branches of guidance.

    Args: x [T, M], codes [T / 2], speaker [S], ref_mel [R, M].

    Returns:
        "dit.input", "dit.layers.{i}" and "dit.output", the velocity: [2 · T, channels], conditional branch first.
    """
    torch, _ = pytorch()
    speaker = np.broadcast_to(speaker, (len(x), len(speaker)))
    with recorded() as tape, torch.inference_mode():
        tape.stack("dit", dit.transformer_blocks, dit.proj_out)
        dit(
            hidden_states=_batch(x),
            condition_vector=_batch(ref_mel),
            speaker_embedding=_batch(speaker),
            quantized_code=_batch(codes.astype(np.int64)),
            time_step=torch.tensor(time, dtype=torch.float32),
        )
    return tape.joined()


def timbre(dit: Any, ref_mel: np.ndarray) -> np.ndarray:
    """The speaker encoder's vector of a reference mel [R, M]."""
    torch, _ = pytorch()
    with torch.inference_mode():
        return dit.input_embed.spk_encoder(_batch(ref_mel))[0].numpy()


def solve_flow(
    dit: Any, noise: np.ndarray, codes: np.ndarray, speaker: np.ndarray, ref_mel: np.ndarray, options: FlowOptions
) -> np.ndarray:
    """Log mel [T, M] of the whole flow from `noise` [T, M]. The reference has the Runge-Kutta solver only."""
    with given_noise(noise[None]):
        mel = dit.sample(
            _batch(speaker),
            _batch(ref_mel),
            _batch(codes.astype(np.int64)),
            num_steps=options.num_steps,
            guidance_scale=options.guidance_scale,
            sway_coefficient=options.sway_coefficient,
        )
    return mel[0].T.numpy()


def bigvgan_trace(bigvgan: Any, mel: np.ndarray) -> Trace:
    """The vocoder over log mel [T, M].

    Returns:
        "bigvgan.stages.{i}", [samples, channels] after each stage, and "bigvgan.waveform" [W, 1].
    """
    torch, _ = pytorch()

    def channels_last(value: Any) -> Any:
        return value[0].T

    with recorded() as tape, torch.inference_mode():
        following = [up[0] for up in bigvgan.ups[1:]] + [bigvgan.activation_post]
        for index, module in enumerate(following):
            tape.input(f"bigvgan.stages.{index}", module, channels_last)
        waveform = bigvgan(_batch(mel.T))
    return tape.joined() | {"bigvgan.waveform": waveform.reshape(-1, 1).numpy()}


def load_dit(folder: str | Path, tensors: Mapping[str, Tensor]) -> Any:
    """The DiT, with its speaker encoder, of a published folder. `tensors` by full name."""
    return _load(folder, tensors, "dit_config", "Qwen2_5OmniToken2WavDiTModel", "token2wav.code2wav_dit_model.")


def load_bigvgan(folder: str | Path, tensors: Mapping[str, Tensor]) -> Any:
    """The vocoder of a published folder."""
    kind = "Qwen2_5OmniToken2WavBigVGANModel"
    return _load(folder, tensors, "bigvgan_config", kind, "token2wav.code2wav_bigvgan_model.")


def _load(folder, tensors, section: str, kind: str, prefix: str) -> Any:
    torch, transformers = pytorch()
    quiet()
    config = transformers.Qwen2_5OmniConfig.from_pretrained(folder, local_files_only=True).token2wav_config
    model = getattr(transformers, kind)._from_config(getattr(config, section), dtype=torch.float32)
    state = {
        name: torch.from_numpy(tensors[prefix + name].read().astype(np.float32)) for name, _ in model.named_parameters()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


def _batch(values: np.ndarray) -> Any:
    """A tensor of its own memory, with a batch axis of one."""
    torch, _ = pytorch()
    return torch.tensor(values)[None]


Loader = Callable[[], Any]


@dataclass(frozen=True)
class SpeechReference:
    """The speaking half of a model. `dit` and `bigvgan` load, or fetch, the module; keep it no longer than needed.

    `whole` is None where the model is too large to be in memory.
    """

    talker: Any
    dit: Loader
    bigvgan: Loader
    whole: Any = None
