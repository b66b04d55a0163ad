"""Class names become text that can be drawn, whatever the names are."""

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from cifar_mlflow.evaluation.labels import MAX_LENGTH, label, text_style


@pytest.mark.parametrize(
    "name", ["airplane", "größerer Vogel", "$\\frac$ 5_a", "кот", "γάτα", "قطة", "כלב", ""]
)
def test_names_that_can_be_drawn_stay_as_they_are(name: str) -> None:
    assert label(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two\nlines", "two\\nlines"),
        ("a\tb", "a\\tb"),
        ("bell\x07", "bell\\x07"),
        ("K\udce4tzchen", "K\\xe4tzchen"),
        ("\ud83d", "\\ud83d"),
        ("cat\u202e", "cat"),
        ("\ue000", "\\ue000"),
    ],
)
def test_characters_that_are_not_visible_are_escaped_or_left_out(name: str, expected: str) -> None:
    assert label(name) == expected


@pytest.mark.parametrize("name", ["x" * 61, "word " * 50, "🐶" * 255, "\n" * 255])
def test_a_long_name_loses_its_middle(name: str) -> None:
    text = label(name)
    assert len(text) == MAX_LENGTH
    assert "…" in text


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    assert label("x" * 200 + "1") != label("x" * 200 + "2")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("char", ["🐶", "猫", "か", "한", "ไ", "ह", "€", "م"])
def test_a_character_is_drawn_in_an_installed_font_or_replaced(char: str) -> None:
    text = label(char)
    assert text == char or text.isascii()
    figure = Figure()
    figure.text(0, 0, text, **text_style([text]))
    figure.canvas.draw()


def test_a_symbol_without_a_font_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_mlflow.evaluation.labels._family_with", lambda char: char.isascii())
    assert label("🐶 猫") == "[dog face] \\u732b"


def test_formulas_are_not_parsed_and_fonts_exist() -> None:
    style = text_style(["$x$", "é"])
    assert style["parse_math"] is False
    installed = {font.name for font in font_manager.fontManager.ttflist}
    assert set(style["fontfamily"]) <= installed
