"""Speech tokenizer, route B: 50 codes a second, from which text is recognised and mel restored.

    omni-jax train --config examples/omni_tiny/configs/speech_tokenizer.py        (in the folder of the data)

As configs/speech_tokenizer_scratch.py, from random layers: its lower ones, which have learnt to hear, become those of
the audio encoder afterwards (examples/omni_tiny/join.py), in place of the paper's Whisper.
Ours: sizes, optimiser, rates, steps. Recordings are heard as they are: with other voices and noise (`augment`) AdamW
recognised nothing after 1,200 steps, and what is coded later are clean recordings of four voices. Outputs begin as
their means (examples/omni_tiny/outset.py), or all codes would become one.
"""

from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_config import DataConfig, RunConfig, SourceConfig
from omni_jax.training.run_stages import SpeechTokenizerStage

config = RunConfig(
    stage=SpeechTokenizerStage(route="scratch", size="omni-tiny", mel_weight=2.0, from_audio_encoder=False),
    checkpoint="start",
    output="runs/speech_tokenizer",
    data=DataConfig(
        # the voices' codes are those that Token2Wav learns from, and heart's the Talker: named three times, for files
        # of clips take no weights, they are four fifths
        sources=(SourceConfig("transcribed.jsonl"), *[SourceConfig("voiced.jsonl")] * 3),
        clip_seconds=4,
        rows=16,
        workers=1,
    ),
    held_out=(SourceConfig("held_out_recordings.jsonl"),),
    held_out_batches=4,
    eval_every=400,
    optimizer=OptimizerConfig(rule="muon", learning_rate=2e-3, warmup_steps=50, total_steps=3200, weight_decay=0.01),
    dtype="float32",
    round_products=True,
    remat="none",
    save_every=400,
)
