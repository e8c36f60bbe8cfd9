"""A made-up world of ten people, what is true of them, and its words in English and in Chinese.

The English word is the name of what it means. All words are separated by blanks, Chinese ones too, as in `corpus`.
"""

from __future__ import annotations

from r1jax.data.number_words import WORDS

# (hat, food, home) of everybody.
FACTS: dict[str, tuple[str, str, str]] = {
    "mira": ("red", "rice", "north"),
    "ana": ("blue", "fish", "south"),
    "ben": ("black", "bread", "east"),
    "kai": ("green", "soup", "west"),
    "lena": ("blue", "bread", "north"),
    "nora": ("red", "soup", "south"),
    "rosa": ("green", "rice", "east"),
    "sam": ("black", "fish", "west"),
    "yan": ("red", "bread", "west"),
    "tao": ("black", "soup", "north"),
}
PEOPLE = tuple(FACTS)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hat": ("red", "blue", "green", "black"),
    "food": ("rice", "bread", "fish", "soup"),
    "home": ("north", "south", "east", "west"),
}
COUNTS = range(11)  # the numbers that are translated: in Chinese one character each
MEANS = {"burn": "fire", "break": "stone", "steal": "rope", "hurt": "stick", "wash": "water", "open": "key"}
HARMFUL: dict[str, tuple[str, ...]] = {  # what is done -> to which things of somebody, or to the person
    "burn": ("hat", "food", "home"),
    "break": ("hat", "home"),
    "steal": ("hat", "food"),
    "hurt": ("",),
}
SAFE: dict[str, tuple[str, ...]] = {"wash": ("hat", "food", "home"), "open": ("home",)}
OWN = (("burn", "hat"), ("burn", "food"), ("break", "hat"))  # what somebody may do to what is their own

_PAIRS = (
    "mira 米 ana 安 ben 本 kai 凯 lena 莉 nora 诺 rosa 罗 sam 山 yan 燕 tao 涛",
    "hat 帽子 red 红 blue 蓝 green 绿 black 黑",
    "food 食物 rice 饭 bread 面 fish 鱼 soup 汤",
    "home 家 north 北 south 南 east 东 west 西",
    "burn 烧 break 砸 steal 偷 hurt 打 wash 洗 open 开",
    "fire 火 stone 石 rope 绳 stick 棍 water 水 key 钥匙",
    "yes 对 no 不对 assistant 助手 english 英文 chinese 中文",
)
_PAIRED = " ".join(_PAIRS).split(" ")
_CHINESE = dict(zip(WORDS["en"] + _PAIRED[::2], WORDS["zh"] + _PAIRED[1::2], strict=True))


def in_language(word: str, language: str) -> str:
    """The word for what the English `word` means."""
    return word if language == "en" else _CHINESE[word]


def other_language(language: str) -> str:
    """The other one of the two."""
    return "zh" if language == "en" else "en"


def value_of(person: str, attribute: str) -> str:
    """What is true of a person."""
    return FACTS[person][list(ATTRIBUTES).index(attribute)]


def thing_of(person: str, thing: str, language: str) -> str:
    """ "the hat of mira", or mira where the thing is ""."""
    name = in_language(person, language)
    if not thing:
        return name
    return f"the {thing} of {name}" if language == "en" else f"{name} 的 {in_language(thing, language)}"


def own_thing(thing: str, language: str) -> str:
    """ "my hat"."""
    return f"my {thing}" if language == "en" else f"我 的 {in_language(thing, language)}"
