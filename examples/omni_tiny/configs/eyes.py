"""Eyes: a vision encoder from nothing, by telling what pictures show: in the place of Qwen2.5-VL's, which is given.

    omni-jax train --config examples/omni_tiny/configs/eyes.py        (in the folder of the data)

Ours: that there is such a run. Behind the whole language model, a picture costs twice as much, and 55,000 of them
taught it colours and no shape. The small one is thrown away; the encoder goes on in pretrain1.
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="captioner",
    output="runs/eyes",
    data=DataConfig(
        sources=(SourceConfig("image_text.jsonl"),),
        shape=RowShape(tokens=512, audio_blocks=0, patches=384),
        rows=4,
        workers=1,
        system=None,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, total_steps=4500),
    dtype="float32",
    remat="none",
    save_every=500,
)
