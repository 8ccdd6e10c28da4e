"""Texts in the form in which error rates compare them."""

import pytest

from omni_jax.evaluation.normal import asr_words, english_digits, seed_words, simplified
from omni_jax.evaluation.zh_numbers import number, spoken_zh


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("Mr. Smith's 25, <|en|> okay!", "en", "mister smith is 25 okay"),
        ("Colour — twenty five", "en", "color 25"),  # both of Whisper's normalisers
        ("L'été, c'est fini !", "fr", "l été c est fini"),
        ("共 25 个，OK", "zh", "共 二 十 五 个 o k"),
        ("你哋講，", "yue", "你 哋 讲"),
    ],
)
def test_words_of_transcripts(text, language, words):
    assert asr_words(text, language) == words.split()


def test_digits_are_words_of_their_own():
    assert asr_words("four seven", "en") == ["47"]
    assert english_digits("The number is four seven.") == english_digits("the number is 47")
    assert english_digits("It is 47.") == ["it", "is", "four", "seven"]


@pytest.mark.parametrize(
    ("digits", "read"),
    [
        ("0", "零"), ("2", "二"), ("10", "十"), ("12", "十二"), ("20", "二十"), ("102", "一百零二"),
        ("110", "一百一十"), ("200", "两百"), ("2200", "两千两百"), ("12000", "一万两千"), ("120000", "十二万"),
        ("10010", "一万零一十"),
        ("1000001", "一百万零一"), ("120000000", "一亿两千万"), ("3.05", "三点零五"), ("0.5", "零点五"),
    ],
)  # fmt: skip
def test_chinese_numbers(digits, read):
    assert number(digits) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1999年2月20日或09年3月15号", "一九九九年二月二十日或零九年三月十五号"),
        ("有62％的概率", "有百分之六十二的概率"),
        ("32477/76391", "七万六千三百九十一分之三万两千四百七十七"),
        ("打13915559999", "打一三九一五五五九九九九"),
        ("固话0595-23865596", "固话零五九五二三八六五五九六"),
        ("12块5", "十二块五"),
        ("2938个", "两千九百三十八个"),
        ("编号31520181154418", "编号三一五二零一八一一五四四一八"),
        ("B二C", "B2C"),
    ],
)
def test_chinese_figures_are_read_as_their_kind_is(text, read):
    assert spoken_zh(text) == read


def test_seed_words_keep_the_apostrophe_and_drop_all_other_marks():
    assert seed_words("Don't “stop”, now!", "en") == ["don't", "stop", "now"]
    assert seed_words("你好，世界。", "zh") == list("你好世界")
    assert simplified("說話") == "说话"
