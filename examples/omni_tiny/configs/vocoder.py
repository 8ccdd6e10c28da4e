"""Vocoder: mel to waveform against small judges.

    omni-jax train --config examples/omni_tiny/configs/vocoder.py        (in the folder of the data)

As configs/vocoder.py, on the four voices; the judges' sizes are in the checkpoint (examples/omni_tiny/start.py).
Ours: sizes, optimiser, rates, steps.
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import VocoderStage

config = RunConfig(
    stage=VocoderStage(segment=32),
    checkpoint="start",
    output="runs/vocoder",
    data=DataConfig(sources=(SourceConfig("recordings.jsonl"),), clip_seconds=0.5, rows=4, workers=1),
    optimizer=OptimizerConfig(
        rule="muon",
        learning_rate=2e-3,
        warmup_steps=0,
        total_steps=3970,
        beta1=0.8,
        beta2=0.99,
        weight_decay=0.01,
        clip=500.0,  # both sides share the norm: a low limit would let one slow down the other
    ),
    dtype="float32",
)
