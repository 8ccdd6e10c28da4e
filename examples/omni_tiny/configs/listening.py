"""Listening: the audio encoder alone, by transcripts, behind a Thinker that stays as it is.

    omni-jax train --config examples/omni_tiny/configs/listening.py        (in the folder of the data)

As configs/sight.py, for the other sense: strangers are understood by hearing many, and a fifth of what sft takes are
transcripts. Ours: that there is such a run, and its length; of the 1,520 steps that it had, phones takes the place of
most.
"""

from examples.omni_tiny.packages import FSDD_SPEAKERS
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/pretrain2/model",
    output="runs/listening",
    data=DataConfig(
        sources=(
            SourceConfig("audio_text.jsonl", weight=0.8),
            *(SourceConfig(f"audio_text_{name}.jsonl", weight=0.05) for name in FSDD_SPEAKERS),
        ),
        shape=RowShape(tokens=512, audio_blocks=10, patches=0),
        rows=4,
        workers=1,
    ),
    freeze=("^thinker/",),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=30, total_steps=400),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
)
