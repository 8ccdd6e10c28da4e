"""Pauses of speech against punctuation, from the times of words and from the sound alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_jax.errors import ConfigError
from omni_jax.training.pauses import (
    PauseOptions,
    error_of_sound,
    error_of_words,
    marked_words,
    pause_error,
    silences,
)

RATE = 24_000
TEXT = "Well now, this works. Does it?"  # gaps: none, clause, none, sentence, none


def spoken(words, gaps, seconds=0.3):
    """Words one after the other, with these silences between them, as times and as sound."""
    noise, times, pieces, now = np.random.default_rng(0), [], [], 0.0
    for word, gap in zip(words, [*gaps, 0.0], strict=True):
        times.append((word, now, now + seconds))
        now += seconds + gap
        pieces += [noise.normal(0, 0.1, round(seconds * RATE)), noise.normal(0, 1e-4, round(gap * RATE))]
    return times, np.concatenate(pieces).astype(np.float32)


@pytest.mark.parametrize(
    "text, words, kinds",
    [
        (TEXT, "Well now this works Does it", "none clause none sentence none"),
        ('He said: "Stop!" (twice)', "He said Stop twice", "none clause sentence"),
        ("At 10:30 it costs 3,000.50 or well-known, don't ask", None, None),
        ("wait ... here… now", "wait here now", "clause clause"),
        ("one - two – three", "one two three", "clause clause"),
        ("a list\nof lines", "a list of lines", "none sentence none"),
        ("你好，世界。", "你 好 世 界", "none clause none"),
        ("用 JAX 写", "用 JAX 写", "none none"),
        ("", "", ""),
    ],
)
def test_words_and_what_stands_between_them(text, words, kinds):
    found = marked_words(text)
    if words is None:  # marks inside a word ask for nothing
        assert found[0] == ["At", "10:30", "it", "costs", "3,000.50", "or", "well-known", "don't", "ask"]
        assert [kind for kind in found[1] if kind != "none"] == ["clause"]
    else:
        assert found == (words.split(), kinds.split())


GAPS = [
    ([0.0, 0.3, 0.0, 0.5, 0.0], 0),
    ([0.2, 0.3, 0.2, 0.5, 0.2], 0),  # breath between words
    ([0.0, 0.0, 0.0, 0.5, 0.0], 1),  # no pause at the comma
    ([0.0, 0.3, 0.0, 2.0, 0.0], 1),  # the sentence ends for too long
    ([0.6, 0.3, 0.0, 0.5, 0.0], 1),  # a break inside a phrase
    ([0.6, 0.0, 0.6, 0.1, 0.6], 5),
]


@pytest.mark.parametrize("gaps, errors", GAPS)
def test_errors_from_word_times(gaps, errors):
    times, waveform = spoken(marked_words(TEXT)[0], gaps)
    assert error_of_words(TEXT, times) == errors / 5
    assert pause_error(TEXT, waveform, RATE, times) == errors / 5


@pytest.mark.parametrize("gaps, errors", GAPS[:-1])
def test_errors_from_the_sound_alone(gaps, errors):
    _, waveform = spoken(marked_words(TEXT)[0], gaps)
    assert error_of_sound(TEXT, waveform, RATE) == errors / 5
    quiet = np.concatenate([np.zeros(RATE), waveform * 0.01, np.zeros(RATE)])
    assert pause_error(TEXT, quiet, RATE) == errors / 5  # nor does it matter how loud it is, and what is around it


def test_a_silence_elsewhere_is_not_that_of_a_mark():
    text = "Yes, " + " ".join(f"word{i}" for i in range(19))
    words, kinds = marked_words(text)
    late = [0.0] * len(kinds)
    late[-2] = 0.4
    _, waveform = spoken(words, late)
    assert error_of_sound(text, waveform, RATE) == 2 / len(kinds)  # one is missing, one is too much


def test_words_that_were_misheard_leave_out_what_is_not_known():
    times, _ = spoken(["well", "now", "twenty", "five", "works", "does", "it"], [0.0, 0.3, 0.0, 0.0, 0.9, 0.0])
    assert error_of_words("Well now, 25 works. Does it?", times) == 0  # 25 was two words
    times, _ = spoken(["well", "this", "works", "does", "it"], [5.0, 0.0, 0.9, 0.0])
    assert error_of_words(TEXT, times) == 0  # both gaps beside "now" are left out
    added = [("well", 0.0, 0.3), ("er", 0.4, 0.6), ("now", 0.7, 1.0)]
    assert error_of_words("Well now", added) == 0  # a word in between is no silence
    assert error_of_words("Well, now", added) == 0


def test_a_recogniser_of_chinese_may_tell_words():
    heard = [("你好", 0.0, 0.4), ("世界", 0.7, 1.1)]
    assert error_of_words("你好，世界。", heard) == 0
    assert error_of_words("你好世界。", [("你好", 0.0, 0.4), ("世界", 0.9, 1.1)]) == 1 / 3


def test_corner_cases():
    assert pause_error("Hello.", np.zeros(0, np.float32), RATE) == 0  # no gap
    assert pause_error("Hello there.", np.zeros(RATE, np.float32), RATE) == 1
    assert pause_error("Hello there.", np.ones(3, np.float32), RATE, []) == 1
    assert error_of_words("Hello there.", [("quite", 0, 1), ("another", 1, 2), ("thing", 2, 3)]) == 1
    assert [len(part) for part in silences(np.zeros(0), RATE)[:2]] == [0, 0]
    with pytest.raises(ConfigError, match="clause = "):
        PauseOptions(clause=(0.5, 0.5))


def test_a_click_does_not_cut_a_silence_in_two():
    _, waveform = spoken(["a", "b"], [1.0])
    place = round(0.8 * RATE)
    waveform[place : place + 100] = 0.5
    where, lengths, total = silences(waveform, RATE)
    np.testing.assert_allclose(lengths, [1.0], atol=0.011)
    np.testing.assert_allclose(where, [0.5], atol=0.02)
    assert total == pytest.approx(0.6, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 2), min_size=1, max_size=12), st.text("ab ,.!", max_size=40))
def test_an_error_is_a_share(gaps, text):
    words = [f"w{i}" for i in range(len(gaps) + 1)]
    times, waveform = spoken(words, gaps, seconds=0.05)
    assert 0 <= error_of_words(text, times) <= 1
    assert 0 <= error_of_sound(text, waveform, RATE) <= 1
