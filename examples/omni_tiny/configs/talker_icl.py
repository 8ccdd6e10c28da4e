"""Talker, first stage: speech continues a conversation, code by code.

    omni-jax train --config examples/omni_tiny/configs/talker_icl.py        (in the folder of the data)

As configs/talker_icl.py, in all four voices. Ours: sizes, rates, steps.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import TalkerStage

VOICES = ("heart", "joe", "emma", "onyx")

config = RunConfig(
    stage=TalkerStage(),
    checkpoint="runs/sft/model",
    output="runs/talker_icl",
    data=DataConfig(
        sources=tuple(SourceConfig(f"coded_{voice}.jsonl") for voice in VOICES),
        shape=RowShape(tokens=320, audio_blocks=5, patches=64, speech=640),
        rows=4,
        workers=1,
    ),
    freeze=("^thinker/", "^audio_encoder/", "^vision_encoder/"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, total_steps=1100),
    dtype="float32",
    remat="none",
    save_every=200,
)
