"""Talker, third stage: one model, several voices.

    omni-jax train --config configs/talker_speaker.py

Paper: section 4.3, third stage: multi-speaker instruction tuning for naturalness and control.
Chips: v5p-8 for 7B takes 25.6 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload talker_speaker` tells it for other chips.
Ours: learning rate, batch, steps. `omni-jax voices --add` gives the checkpoint new voices. Of the Thinker only their
    rows among the embeddings change: no gradient reaches the others, and there is no decay.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import TalkerStage

config = RunConfig(
    stage=TalkerStage(),
    checkpoint="runs/talker_dpo/model",
    output="runs/talker_speaker",
    data=DataConfig(
        sources=(SourceConfig("data/speakers"),),
        shape=RowShape(tokens=4096, speech=8192),
        rows=16,
        epochs=3,
    ),
    freeze=("^thinker/(?!embed/)",),
    rates={"^thinker/embed/": 10.0},
    optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=100, total_steps=3000, weight_decay=0.0),
)
