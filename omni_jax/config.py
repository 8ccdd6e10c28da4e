"""Frozen dataclasses for every component of Qwen2.5-Omni, and the named presets.

Field names are the published `config.json` names where one exists. Reading and writing that file, with
everything that it carries besides, is in `omni_jax/config_json.py`.

Figures of the presets: Qwen2.5-Omni technical report and the published configurations of the 7B and 3B models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _source():
    """The JSON object that a component was read from; it takes no part in equality or hashing."""
    return field(default_factory=dict, compare=False, hash=False, repr=False)


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Whisper-style encoder that attends in blocks of `2 * n_window` mel frames (2 s)."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    output_dim: int
    num_mel_bins: int = 128
    max_source_positions: int = 1500
    n_window: int = 100
    initializer_range: float = 0.02
    source: Mapping[str, Any] = _source()

    @property
    def head_dim(self) -> int:
        return self.d_model // self.encoder_attention_heads

    @property
    def block_frames(self) -> int:
        """Mel frames in one attention block."""
        return 2 * self.n_window


@dataclass(frozen=True)
class VisionEncoderConfig:
    """Windowed vision transformer with 2x2 merging."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    source: Mapping[str, Any] = _source()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch: channel x frame x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_cells(self) -> int:
        """Side of an attention window, in merged cells."""
        return self.window_size // self.patch_size // self.spatial_merge_size


@dataclass(frozen=True)
class TextConfig:
    """The Thinker's Qwen2.5 decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    source: Mapping[str, Any] = _source()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class ThinkerConfig:
    """Audio tower, vision tower and text decoder, with the token ids that tie them together."""

    audio_config: AudioEncoderConfig
    vision_config: VisionEncoderConfig
    text_config: TextConfig
    audio_token_id: int = 151646
    image_token_id: int = 151655
    video_token_id: int = 151656
    audio_start_token_id: int = 151647
    audio_end_token_id: int = 151648
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    position_id_per_seconds: int = 25
    seconds_per_chunk: int = 2
    source: Mapping[str, Any] = _source()


@dataclass(frozen=True)
class TalkerConfig:
    """The speech-code decoder. `embedding_size` is the Thinker's width; `hidden_size` its own."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    tts_text_start_token_id: int = 151860
    tts_text_end_token_id: int = 151861
    tts_text_pad_token_id: int = 151859
    tts_codec_start_token_id: int = 8293
    tts_codec_end_token_id: int = 8294
    tts_codec_pad_token_id: int = 8292
    tts_codec_mask_token_id: int = 8296
    initializer_range: float = 0.02
    source: Mapping[str, Any] = _source()


