"""Pre-training, stage 2: everything is trained, on all kinds of data.

    omni-jax train --config examples/omni_tiny/configs/pretrain2.py        (in the folder of the data)

As configs/pretrain2.py. Ours: sizes, optimiser, steps, rates (AdamW's half of Muon's, for few words come in a step),
and the mixture: hearing is learnt slowest, and human digits sound otherwise than all else. There is no system turn,
which would be half of a question on a picture.
"""

from examples.omni_tiny.packages import FSDD_SPEAKERS
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/pretrain1_encoders/model",
    output="runs/pretrain2",
    data=DataConfig(
        sources=(
            SourceConfig("text.jsonl", weight=0.01),
            SourceConfig("read_aloud.jsonl", weight=0.07),
            SourceConfig("image_text.jsonl", weight=0.2),
            SourceConfig("audio_text.jsonl", weight=0.48),
            *(SourceConfig(f"audio_text_{name}.jsonl", weight=0.04) for name in FSDD_SPEAKERS),
            SourceConfig("video_audio.jsonl", weight=0.08),
        ),
        shape=RowShape(tokens=512, audio_blocks=8, patches=192),
        rows=4,
        workers=1,
        system=None,
    ),
    rates={"^(vision_encoder|thinker/(embed|lm_head))/": 0.5},
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=50, total_steps=340),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
)
