"""Glances: the vision encoder, by a probe of many pictures and a few conversations, behind a Thinker that stays.

    omni-jax train --config examples/omni_tiny/configs/glances.py        (in the folder of the data)

Ours: that there is such a run, see examples/omni_tiny/glances.py. A step has 192 pictures for the probe and five or six
conversations; in the time of configs/sight.py it sees fifteen times as many pictures.
"""

from examples.omni_tiny.glances import GlancesStage
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig

config = RunConfig(
    stage=GlancesStage(),
    checkpoint="runs/sight/model",
    output="runs/glances",
    data=DataConfig(
        sources=(
            SourceConfig("image_text.jsonl", weight=0.4),
            SourceConfig("sft_pictures.jsonl", weight=0.35),
            SourceConfig("sft_films.jsonl", weight=0.25),
        ),
        shape=RowShape(tokens=512, audio_blocks=6, patches=320),
        rows=1,
        workers=1,
    ),
    freeze=("^thinker/", "^audio_encoder/"),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=30, total_steps=4900, final_fraction=0.05),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=400,
)
