"""Pre-training, stage 3: long sequences, rows of 32,768 tokens split over a context axis.

    omni-jax train --config configs/pretrain3.py

Paper: section 3, third stage: all data extended to 32,768 tokens, with long audio and video.
Chips: v5p-64 for 7B takes 40.3 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload pretrain3` tells it for other chips.
Ours: learning rates, batch, steps, mixture.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/pretrain2/model",
    output="runs/pretrain3",
    data=DataConfig(
        sources=(
            SourceConfig("data/long_text", weight=0.25),
            SourceConfig("data/long_video_audio", weight=0.4),
            SourceConfig("data/long_audio", weight=0.15),
            SourceConfig("data/image_video", weight=0.2),
        ),
        shape=RowShape(tokens=32768, audio_blocks=384, patches=98304),
        rows=8,
        use_audio_in_video=True,
    ),
    mesh={"fsdp": 8, "context": 4},
    rates={"^(audio_encoder|vision_encoder)/": 0.2},
    accumulate=4,
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=500, total_steps=20_000),
)
