"""Token2Wav: codes to mel by flow matching, in blocks that see two before and one after.

    omni-jax train --config configs/token2wav.py

Paper: section 2.4: flow-matching DiT with sliding-window block attention.
Chips: v5p-8 takes 7.8 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload token2wav` tells it for other chips.
Ours: learning rate, batch, steps; conditions are dropped as in F5-TTS (arXiv:2410.06885).
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import Token2WavStage

config = RunConfig(
    stage=Token2WavStage(drop=0.2),
    checkpoint="checkpoints/qwen2.5-omni-7b",
    output="runs/token2wav",
    data=DataConfig(sources=(SourceConfig("data/voiced_codes.jsonl"),), clip_seconds=20, rows=64),
    optimizer=OptimizerConfig(learning_rate=7.5e-5, warmup_steps=5000, total_steps=300_000),
)
