"""What decides is found in the words of an answer, or nothing is."""

import pytest

from omni_jax.evaluation import extract
from omni_jax.evaluation.normal import english_digits

LINE = {"options": ["a red cat", "a blue cat", "a dog", "none"]}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", None),
        ("B. a blue cat", "B"),
        ("The answer is (C).", "C"),
        ("The correct answer is: **D**", "D"),
        ("Answer: A", "A"),
        ("I think that A is wrong, so the answer is B", "B"),
        ("A cat sits there, so I would choose option C.", "C"),
        ("Is the answer A? No, the answer is B.", "B"),
        ("A thing like D", "D"),  # an article is no option
        ("答案是B", "B"),
        ("It is a dog.", "C"),
        ("It is a cat.", None),
        ("a red cat or a dog", None),
        ("F", None),
        ("", None),
    ],
)
def test_option_letter(text, letter):
    assert extract.option_letter(text, LINE) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("... the answer is (J)", "J"),
        ("**Answer: C**", "C"),
        ("A or B, but then D.", "D"),
        ("no", None),
    ],
)
def test_the_three_patterns_of_mmlu_pro(text, letter):
    assert extract.mmlu_pro_letter(text, {}) == letter


@pytest.mark.parametrize(("answer", "letter"), [("B", "B"), ("(c)", "C"), (0, "A"), ("a dog", "C")])
def test_the_right_option_by_letter_number_or_text(answer, letter):
    assert extract.option_of_reference()(LINE | {"answer": answer}) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 3 + 4 = 1,207.50.", 1207.5), ("12 apples #### -3", -3), ("$18.", 18), ("none", None), (".5", 0.5)],
)
def test_last_number(text, number):
    assert extract.last_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]\n```',
        "<|box_start|>(10,20),(30,40)<|box_end|>",
        "The cat is at [10, 20, 30, 40].",
    ],
)
def test_boxes_are_shares_of_the_picture_that_was_seen(text):
    assert extract.box(text, {"seen": (100, 200)}) == pytest.approx((0.1, 0.1, 0.3, 0.2))


def test_no_box():
    assert extract.box("I see 10, 20 cats", {"seen": (100, 200)}) is None
    assert extract.point("<points>(10, 20)</points>", {"seen": (100, 200)}) == pytest.approx((0.1, 0.1))


def test_only_words_of_the_kind_that_is_asked_for_decide():
    find = extract.words_of((("one", "two", "four", "seven"), ("yes", "no"), ("red", "blue")), english_digits)
    assert find("The number is four seven.", {"answer": "four seven"}) == "four seven"
    assert find("The number is 472.", {"answer": "four seven"}) == "four seven two"
    assert find("No, I see four and I hear seven.", {"answer": "no"}) == "no"
    assert find("I see four and I hear four, so yes.", {"answer": "yes"}) == "yes"
    assert find("They are red and blue.", {"answer": "red"}) == "red blue"
    assert find("Hello there", {"answer": "hello"}) == "hello there"  # of no class


def test_labels_and_short_answers():
    assert extract.label()("Neutral.", {}) == "neutral"
    assert extract.label(("cough", "sigh"))("That was a cough.", {}) == "cough"
    assert extract.short("The answer is: 12 %.") == "12 %"
