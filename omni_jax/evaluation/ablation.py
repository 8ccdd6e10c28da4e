"""A sense taken from a prepared request: what still succeeds without it did not need it.

The layout stays as it is, so that nothing but the sense changes.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from input_pipeline.request import Request
from omni_jax.evaluation.task import Ablation

_SILENCE = np.float32((-10 + 4) / 4)  # log10(1e-10), the quietest, as `input_pipeline/mel.py` scales it


def without(request: Request, ablation: Ablation, seed: int = 0) -> Request:
    """The request without a sense.

    no_audio: every sound is silence of the same length. no_vision: every picture and frame is of the mean colour.
    shuffled_time: moments of the media are permuted, those of pictures and of sound each by themselves; tokens stay in
    their order, and each moment keeps together.
    """
    return _ABLATIONS[ablation](request, seed)


def _no_audio(request: Request, seed: int) -> Request:
    return replace(request, audio=tuple(np.full_like(mel, _SILENCE) for mel in request.audio))


def _no_vision(request: Request, seed: int) -> Request:
    grey = (replace(patches, pixels=np.zeros_like(patches.pixels)) for patches in request.vision)
    return replace(request, vision=tuple(grey))


def _shuffled_time(request: Request, seed: int) -> Request:
    positions, rng = request.position_ids.copy(), np.random.default_rng(seed)
    # sound has its time in all three rows, pictures in the first; the others are their places
    for rows, where in ((slice(0, 1), request.vision_row >= 0), (slice(0, 3), request.audio_row >= 0)):
        times = np.unique(positions[0, where])
        moved = rng.permutation(times)
        positions[rows, where] = moved[np.searchsorted(times, positions[0, where])]
    return replace(request, position_ids=positions)


_ABLATIONS: dict[Ablation, Callable[[Request, int], Request]] = {
    "no_audio": _no_audio,
    "no_vision": _no_vision,
    "shuffled_time": _shuffled_time,
}