@dataclass(frozen=True)
class DiTConfig:
    """Flow-matching transformer with sliding-window block attention, and its ECAPA speaker encoder (`enc_*`).

    dropout: in training only, after attention and within the feed-forward.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    head_dim: int = 64
    ff_mult: int = 2
    emb_dim: int = 512
    block_size: int = 24
    look_ahead_layers: tuple[int, ...] = (10,)
    look_backward_layers: tuple[int, ...] = (0, 20)
    repeats: int = 2
    dropout: float = 0.1
    num_embeds: int = 8193
    mel_dim: int = 80
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32768
    enc_emb_dim: int = 192
    enc_dim: int = 128
    enc_channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 64
    enc_res2net_scale: int = 2
    enc_se_channels: int = 64
    source: Mapping[str, Any] = _source()


@dataclass(frozen=True)
class BigVGANConfig:
    """Mel (100 Hz) to waveform (24 kHz), with anti-aliased periodic activations."""

    mel_dim: int = 80
    upsample_initial_channel: int = 1536
    upsample_rates: tuple[int, ...] = (5, 3, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 7, 4, 4, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source: Mapping[str, Any] = _source()


@dataclass(frozen=True)
class Token2WavConfig:
    """Speech codes to waveform: DiT, then BigVGAN."""

    dit_config: DiTConfig = field(default_factory=DiTConfig)
    bigvgan_config: BigVGANConfig = field(default_factory=BigVGANConfig)
    source: Mapping[str, Any] = _source()


TOKENIZER_ROUTES = ("inversion", "scratch")


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Waveform to speech codes, one for 20 ms: layers of the audio encoder, in the same blocks, then a quantiser.

    `route` says how codes come about, and so which parameters there are (models/speech_tokenizer.py):

        inversion   all `encoder_layers`, then a classifier over the codes of a published decoder
        scratch     `quantizer_layer` layers, then finite scalar quantisation; the layers after it recognise text
                    (`text_vocab_size` labels, 0 the blank) and a small decoder restores the mel, both for training

    No tokenizer of Qwen2.5-Omni is published. Width, depth, blocks and the place of the quantiser are those of its
    sibling Qwen3-TTS (arXiv:2601.15621), and the codes fit the published DiT, whose table has 8,194 rows.
    """

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    route: str = "inversion"
    num_mel_bins: int = 128
    n_window: int = 100
    num_codes: int = 8192
    quantizer_layer: int = 6
    levels: tuple[int, ...] = (8, 8, 8, 16)
    text_vocab_size: int = 257
    decoder_channels: int = 512
    target_mel_bins: int = 80
    initializer_range: float = 0.02
    source: Mapping[str, Any] = _source()

    @property
    def encoder(self) -> AudioEncoderConfig:
        """The audio encoder whose layers these are."""
        return AudioEncoderConfig(
            d_model=self.d_model,
            encoder_layers=self.encoder_layers,
            encoder_attention_heads=self.encoder_attention_heads,
            encoder_ffn_dim=self.encoder_ffn_dim,
            output_dim=self.d_model,
            num_mel_bins=self.num_mel_bins,
            n_window=self.n_window,
            initializer_range=self.initializer_range,
        )

    @property
    def coding_layers(self) -> int:
        """Layers between the mel and the codes."""
        return self.encoder_layers if self.route == "inversion" else self.quantizer_layer


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What judges the vocoder's waveform in training: by periods (HiFi-GAN) and by spectrograms (UnivNet, BigVGAN).

    resolutions: (FFT size, hop, window) in samples.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    resolutions: tuple[tuple[int, int, int], ...] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
    resolution_channels: int = 32
    source: Mapping[str, Any] = _source()


@dataclass(frozen=True)
class OmniConfig:
    """The whole model. `talker_config` and `token2wav_config` are None for a checkpoint that cannot speak.

    `speech_tokenizer_config` and `discriminator_config` are of components that no published checkpoint has.
    """

    thinker_config: ThinkerConfig
    talker_config: TalkerConfig | None = None
    token2wav_config: Token2WavConfig | None = None
    speech_tokenizer_config: SpeechTokenizerConfig | None = None
    discriminator_config: DiscriminatorConfig | None = None
    source: Mapping[str, Any] = _source()

    @property
    def speaks(self) -> bool:
        return self.talker_config is not None


@dataclass(frozen=True)
class ProcessorConfig:
    """How media become features: the published `preprocessor_config.json`.

    Pixel bounds are areas in pixels. A film's frames share `video_total_pixels`.
    """

    sampling_rate: int = 16000
    n_fft: int = 400
    hop_length: int = 160
    num_mel_bins: int = 128
    max_audio_seconds: int = 300
    image_min_pixels: int = 4 * 28 * 28
    image_max_pixels: int = 16384 * 28 * 28
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28
    video_total_pixels: int = 115200 * 28 * 28
    video_fps: float = 2.0
    video_min_frames: int = 4
    video_max_frames: int = 768
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    source: Mapping[str, Any] = _source()


@dataclass(frozen=True)
class SpeechMelConfig:
    """The log mel of speech that the DiT makes and the vocoder reads, 100 frames a second.

    The published model's own settings are not public. These are of the one public mel of its family (Qwen3-TTS,
    `speech_vq`; see input_pipeline/voice_mel.py): magnitudes of 40 ms Hann windows, 80 Slaney bins up to 8 kHz,
    natural logarithm, floor 1e-5. That one is computed at 16 kHz with a transform of 1024; at 24 kHz, 1536 gives the
    same frequencies, so that both are one mel but for their gain, which `scale` takes out.
    """

    sampling_rate: int = 24000
    n_fft: int = 1536
    hop_length: int = 240
    win_length: int = 960
    num_mel_bins: int = 80
    fmax: float = 8000.0
    floor: float = 1e-5

    @property
    def scale(self) -> float:
        """Of the magnitudes: those of a transform grow with the samples of its window."""
        return 640 / self.win_length
