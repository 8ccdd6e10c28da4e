"""Talker, third stage: four voices, each with a row of its own among the embeddings.

    omni-jax train --config examples/omni_tiny/configs/talker_speaker.py        (in the folder of the data)

As configs/talker_speaker.py. Ours: rates, steps; all voices come equally often, though heart has more lines.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import TalkerStage

VOICES = ("heart", "joe", "emma", "onyx")

config = RunConfig(
    stage=TalkerStage(),
    checkpoint="runs/talker_dpo/model",
    output="runs/talker_speaker",
    data=DataConfig(
        sources=tuple(SourceConfig(f"coded_{voice}.jsonl", weight=0.25) for voice in VOICES),
        shape=RowShape(tokens=320, audio_blocks=5, patches=64, speech=640),
        rows=4,
        workers=1,
    ),
    freeze=("^thinker/(?!embed/)", "^audio_encoder/", "^vision_encoder/"),
    rates={"^thinker/embed/": 10.0},
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=20, total_steps=200, weight_decay=0.0),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
)
