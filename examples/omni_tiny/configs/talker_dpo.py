"""Talker, second stage: preference between spoken answers, ranked by our own Thinker's hearing and by pauses.

    omni-jax train --config examples/omni_tiny/configs/talker_dpo.py        (in the folder of the data)

As configs/talker_dpo.py. Ours: rates, steps.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import DpoStage

config = RunConfig(
    stage=DpoStage(beta=0.1, sft_weight=0.1),
    checkpoint="speaking",
    output="runs/talker_dpo",
    data=DataConfig(
        sources=(SourceConfig("preferences.jsonl"),),
        shape=RowShape(tokens=128, speech=1024, pairs=4),
        rows=4,
        epochs=2,
        workers=1,
    ),
    freeze=("^thinker/",),
    optimizer=OptimizerConfig(learning_rate=8e-5, warmup_steps=5, total_steps=60, weight_decay=0.0),
    dtype="float32",
    remat="none",
    save_every=50,
)
