"""A Thinker that learns from nothing to write spoken digits, with given ears: for the person who is left out.

    python -m examples.omni_tiny.train_all --model MODEL --leave-out theo

Ours: that there is such a run. A model that is given has heard everybody, but its speech tokenizer, whose lower layers
are the ears, only synthetic speech (examples/omni_tiny/chain.py). Digits are all that people say here.
"""

from examples.omni_tiny.packages import FSDD_SPEAKERS
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="ears",
    output="runs/hearing",
    data=DataConfig(
        sources=(
            SourceConfig("audio_text_digits.jsonl", weight=0.4),
            *(SourceConfig(f"audio_text_{name}.jsonl", weight=0.15) for name in FSDD_SPEAKERS),
        ),
        shape=RowShape(tokens=256, audio_blocks=10),
        rows=4,
        workers=1,
        system=None,
    ),
    rates={"^thinker/(embed|lm_head)/": 0.5},
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=30, total_steps=300),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=100,
)
