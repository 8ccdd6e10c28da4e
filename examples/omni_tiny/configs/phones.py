"""Phones: the audio encoder, by a probe of many recordings and a few conversations, behind a Thinker that stays.

    omni-jax train --config examples/omni_tiny/configs/phones.py        (in the folder of the data)

Ours: that there is such a run, see examples/omni_tiny/phones.py. A step has some 40 recordings for the probe and 12 to
16 conversations. Half of these are transcripts; where all were, the encoder forgot what is no speech, and the Thinker
took one spoken question for another.
"""

from examples.omni_tiny.packages import FSDD_SPEAKERS
from examples.omni_tiny.phones import PhonesStage
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig

config = RunConfig(
    stage=PhonesStage(talk_weight=2.0),
    checkpoint="runs/glances/model",
    output="runs/phones",
    data=DataConfig(
        sources=(
            SourceConfig("audio_text.jsonl", weight=0.4),
            SourceConfig("sft_films.jsonl", weight=0.2),
            SourceConfig("sft.jsonl", weight=0.3),
            *(SourceConfig(f"audio_text_{name}.jsonl", weight=0.025) for name in FSDD_SPEAKERS),
        ),
        shape=RowShape(tokens=512, audio_blocks=10, patches=320),
        rows=2,
        workers=1,
    ),
    freeze=("^thinker/", "^vision_encoder/"),
    rates={"^probe/": 3.0},
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=100, total_steps=3000, final_fraction=0.05),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=400,
)
