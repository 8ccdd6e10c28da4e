"""Talker, second stage: preference between spoken answers.

    omni-jax train --config configs/talker_dpo.py

Paper: section 4.3, equation 1: triplets (x, y_w, y_l) ranked by word error rate and pauses at punctuation.
Chips: v5p-8 for 7B takes 17.8 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload talker_dpo` tells it for other chips.
Ours: beta, learning rate, batch, steps. `omni-jax prefer` makes the triplets with log-probabilities of the reference.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import DpoStage

config = RunConfig(
    stage=DpoStage(beta=0.1, sft_weight=0.1),
    checkpoint="runs/talker_icl/model",
    output="runs/talker_dpo",
    data=DataConfig(
        sources=(SourceConfig("data/preferences.jsonl"),),
        shape=RowShape(tokens=4096, speech=8192, pairs=8),
        rows=16,
        epochs=1,
    ),
    freeze=("^thinker/",),
    optimizer=OptimizerConfig(learning_rate=1e-6, warmup_steps=100, total_steps=2000, weight_decay=0.0),
)
