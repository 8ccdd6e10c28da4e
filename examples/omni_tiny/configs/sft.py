"""Instruction tuning of the Thinker on conversations: pictures, films, sound, one to three turns.

    omni-jax train --config examples/omni_tiny/configs/sft.py        (in the folder of the data)

As configs/sft.py, but the encoders go on learning: they have seen far too little to stay as they are.
Ours: sizes, optimiser, rates, steps. Transcripts stay in the mixture, for the Thinker's hearing ranks speech for
talker_dpo; and captions, for they say all that can be asked about a picture or film in one answer.
"""

from examples.omni_tiny.packages import FSDD_SPEAKERS
from input_pipeline.training_batch import RowShape
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import ThinkerStage

config = RunConfig(
    stage=ThinkerStage(),
    checkpoint="runs/listening/model",
    output="runs/sft",
    data=DataConfig(
        sources=(
            SourceConfig("sft.jsonl", weight=0.17),
            SourceConfig("sft_pictures.jsonl", weight=0.04),
            SourceConfig("sft_films.jsonl", weight=0.13),
            SourceConfig("sft_same.jsonl", weight=0.1),
            SourceConfig("same_words.jsonl", weight=0.03),
            *(SourceConfig(f"sft_{name}.jsonl", weight=0.03) for name in FSDD_SPEAKERS),
            SourceConfig("read_aloud.jsonl", weight=0.08),
            SourceConfig("image_text.jsonl", weight=0.09),
            SourceConfig("audio_text.jsonl", weight=0.16),
            *(SourceConfig(f"audio_text_{name}.jsonl", weight=0.01) for name in FSDD_SPEAKERS),
            SourceConfig("video_audio.jsonl", weight=0.04),
        ),
        shape=RowShape(tokens=512, audio_blocks=8, patches=128),
        rows=4,
        workers=1,
    ),
    rates={"^(audio_encoder|vision_encoder)/": 0.5},
    optimizer=OptimizerConfig(rule="muon", learning_rate=1.5e-3, warmup_steps=30, total_steps=4140),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=200,
    prompts=("Please say: The red dog has four apples.", "Who are you?"),
    sample_every=1380,
)
