"""Speech tokenizer, route B: codes of its own, from which text is recognised and mel restored.

    omni-jax train --config configs/speech_tokenizer_scratch.py

Paper: none; the design is that of Qwen3-TTS (arXiv:2601.15621) with finite scalar quantisation.
Chips: v5p-8 takes 7.1 of 95.7 GiB by the compiler's account; never run.
Memory: see docs/performance.md; `omni-jax compile --workload speech_tokenizer_scratch` tells it for other chips.
Ours: everything. Afterwards configs/token2wav.py and configs/vocoder.py make sound of its codes.
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import SpeechTokenizerStage

config = RunConfig(
    stage=SpeechTokenizerStage(route="scratch", mel_weight=1.0),
    checkpoint="checkpoints/qwen2.5-omni-7b",
    output="runs/speech_tokenizer_scratch",
    data=DataConfig(sources=(SourceConfig("data/transcribed.jsonl"),), clip_seconds=20, augment=True, rows=64),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2000, total_steps=200_000),
)
