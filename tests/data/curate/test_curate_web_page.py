# Text in many scripts is what these tests are about.
# ruff: noqa: RUF001

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate.web_page import decode_page, extract_page

PAGES = sorted((Path(__file__).parents[2] / "fixtures" / "text" / "pages").glob("*.html"))
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 8
CHINESE = (
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。" * 8
)
TRADITIONAL = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏。" * 8
JAPANESE = "すべての人間は、生まれながらにして自由であり、尊厳と権利について平等である。" * 8
FRENCH = "Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, je dîne d’exquis rôtis. " * 8
ENCODINGS = [
    (RUSSIAN, "windows-1251"),
    (RUSSIAN, "koi8-r"),
    (CHINESE, "gb2312"),
    (TRADITIONAL, "big5"),
    (JAPANESE, "shift_jis"),
    (JAPANESE, "euc-jp"),
    (FRENCH, "windows-1252"),
]


@pytest.mark.parametrize(("text", "charset"), ENCODINGS)
def test_declared_charset_is_followed(text: str, charset: str):
    assert decode_page(text.encode(charset), charset) == text
    meta = f'<html><head><meta charset="{charset}"></head><body>'
    assert decode_page((meta + text).encode(charset)) == meta + text


@pytest.mark.parametrize(("text", "charset"), ENCODINGS)
def test_undeclared_charset_is_recognised(text: str, charset: str):
    assert decode_page(text.encode(charset), html=False) == text


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_is_read_whatever_the_server_declares(codec: str):
    assert decode_page(CHINESE.encode(codec), "iso-8859-1") == CHINESE


@given(
    st.binary(max_size=300), st.sampled_from(["", "utf-8", "gb2312", "no-such-charset", "utf-7"])
)
def test_any_bytes_give_some_text(content: bytes, charset: str):
    extract_page(content, "html", charset).text.encode("utf-8")
    extract_page(content, "text", charset).text.encode("utf-8")


def test_title_and_declared_language_are_kept_apart_from_the_text():
    page = b"<html lang='en_GB'><title> Two \n words </title><body><p>Nothing but this.</p></html>"
    found = extract_page(page, "html")
    assert (found.text, found.title, found.lang) == ("Nothing but this.", "Two words", "en")
    assert extract_page(b"<p>bare", "html").lang == ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_paragraphs_of_real_pages_come_out_in_order_without_markup(path: Path):
    html = path.read_text(encoding="utf-8")
    text = " ".join(extract_page(html.encode(), "html").text.split())
    # A second way to the same words: the source's own paragraphs, markup removed.
    paragraphs = [
        " ".join(re.sub(r"<[^>]+>", "", found).split())
        for found in re.findall(r"<p>(.*?)</p>", html, flags=re.DOTALL)
    ]
    places = [text.find(one[:60]) for one in paragraphs if len(one) > 60 and "&" not in one[:60]]
    assert len(places) >= 3
    assert -1 not in places
    assert places == sorted(places)


def test_furniture_goes_only_where_main_content_is_asked_for():
    story = "<p>" + "A long sentence of the story that the page is about. " * 8 + "</p>"
    menu = "<nav><ul><li><a href=/>Home page</a></li><li><a href=/x>Sign up</a></li></ul></nav>"
    page = f"<html><body>{menu}<article>{story}</article></body></html>".encode()
    assert "Sign up" not in extract_page(page, "html").text
    assert "Sign up" in extract_page(page, "html", main_content=False).text
