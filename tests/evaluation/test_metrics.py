"""Metrics on answers whose score is computed by hand."""

import numpy as np
import pytest
from sacrebleu import corpus_bleu
from sacrebleu.metrics import BLEU

from omni_jax.errors import DataError
from omni_jax.evaluation import metrics
from omni_jax.evaluation.metrics_text import bleu, digits_error_rate, error_rate, utterance_rate


def figure(metric, pairs):
    return metric.total(np.sum([metric.score(found, expected) for found, expected in pairs], axis=0))


def test_word_errors_of_a_corpus_and_of_utterances():
    pairs = [("a b c d", "a b c d"), ("x", "a")]
    assert figure(error_rate("en"), pairs) == pytest.approx(1 / 5)
    assert figure(utterance_rate("en"), pairs) == pytest.approx(1 / 2)
    # one substitution, one deletion, one insertion: four words
    assert figure(error_rate("en"), [("the cat sat down here", "the dog sat up down")]) == pytest.approx(3 / 5)


def test_character_errors_of_chinese():
    assert figure(error_rate("zh"), [("今天25度。", "今天二十六度")]) == pytest.approx(1 / 6)
    assert figure(utterance_rate("zh"), [("說話", "说话"), ("你好", "你们好")]) == pytest.approx(1 / 6)


def test_a_wrong_digit_is_one_word():
    assert figure(digits_error_rate(), [("four seven two", "four seven one")]) == pytest.approx(1 / 3)
    assert figure(error_rate("en"), [("four seven two", "four seven one")]) == 1


def test_a_reference_without_words_is_refused():
    with pytest.raises(DataError, match="has no words"):
        error_rate("en").score("a", "...")


@pytest.mark.parametrize("tokenize", ["13a", "zh"])
def test_bleu_from_sums_is_that_of_the_corpus(tokenize):
    texts = ["the cat sat on the mat today", "a dog", "他今天很高兴，我也是", "x"]
    references = ["the cat sat on the mat", "a dog ran off", "他今天很高兴，我不是", "it was a long way home"]
    whole = BLEU(tokenize=tokenize).corpus_score(texts, [references]).score
    assert 0 < whole < 100
    assert figure(bleu(tokenize), list(zip(texts, references))) == pytest.approx(whole)


@pytest.mark.parametrize("text", ["he is here now", "he sat", "", "nothing alike"])
def test_bleu_without_a_match_of_some_length_is_smoothed_as_that_of_the_corpus(text):
    assert figure(bleu("13a"), [(text, "he is home now")]) == pytest.approx(
        corpus_bleu([text], [["he is home now"]]).score
    )
    assert figure(bleu("13a"), [("he is here now", "he is home now")]) == pytest.approx(35.36, abs=0.01)


def test_bleu_of_japanese():
    pytest.importorskip("MeCab")
    assert figure(bleu("ja-mecab"), [("今日は良い天気です", "今日は良い天気です")]) == pytest.approx(100)


def test_words_of_options():
    metric, options = metrics.option_words(), ["a red cat", "a blue cat", "a dog"]
    for found, right in (
        ("It is a red cat.", 1),
        ("red or blue cat: a mystery", 0),  # a word that only a wrong option has
        ("red", 0),  # not all words
        ("", 0),
    ):
        assert metric.score(found, ("a red cat", options)) == (right, 1)


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [("10.4", "10", 1), ("10.6", "10", 0), ("5%", "0.05", 1), ("Yes", "yes", 1), ("0", "0", 1), ("0.01", "0", 0)],
)
def test_relaxed_accuracy(found, expected, right):
    assert metrics.relaxed_accuracy().score(found, expected) == (right, 1)


def test_anls():
    score = metrics.anls().score
    assert score("ITC  Limited", ["itc limited"]) == (1, 1)
    assert score("ITC Limitet", ["x", "itc limited"])[0] == pytest.approx(10 / 11)
    assert score("ab", ["cb"]) == (0, 1)  # half and more is nothing


def test_vqa_accuracy_counts_other_people():
    score = metrics.vqa_accuracy().score
    people = ["two dogs", "2 dogs.", "The two dogs"] + ["cats"] * 7
    # each of the three who say so has two others beside them, each of the seven has three
    assert score("Two dogs", people)[0] == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert score("cat", people)[0] == 0
    assert metrics.vqa_form("It's  the Two, dogs.") == "its 2 dogs"


def test_boxes():
    assert metrics.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    score = metrics.box_accuracy().score
    assert score((0, 0, 2, 2), (0, 0, 2, 1)) == (1, 1)  # 2 of 4
    assert score((0, 0, 2, 2), (0, 0, 2, 0.9)) == (0, 1)
    assert score(None, (0, 0, 2, 1)) == (0, 1)
    assert metrics.point_accuracy().score((0.5, 0.5), (0, 0, 1, 1)) == (1, 1)


@pytest.mark.parametrize(("found", "right"), [(133.1, 1), (133.2, 0), (122.9, 1), (64, 0), (None, 0)])
def test_tempo(found, right):
    assert metrics.tempo_accuracy().score(found, 128) == (right, 1)


def test_voices():
    voices = {"joe": np.array([1.0, 0]), "emma": np.array([0, 1.0])}
    assert metrics.nearest_voice().score(np.array([2.0, 1]), ("joe", voices)) == (1, 1)
    assert metrics.nearest_voice().score(np.array([2.0, 1]), ("emma", voices)) == (0, 1)
    for voice in voices:  # silence is nobody's
        assert metrics.nearest_voice().score(np.zeros(2), (voice, voices)) == (0, 1)
    assert metrics.similarity().score(np.array([3.0, 4]), np.array([1.0, 0]))[0] == pytest.approx(0.6)


def test_several_references_of_an_exact_match():
    assert metrics.exact_match().score(" Yes ", ["no", "yes"]) == (1, 1)
    assert metrics.exact_match().score("yes.", "yes") == (0, 1)
    with pytest.raises(DataError, match="empty"):
        metrics.exact_match().score("yes", [])
