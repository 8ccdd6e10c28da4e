"""A language model to begin with: the words of the data, and to say again what was written.

    omni-jax train --config examples/omni_tiny/configs/language.py        (in the folder of the data)

Paper: section 3 begins with a Qwen2.5; at this size there is none, so one is trained before it is frozen.
Ours: everything. What it learns to repeat from text it will repeat from sound: pretrain1 shows it embeddings only.
With words in no order among what is repeated (training.py) it cannot guess, and learns to look: of sentences alone it
wrote "Put the orange picture" for "Put the orange cup". And what it is to be the same: of written digits it learns that
in some thousand examples, of pictures and sounds it learnt in as many what they are, and to say "no".
"""

from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="start",
    output="runs/language",
    data=DataConfig(
        sources=(
            SourceConfig("text.jsonl", weight=0.1),
            SourceConfig("read_aloud.jsonl", weight=0.5),
            SourceConfig("same_words.jsonl", weight=0.4),
        ),
        shape=RowShape(tokens=512),
        rows=4,
        workers=1,
    ),
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=20, total_steps=910),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=100,
)
