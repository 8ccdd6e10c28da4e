"""Talker, before its first stage: pronunciation, from a Thinker that has only learnt to read.

    omni-jax train --config examples/omni_tiny/configs/talker_first.py        (in the folder of the data)

As configs/talker_icl.py. Ours: that there is such a run, by Muon, for it begins with random parameters. What the Talker
reads are words and what the Thinker thinks of them, and the words are there as soon as it has learnt to repeat; so the
Talker learns to say them while the Thinker, elsewhere, learns to hear and to see. talker_icl goes on with the Thinker
that comes of it.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import TalkerStage

# all speak as heart does, whose texts the others share among them
VOICES = {"heart": 0.34, "joe": 0.22, "emma": 0.22, "onyx": 0.22}

config = RunConfig(
    stage=TalkerStage(),
    checkpoint="lips",
    output="runs/talker_first",
    data=DataConfig(
        sources=tuple(SourceConfig(f"coded_{voice}.jsonl", weight=share) for voice, share in VOICES.items()),
        shape=RowShape(tokens=320, audio_blocks=5, patches=64, speech=640),
        rows=4,
        workers=1,
    ),
    freeze=("^thinker/", "^audio_encoder/", "^vision_encoder/"),
    optimizer=OptimizerConfig(rule="muon", learning_rate=3e-3, warmup_steps=50, total_steps=4420),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
)
