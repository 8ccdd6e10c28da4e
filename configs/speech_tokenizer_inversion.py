"""Speech tokenizer, route A: recognise the codes by which a published decoder made the sound.

    omni-jax train --config configs/speech_tokenizer_inversion.py

Paper: section 2.4 uses qwen-tts-tokenizer, whose encoder is not published; this is our way to its codes.
Chips: v5p-8 takes 6.7 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload speech_tokenizer_inversion` tells it for other chips.
Ours: everything. Pairs of codes and sound come from the Talker and Token2Wav of the same checkpoint.
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import SpeechTokenizerStage

config = RunConfig(
    stage=SpeechTokenizerStage(route="inversion"),
    checkpoint="checkpoints/qwen2.5-omni-7b",
    output="runs/speech_tokenizer_inversion",
    data=DataConfig(sources=(SourceConfig("data/made_speech.jsonl"),), clip_seconds=20, augment=True, rows=64),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, total_steps=100_000),
)
