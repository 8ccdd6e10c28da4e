"""Pre-training, second half of stage 1: encoders and adapters, the language model still frozen.

    omni-jax train --config examples/omni_tiny/configs/pretrain1_encoders.py        (in the folder of the data)

As configs/pretrain1_encoders.py, and short for the reason of pretrain1_adapters.py.
Ours: sizes, optimiser, rates, steps, no system turn.
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
        sources=(SourceConfig("image_text.jsonl", weight=0.4), SourceConfig("audio_text.jsonl", weight=0.6)),
        shape=RowShape(tokens=512, audio_blocks=8, patches=192),
        rows=4,
        workers=1,
        system=None,
    ),
    freeze=("^thinker/",),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=20, total_steps=60),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=30,
)
