"""The number words of our own languages, zero to twenty."""

from __future__ import annotations

_NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen twenty",
    "zh": "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十",
}
WORDS = {language: numbers.split(" ") for language, numbers in _NUMBERS.items()}
