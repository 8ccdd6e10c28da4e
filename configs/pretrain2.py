"""Pre-training, stage 2: everything is trained, on rows of 8,192 tokens.

    omni-jax train --config configs/pretrain2.py

Paper: section 3, second stage: 800 billion tokens of images and video, 300 of audio, 100 of video with audio.
Chips: v5p-64 for 7B takes 35.4 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload pretrain2` tells it for other chips.
Ours: learning rates, batch, steps, and the share of plain text. Weights of the media follow the paper's token counts.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/pretrain1_encoders/model",
    output="runs/pretrain2",
    data=DataConfig(
        sources=(
            SourceConfig("data/text", weight=0.25),
            SourceConfig("data/image_video", weight=0.5),
            SourceConfig("data/audio", weight=0.19),
            SourceConfig("data/video_audio", weight=0.06),
        ),
        shape=RowShape(tokens=8192, audio_blocks=96, patches=24576),
        rows=64,
        use_audio_in_video=True,
    ),
    rates={"^(audio_encoder|vision_encoder)/": 0.2},
    accumulate=2,
    optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=2000, total_steps=200_000),
    save_every=1000,
)
