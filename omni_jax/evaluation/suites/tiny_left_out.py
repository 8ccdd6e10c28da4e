"""Omni-tiny on all recordings of a person whom training left out: --task hears_theo, of a checkpoint without theo."""

from omni_jax.evaluation import extract
from omni_jax.evaluation.suites.tiny import SPEAKERS, hears
from omni_jax.evaluation.task import at_most

TASKS = tuple(
    hears(f"hears_{name}", at_most(0.20), file="hears_left_out", where=extract.key_is("speaker", name))
    for name in SPEAKERS
)
