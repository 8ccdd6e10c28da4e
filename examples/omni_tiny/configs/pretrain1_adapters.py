"""Pre-training, first half of stage 1: the adapters, encoders and language model frozen.

    omni-jax train --config examples/omni_tiny/configs/pretrain1_adapters.py        (in the folder of the data)

As configs/pretrain1_adapters.py. Short: what is frozen is too small to be told of sound and pictures by adapters.
Ours: sizes, optimiser, rates, steps, no system turn (see pretrain2.py).
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="senses",
    output="runs/pretrain1_adapters",
    data=DataConfig(
        sources=(SourceConfig("image_text.jsonl", weight=0.5), SourceConfig("audio_text.jsonl", weight=0.5)),
        shape=RowShape(tokens=512, audio_blocks=8, patches=192),
        rows=4,
        workers=1,
        system=None,
    ),
    # left to train: the vision merger, the audio encoder's last norm and projection
    freeze=(
        "^thinker/",
        "^audio_encoder/(conv1|conv2|layers)",
        "^vision_encoder/(patch_embed|layers)",
    ),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=20, total_steps=50, weight_decay=0.0),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=25,
)
