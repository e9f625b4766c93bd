import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.extract import clean_text, cut_text, decode, extract_texts

PAGE = """<html><head><title>t</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/all">All pages</a></li></ul></nav>
<main><h1>Tides</h1><p>The moon pulls the sea, and the sea rises twice in every day.</p>
<pre><code>a = 1
    b = 2</code></pre></main><footer>Imprint</footer></body></html>"""


def test_html_gives_the_content_and_not_the_furniture():
    (text,) = extract_texts(PAGE.encode(), "html")
    assert "The moon pulls the sea" in text
    assert "a = 1\n    b = 2" in text
    assert "Imprint" not in text
    assert "All pages" not in text


@given(content=st.binary(max_size=300), form=st.sampled_from(["html", "text", "fortunes"]))
def test_no_bytes_make_the_extractor_fail(content: bytes, form):
    for text in extract_texts(content, form):
        text.encode()


def test_latin_1_page_with_a_declaration_is_decoded():
    page = '<html><head><meta charset="iso-8859-1"></head><body><main><p>A café with a blue façade.'
    (text,) = extract_texts(page.encode("latin-1"), "html")
    assert text == "A café with a blue façade."


def test_latin_1_text_without_a_declaration_is_decoded():
    text = "The naïve guest of the café by the façade felt a déjà vu, and the piñata fell. " * 4
    assert decode(text.encode("latin-1")) == text


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_utf_8_is_decoded_with_or_without_a_mark(mark: str):
    assert decode((mark + "中文 text").encode()) == "中文 text"


def test_fortunes_are_split_at_percent_lines():
    content = b"\x1b[32m" + b"one\x1b[m\nmore\n%\n%\n100 %\nthree\n%"
    assert extract_texts(content, "fortunes") == ["one\nmore", "100 %\nthree"]


def test_gutenberg_frame_is_removed():
    book = "Licence\n*** START OF THE BOOK ***\nCall me.\n*** END OF THE BOOK ***\nLicence"
    assert extract_texts(book.encode(), "gutenberg") == ["Call me."]
    assert extract_texts(b"Just a play.", "gutenberg") == ["Just a play."]


def test_clean_text_straightens_lines_and_drops_controls():
    assert clean_text("a \r\nb\rc\x00\x07\n\n \n\n\nd\ud800\n") == "a\nb\nc\n\nd?"


@given(text=st.text("ab \n", max_size=400), limit=st.integers(1, 60))
def test_cut_parts_are_short_and_lose_only_white_space(text: str, limit: int):
    parts = cut_text(text, limit)
    assert all(0 < len(part) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_cut_prefers_blank_lines():
    paragraphs = ["x" * 30, "y" * 30, "z" * 30]
    assert cut_text("\n\n".join(paragraphs), 70) == ["\n\n".join(paragraphs[:2]), paragraphs[2]]
