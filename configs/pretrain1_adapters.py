"""Pre-training, first half of stage 1: the adapters between the encoders and a frozen language model.

    omni-jax train --config configs/pretrain1_adapters.py

Paper: section 3, first stage: the language model is frozen, the adapters are trained before the encoders.
Chips: v5p-16 for 7B takes 20.3 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload pretrain1_adapters` tells it for other chips.
Ours: learning rate, batch and number of steps; the paper states none. `omni-jax assemble` makes the checkpoint.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="checkpoints/assembled",
    output="runs/pretrain1_adapters",
    data=DataConfig(
        sources=(SourceConfig("data/image_text", weight=0.5), SourceConfig("data/audio_text", weight=0.5)),
        shape=RowShape(tokens=8192, audio_blocks=64, patches=16384),
        rows=32,
    ),
    # left to train: the vision merger, the audio encoder's last norm and projection
    freeze=(
        "^thinker/",
        "^audio_encoder/(conv1|conv2|layers)",
        "^vision_encoder/(patch_embed|layers)",
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=500, total_steps=10_000, weight_decay=0.0),
)
