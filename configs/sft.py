"""Instruction tuning of the Thinker on conversations in ChatML.

    omni-jax train --config configs/sft.py

Paper: section 4.1 and 4.2: text, visual, audio and mixed-modality conversations; loss on the assistant's words.
Chips: v5p-16 for 7B takes 27.1 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload sft` tells it for other chips.
Ours: learning rate, batch, steps; the encoders stay as they are.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="checkpoints/qwen2.5-omni-7b",
    output="runs/sft",
    data=DataConfig(
        sources=(SourceConfig("data/conversations"),),
        shape=RowShape(tokens=8192, audio_blocks=64, patches=16384),
        rows=16,
        epochs=2,
    ),
    freeze=("^audio_encoder/", "^vision_encoder/"),
    optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=100, total_steps=4000),
    prompts=("Who are you?", "Name three rivers and where they end."),
    sample_every=500,
)
