"""Shares of languages that need lingua, in texts whose shares are known because they were put together that way."""

from __future__ import annotations

import pytest

from r1jax.data.templates import render_completion
from r1jax.rewards.languages.language import check_language, language_reward, language_share, word_counts
from r1jax.rewards.languages.other_languages import SCRIPTS
from r1jax.types import Example

pytest.importorskip("lingua")

TEXTS = {
    "ar": "أولا نجمع العددين معا. ثم نتحقق مما إذا كان المجموع صحيحا. إذن الجواب هو اثنا عشر.",
    "de": "Zuerst addieren wir die beiden Zahlen. Moment, hier war ein Fehler. Also ist die Antwort zwölf.",
    "en": "First we add both numbers. Wait, I made a mistake in the second step. So the answer is twelve.",
    "es": "Primero sumamos los dos números. Espera, me equivoqué en el segundo paso. Así que la respuesta es doce.",
    "fr": "D'abord, nous additionnons les deux nombres. Attends, je me suis trompé. Donc la réponse est douze.",
    "hi": "पहले हम दोनों संख्याओं को जोड़ते हैं। फिर हम जाँचते हैं कि योग सही है या नहीं।",
    "id": "Pertama kita jumlahkan kedua bilangan itu. Lalu kita periksa apakah hasilnya benar.",
    "it": "Prima sommiamo i due numeri. Aspetta, ho sbagliato nel secondo passaggio. Quindi la risposta è dodici.",
    "ja": "まず二つの数を足します。次に合計が正しいか確かめます。したがって答えは十二です。",
    "ko": "먼저 두 수를 더합니다. 그다음 합이 맞는지 확인합니다. 따라서 답은 열둘입니다.",
    "nl": "Eerst tellen we de twee getallen op. Dan controleren we of het totaal klopt. Dus het antwoord is twaalf.",
    "pl": "Najpierw dodajemy obie liczby. Potem sprawdzamy, czy suma jest poprawna. Zatem odpowiedź to dwanaście.",
    "pt": "Primeiro somamos os dois números. Espera, errei no segundo passo. Portanto a resposta é doze.",
    "ru": "Сначала сложим оба числа. Подожди, во втором шаге ошибка. Значит, ответ равен двенадцати.",
    "tr": "Önce iki sayıyı toplarız. Sonra toplamın doğru olup olmadığını kontrol ederiz. Öyleyse cevap on iki.",
    "uk": "Спочатку додамо обидва числа. Потім перевіримо, чи правильна сума. Отже, відповідь дорівнює дванадцяти.",
    "vi": "Trước hết ta cộng hai số với nhau. Sau đó kiểm tra xem tổng có đúng không. Vậy đáp án là mười hai.",
}
BY_PASSAGE = sorted(set(TEXTS) - {"en"})


def test_every_language_has_a_text() -> None:
    assert {*TEXTS, "zh"} == set(SCRIPTS)
    for language in SCRIPTS:
        check_language(language)


@pytest.mark.parametrize("language", BY_PASSAGE)
def test_a_text_is_in_its_own_language_and_in_no_other(language: str) -> None:
    text = TEXTS[language] + " $x + y$ `print(value)` 7 + 5 = 12"
    assert language_share(text, language) == 1.0
    assert {language_share(text, other) for other in BY_PASSAGE if other != language} == {0.0}


@pytest.mark.parametrize(("language", "other"), [("fr", "en"), ("de", "fr"), ("ru", "uk"), ("ja", "en"), ("es", "pt")])
def test_sentences_of_two_languages_count_for_their_own(language: str, other: str) -> None:
    own, foreign = (sum(word_counts(TEXTS[code]).values()) for code in (language, other))
    assert language_share(f"{TEXTS[language]} {TEXTS[other]}", language) == own / (own + foreign)


def test_words_of_another_script_never_count() -> None:
    assert language_share("Nous additionnons 先算 les deux nombres.", "fr") == 5 / 7
    assert language_share("所以答案是十二。", "ja") == 0.0  # Chinese, though Japanese has these characters


def test_short_sentences_go_with_the_next() -> None:
    assert language_share("Bon. Hmm. Attends. Je me suis trompé dans la deuxième étape. Non.", "fr") == 1.0


def test_french_thoughts_pass_for_english_by_script() -> None:
    assert language_share(TEXTS["fr"], "en") == 1.0


def test_the_reward_is_the_share_of_the_thought() -> None:
    example = Example(id="1", question="q", answer="9", task="t", language="fr")
    assert language_reward(render_completion(TEXTS["fr"], "nine of course"), example).value == 1.0
    assert language_reward(render_completion(TEXTS["en"], "neuf"), example).value == 0.0
    assert language_reward(render_completion("7 + 5", "12"), example).reason == "no words"
