"""Talker, first stage: speech continues a conversation, code by code.

    omni-jax train --config examples/omni_tiny/configs/talker_icl.py        (in the folder of the data)

As configs/talker_icl.py, in all four voices, with a Talker that can already say words (talker_first.py).
Ours: sizes, optimiser, rates, steps.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import TalkerStage

# all speak as heart does, whose texts the others share among them
VOICES = {"heart": 0.34, "joe": 0.22, "emma": 0.22, "onyx": 0.22}

config = RunConfig(
    stage=TalkerStage(),
    checkpoint="tongue",
    output="runs/talker_icl",
    data=DataConfig(
        sources=tuple(SourceConfig(f"coded_{voice}.jsonl", weight=share) for voice, share in VOICES.items()),
        shape=RowShape(tokens=320, audio_blocks=5, patches=64, speech=640),
        rows=4,
        workers=1,
    ),
    freeze=("^thinker/", "^audio_encoder/", "^vision_encoder/"),
    optimizer=OptimizerConfig(rule="muon", learning_rate=1.5e-3, warmup_steps=20, total_steps=2750),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=60,
)
