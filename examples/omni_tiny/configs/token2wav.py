"""Token2Wav: codes to mel by flow matching.

    omni-jax train --config examples/omni_tiny/configs/token2wav.py        (in the folder of the data)

As configs/token2wav.py, on the four voices. Ours: sizes, optimiser, rates, steps, and what
codes begin as (examples/omni_tiny/sounds.py).
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import Token2WavStage

config = RunConfig(
    stage=Token2WavStage(drop=0.2),
    checkpoint="sounding",
    output="runs/token2wav",
    data=DataConfig(sources=(SourceConfig("coded_voiced.jsonl"),), clip_seconds=3, rows=12, workers=1),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=50, total_steps=2880, weight_decay=0.01),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
)
