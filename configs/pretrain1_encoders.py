"""Pre-training, second half of stage 1: encoders and adapters, the language model still frozen.

    omni-jax train --config configs/pretrain1_encoders.py

Paper: section 3, first stage, after configs/pretrain1_adapters.py.
Chips: v5p-16 for 7B takes 36.1 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload pretrain1_encoders` tells it for other chips.
Ours: learning rates (the adapters have been trained and move five times as fast), batch, steps.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/pretrain1_adapters/model",
    output="runs/pretrain1_encoders",
    data=DataConfig(
        sources=(SourceConfig("data/image_text", weight=0.5), SourceConfig("data/audio_text", weight=0.5)),
        shape=RowShape(tokens=8192, audio_blocks=64, patches=16384),
        rows=32,
    ),
    freeze=("^thinker/",),
    rates={"^vision_encoder/merger/|^audio_encoder/(final_norm|projection)/": 5.0},
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=1000, total_steps=50_000),
)
