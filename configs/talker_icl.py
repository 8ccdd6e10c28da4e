"""Talker, first stage: speech continues a conversation, code by code, given what the Thinker thinks and writes.

    omni-jax train --config configs/talker_icl.py

Paper: section 4.3, first stage: in-context learning by next-token prediction on multimodal contexts and spoken answers.
Chips: v5p-8 for 7B takes 18.6 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload talker_icl` tells it for other chips.
Ours: learning rate, batch, steps. The Thinker is frozen, so text is not learnt here: it is what the Talker reads. With
    text_weight above 0 and ^thinker/ left out of freeze the Thinker learns it beside, as in configs/sft.py.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import TalkerStage

config = RunConfig(
    stage=TalkerStage(),
    checkpoint="checkpoints/qwen2.5-omni-7b",
    output="runs/talker_icl",
    data=DataConfig(
        sources=(SourceConfig("data/spoken_conversations"),),
        shape=RowShape(tokens=4096, audio_blocks=64, patches=4096, speech=8192),
        rows=16,
    ),
    freeze=("^thinker/", "^audio_encoder/", "^vision_encoder/"),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, total_steps=50_000),
)
