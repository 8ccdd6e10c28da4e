"""Eyes: a vision encoder from nothing, by the words of captions: in the place of Qwen2.5-VL's, which is given.

    omni-jax train --config examples/omni_tiny/configs/eyes.py        (in the folder of the data)

Ours: that there is such a run, see examples/omni_tiny/eyes.py. What it learns of the Thinker is thrown away.
"""

from examples.omni_tiny.eyes import EyesStage
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig

config = RunConfig(
    stage=EyesStage(),
    checkpoint="start",
    output="runs/eyes",
    data=DataConfig(
        sources=(SourceConfig("image_text.jsonl"),),
        shape=RowShape(tokens=512, audio_blocks=0, patches=384),
        rows=4,
        workers=1,
        system=None,
    ),
    freeze=("^thinker/(layers|final_norm)/",),
    optimizer=OptimizerConfig(rule="muon", learning_rate=4e-3, warmup_steps=50, total_steps=4000),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=500,
)
