"""How good speech codes are: how many of them are in use, and how near the sound made of them is to the original."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.fft import dct

_CEPSTRA = 13  # of 80 bins: the shape of the spectrum, without its harmonics


class CodeCounts:
    """How often each code occurs, added up over recordings."""

    def __init__(self, num_codes: int):
        self.counts = np.zeros(num_codes, np.int64)

    def add(self, codes: Sequence[int] | np.ndarray) -> None:
        """Codes 0 … num_codes - 1."""
        self.counts += np.bincount(np.asarray(codes, np.int64), minlength=len(self.counts))

    def report(self) -> dict[str, float]:
        """codes in all, distinct ones, num_codes, their usage (share of all codes that occur), and perplexity: how
        many equally frequent codes would say as much; 0 where there is none."""
        total, distinct = int(self.counts.sum()), int(np.count_nonzero(self.counts))
        share = self.counts[self.counts > 0] / max(total, 1)
        perplexity = float(np.exp(-np.sum(share * np.log(share)))) if total else 0.0
        size = len(self.counts)
        out = {"codes": total, "distinct": distinct, "num_codes": size}
        return out | {"usage": distinct / size, "perplexity": perplexity}


def mel_distance(made: Float[np.ndarray, "T M"], real: Float[np.ndarray, "T M"]) -> float:
    """Mean absolute difference of two natural-log mels, over the frames that both have."""
    frames = min(len(made), len(real))
    return float(np.mean(np.abs(made[:frames] - real[:frames])))


def cepstral_distance(made: Float[np.ndarray, "T M"], real: Float[np.ndarray, "T M"]) -> float:
    """Mel-cepstral distortion in dB (Kubichek, 1993) of two natural-log mels of magnitudes, frame by frame.

    The root mean square difference of the log spectra as 13 cosines see it; the zeroth, loudness, does not count.
    Frames are compared as they lie: codes keep time, so nothing has to be aligned.
    """
    frames, bins = min(len(made), len(real)), real.shape[1]
    difference = (np.asarray(made[:frames], np.float64) - real[:frames]) * (10 / np.log(10))
    cepstra = dct(difference, type=2, axis=1)[:, 1 : _CEPSTRA + 1] / bins
    return float(np.mean(np.sqrt(2 * np.sum(np.square(cepstra), axis=1))))


def same_codes(made: np.ndarray, given: np.ndarray) -> tuple[int, int]:
    """How many codes are equal, place by place, and how many were compared; one may be a code longer than the other."""
    count = min(len(made), len(given))
    return int(np.sum(made[:count] == given[:count])), count
