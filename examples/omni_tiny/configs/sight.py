"""Sight: the vision encoder alone, by pictures and films, behind a Thinker and ears that stay as they are.

    omni-jax train --config examples/omni_tiny/configs/sight.py        (in the folder of the data)

As configs/pretrain1_encoders.py, but the Thinker can answer, and the ears learn nothing. Ours: that there is such a
run. The other stages show a picture in a third of their steps at most, and pictures are learnt slowest; alone they cost
half as much, and what the Thinker knows of the rest cannot be forgotten. Captions, too, have a system's turn before
them here: places are counted from the beginning, and without it strings of digits were read worse afterwards, not
better. Films are among them with their sound and all questions: of films without sound, asked what is seen in them, the
eyes learnt not to tell when it appears, and what came first was a guess.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/sft/model",
    output="runs/sight",
    data=DataConfig(
        sources=(
            SourceConfig("image_text.jsonl", weight=0.5),
            SourceConfig("sft_pictures.jsonl", weight=0.35),
            SourceConfig("sft_films.jsonl", weight=0.15),
        ),
        shape=RowShape(tokens=512, audio_blocks=6, patches=320),
        rows=4,
        workers=1,
    ),
    freeze=("^thinker/", "^audio_encoder/"),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=30, total_steps=1000),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
)
