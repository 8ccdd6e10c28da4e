"""Judges that a user brings by name."""

import numpy as np
import pytest

from omni_jax.errors import ConfigError
from omni_jax.evaluation.scorers import Heard, Scorers

SOUND = np.ones(2400, np.float32)


def test_functions_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "eval_ears.py").write_text("def hear(waveform, rate):\n    return f'{len(waveform)} {rate}'\n")
    monkeypatch.chdir(tmp_path)
    scorers = Scorers.load({"recognizer": "eval_ears:hear", "mos_scorer": None})
    assert scorers.hear(SOUND, 24000) == Heard("2400 24000")
    assert "recognizer" in scorers and None in scorers and "mos_scorer" not in scorers
    assert scorers.hear(SOUND[:0], 24000).text == ""


@pytest.mark.parametrize("name", ["nowhere:x", "math:nothing", "math", "math:pi"])
def test_what_cannot_be_imported(name):
    with pytest.raises(ConfigError, match="--speaker-scorer"):
        Scorers.load({"speaker_scorer": name})


@pytest.mark.parametrize(
    ("name", "call", "given"),
    [
        ("recognizer", "hear", 3),
        ("speaker_scorer", "voice", "x"),
        ("speaker_scorer", "voice", [np.nan]),
        ("mos_scorer", "opinion", None),
    ],
)
def test_unlike_answers_of_a_scorer(name, call, given):
    with pytest.raises(ConfigError, match="expected"):
        getattr(Scorers({name: lambda waveform, rate: given}), call)(SOUND, 24000)


def test_a_trial_asks_each_that_is_wanted():
    heard = []

    def hear(waveform, rate):
        heard.append((waveform.dtype, len(waveform) / rate, np.abs(waveform).max()))
        return ""

    scorers = Scorers({"recognizer": hear, "mos_scorer": lambda *_: 1 / 0})
    scorers.try_out({"recognizer", "speaker_scorer"})  # the second was not given
    ((kind, seconds, peak),) = heard
    assert kind == np.float32 and seconds == 0.5 and 1e-3 < peak < 0.1
    with pytest.raises(ConfigError, match=r"--mos-scorer: failed .* ZeroDivisionError.*\n.*leave the option out"):
        scorers.try_out({"mos_scorer"})


def test_words_with_times_and_failures():
    scorers = Scorers({"recognizer": lambda waveform, rate: [("a", 0, 1), ("b", 1, 2)], "mos_scorer": lambda *_: 1 / 0})
    assert scorers.hear(SOUND, 24000) == Heard("a b", (("a", 0.0, 1.0), ("b", 1.0, 2.0)))
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        scorers.opinion(SOUND, 24000)
