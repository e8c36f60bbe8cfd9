"""Units of measurement: what stands behind a number, as a factor and powers of base dimensions."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

_BASE: dict[str, dict[str, Fraction]] = {
    "length": {
        "mm millimeter millimetre 毫米": Fraction(1, 1000),
        "cm centimeter centimetre 厘米": Fraction(1, 100),
        "dm decimeter decimetre 分米": Fraction(1, 10),
        "m meter metre 米": Fraction(1),
        "km kilometer kilometre 千米 公里": Fraction(1000),
        "inch inches in": Fraction(254, 10_000),
        "ft foot feet": Fraction(3048, 10_000),
        "yd yard": Fraction(9144, 10_000),
        "mi mile": Fraction(1_609_344, 1000),
    },
    "mass": {
        "mg milligram 毫克": Fraction(1, 1000),
        "g gram 克": Fraction(1),
        "kg kilogram 千克 公斤": Fraction(1000),
        "tonne 吨": Fraction(1_000_000),
    },
    "time": {
        "ms millisecond 毫秒": Fraction(1, 1000),
        "s sec second 秒": Fraction(1),
        "min minute 分钟": Fraction(60),
        "h hr hour 小时": Fraction(3600),
        "day 天": Fraction(86_400),
        "week 周": Fraction(604_800),
    },
    "money in dollars": {"$ dollar usd 美元": Fraction(1), "cent ¢": Fraction(1, 100)},
    "money in euros": {"€ euro 欧元": Fraction(1)},
    "money in pounds": {"£": Fraction(1)},
    "money in yuan": {"¥ yuan 元": Fraction(1)},
    "angle": {"° degree deg 度": Fraction(1)},
    "temperature in degrees Celsius": {"celsius ℃": Fraction(1)},
    "temperature in degrees Fahrenheit": {"fahrenheit ℉": Fraction(1)},
    "charge": {"C coulomb": Fraction(1)},
    "current": {"A amp ampere": Fraction(1), "mA": Fraction(1, 1000)},
}
_DERIVED: dict[str, tuple[Fraction, dict[str, int]]] = {
    "mL ml milliliter millilitre 毫升": (Fraction(1, 1_000_000), {"length": 3}),
    "L liter litre 升": (Fraction(1, 1000), {"length": 3}),
    "平方厘米": (Fraction(1, 10_000), {"length": 2}),
    "平方米": (Fraction(1), {"length": 2}),
    "立方厘米": (Fraction(1, 1_000_000), {"length": 3}),
    "立方米": (Fraction(1), {"length": 3}),
    "mph": (Fraction(1_609_344, 3_600_000), {"length": 1, "time": -1}),
    "N newton 牛": (Fraction(1000), {"mass": 1, "length": 1, "time": -2}),
    "J joule 焦": (Fraction(1000), {"mass": 1, "length": 2, "time": -2}),
    "W watt 瓦": (Fraction(1000), {"mass": 1, "length": 2, "time": -3}),
    "Pa pascal": (Fraction(1000), {"mass": 1, "length": -1, "time": -2}),
    "Hz hertz": (Fraction(1), {"time": -1}),
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """A factor to base units and the power of each dimension. `name` is as it was written."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...]  # sorted, no zeros
    name: str


def _table() -> dict[str, tuple[Fraction, dict[str, int]]]:
    table = {}
    for dimension, units in _BASE.items():
        for names, factor in units.items():
            for name in names.split():
                table[name] = (factor, {dimension: 1})
    for names, derived in _DERIVED.items():
        for name in names.split():
            table[name] = derived
    return table


_TABLE = _table()
_TEMPERATURE = re.compile(r"(?:°|\bdegrees?\b|\bdeg\b)\s*(c|celsius|f|fahrenheit)", re.IGNORECASE)
_FACTOR = re.compile(r"\s*([*/]?)\s*([^\s0-9*/^{}().,-]+)\s*(?:\^\s*(?:\{\s*(-?[0-9])\s*\}|(-?[0-9])))?")


def _look_up(name: str) -> tuple[Fraction, dict[str, int]] | None:
    for candidate in (name, name.lower() if len(name) > 3 else name):
        for singular in (candidate, candidate.removesuffix("s") if len(candidate) > 3 else candidate):
            if singular in _TABLE:
                return _TABLE[singular]
    return None


def is_unit(word: str) -> bool:
    """Whether a single word is a unit."""
    return _look_up(word) is not None


def parse_unit(text: str) -> Unit | None:
    """A product of powers of units, such as "cm^2", "km/h" or "square meters"; None for anything else."""
    text = " ".join(text.split())
    if temperature := _TEMPERATURE.fullmatch(text):
        text = "celsius" if temperature[1][0] in "cC" else "fahrenheit"
    power_of_next = 1
    for word, power in (("square ", 2), ("cubic ", 3), ("sq ", 2)):
        if text.startswith(word):
            text, power_of_next = text.removeprefix(word), power
    text = re.sub(r"\s+per\s+", "/", text)
    factor, powers, position = Fraction(1), dict[str, int](), 0
    while position < len(text):
        found = _FACTOR.match(text, position)
        known = _look_up(found[2]) if found else None
        if found is None or known is None or (position == 0 and found[1]):
            return None
        power = int(found[3] or found[4] or 1) * power_of_next * (-1 if found[1] == "/" else 1)
        power_of_next = 1
        factor *= known[0] ** power
        for dimension, own in known[1].items():
            powers[dimension] = powers.get(dimension, 0) + own * power
        position = found.end()
    if not powers:
        return None
    return Unit(factor, tuple(sorted((name, power) for name, power in powers.items() if power)), text)
