"""Table 4, the questions of text benchmarks, spoken.

    {"audio": "gsm8k_1.wav", "answer": "72"}                                gsm8k, math23k, math401
    {"audio": "mmlu_1.wav", "options": ["...", "..."], "answer": "B"}       mmlu, ceval; options are spoken too

The paper's recordings are its own, so figures on others are approximate; it left out what cannot be spoken.
"""

from omni_jax.evaluation.suites.text import by_number
from omni_jax.evaluation.suites.voicebench import spoken_choice

TASKS = (
    *(spoken_choice(name) for name in ("spoken_mmlu", "spoken_ceval")),
    *(by_number(name, prompt="") for name in ("spoken_gsm8k", "spoken_math23k", "spoken_math401")),
)
