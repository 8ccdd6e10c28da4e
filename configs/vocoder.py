"""Vocoder: mel to waveform against discriminators.

    omni-jax train --config configs/vocoder.py

Paper: section 2.4 takes BigVGAN (arXiv:2206.04658) as it is; this trains one on other mels or voices.
Chips: v5p-8 takes 9.2 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload vocoder` tells it for other chips.
Ours: batch and steps; learning rate, betas and loss weights are BigVGAN's.
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import VocoderStage

config = RunConfig(
    stage=VocoderStage(),
    checkpoint="checkpoints/qwen2.5-omni-7b",
    output="runs/vocoder",
    data=DataConfig(sources=(SourceConfig("data/recordings.jsonl"),), clip_seconds=4, rows=32),
    optimizer=OptimizerConfig(
        learning_rate=1e-4,
        warmup_steps=0,
        total_steps=500_000,
        beta1=0.8,
        beta2=0.99,
        weight_decay=0.01,
        clip=500.0,  # both sides share the norm: a low limit would let one slow down the other
    ),
    dtype="float32",
)
