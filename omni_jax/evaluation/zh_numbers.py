"""Figures in Chinese text as they are read aloud, by the rules of SpeechIO's cn_tn, which published error rates use.

1999年2月20日 -> 一九九九年二月二十日        80.03% -> 百分之八十点零三       200块 -> 两百块
13915559999   -> 一三九一五五五九九九九      3/4    -> 四分之三               115个 -> 一百一十五个
"""

import re
import string

_DIGITS = "零一二三四五六七八九"
_UNITS = ("", "十", "百", "千")
_GROUPS = ("", "万", "亿", "兆")
_CURRENCY = "(?:人民币|日元|美元|欧元|英镑|港元|台币|泰铢|卢布|美金|元|块|毛|角|分)"
_QUANTIFIERS = (
    "[个只头条张把件本位名座间家套台辆艘架支枝根粒颗滴块片朵棵株场次回遍趟顿阵声句段篇首幅册卷双对副打群批排串杯瓶碗"
    "盘盒箱袋包斤克吨两升米寸尺里亩岁天年月周日时秒分钟度倍层级万亿千百十]"
)
_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏·〈〉-"
)
_TO_SPACE = str.maketrans({mark: " " for mark in _PUNCTUATION + string.punctuation})

_YEAR = r"(?:[089]\d|(?:19|20)\d{2})"
_DATE = re.compile(
    rf"(?<!\d)(?:({_YEAR})年(?:(\d{{1,2}})月(?:(\d{{1,2}})([日号]))?)?|(\d{{1,2}})月(?:(\d{{1,2}})([日号]))?)"
)
_MONEY = re.compile(rf"(?<!\d)(\d+(?:\.\d+)?)([多余几]?{_CURRENCY})(?:(\d)({_CURRENCY}?))?(?!\d)")
_MOBILE = re.compile(r"(?<![\d.])(?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8}(?!\d)")
_PHONE = re.compile(r"(?<![\d.])(?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7}(?![\d.])")
_FRACTION = re.compile(r"(\d+)/(\d+)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_COUNTED = re.compile(rf"(\d+(?:\.\d+)?)(?=[多余几]?{_QUANTIFIERS})")
_LONG = re.compile(r"\d{4,32}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def spoken_zh(text: str) -> str:
    """Chinese text with its figures read out and its punctuation as spaces."""
    text = _DATE.sub(_date, text)
    text = _MONEY.sub(_money, text)
    text = _MOBILE.sub(lambda m: digits(m[0]), text)
    text = _PHONE.sub(lambda m: digits(m[0]), text)
    text = _FRACTION.sub(lambda m: f"{number(m[2])}分之{number(m[1])}", text)
    text = _PERCENT.sub(lambda m: f"百分之{number(m[1])}", text.replace("％", "%"))
    text = _COUNTED.sub(lambda m: number(m[1]), text)
    text = _LONG.sub(lambda m: digits(m[0]), text)
    text = _NUMBER.sub(lambda m: number(m[0]), text)
    text = re.sub(r"(?<=[a-zA-Z])二(?=[a-zA-Z])", "2", text)  # O2O, B2C
    return text.translate(_TO_SPACE)


def digits(text: str) -> str:
    """Digit by digit: 2023 -> 二零二三; anything else is left out."""
    return "".join(_DIGITS[int(c)] for c in text if c.isdecimal())


def number(text: str) -> str:
    """As a quantity: 102 -> 一百零二, 12 -> 十二, 200 -> 两百, 3.05 -> 三点零五."""
    whole, _, decimals = text.partition(".")
    words = _whole(whole)
    return f"{words}点{digits(decimals)}" if decimals else words


def _whole(text: str) -> str:
    text = text.lstrip("0")
    if not text:
        return _DIGITS[0]
    if len(text) > 4 * len(_GROUPS):
        return digits(text)
    groups = [text[max(end - 4, 0) : end] for end in range(len(text), 0, -4)]
    words = ""
    for place in range(len(groups) - 1, -1, -1):
        group = groups[place]
        if not int(group):
            continue
        if words and (group[0] == "0" or (place + 1 < len(groups) and not int(groups[place + 1]))):
            words += _DIGITS[0]
        words += _group(group.lstrip("0")) + _GROUPS[place]
    # two of anything but tens and ones, if nothing but a larger unit stands before
    words = re.sub("(?<![零一二三四五六七八九十])二(?=[百千万亿兆])", "两", words)
    return words[1:] if words.startswith("一十") else words


def _group(text: str) -> str:
    """Up to four digits: 2020 -> 二千零二十"""
    words, gap = "", False
    for place, c in zip(range(len(text) - 1, -1, -1), text):
        if c == "0":
            gap = True
            continue
        if gap and words:
            words += _DIGITS[0]
        gap = False
        words += _DIGITS[int(c)] + _UNITS[place]
    return words


def _date(match: re.Match) -> str:
    year, month, day, mark, month2, day2, mark2 = match.groups()
    month, day, mark = month or month2, day or day2, mark or mark2
    said = f"{digits(year)}年" if year else ""
    said += f"{number(month)}月" if month else ""
    return said + (f"{number(day)}{mark}" if day else "")


def _money(match: re.Match) -> str:
    amount, unit, rest, rest_unit = match.groups()
    return number(amount) + unit + (number(rest) + (rest_unit or "") if rest else "")
