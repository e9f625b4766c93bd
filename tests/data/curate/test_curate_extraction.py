"""Which of two extractors reads a page, and what becomes of a declared main part."""

import sys

import pytest
from resiliparse.parse.html import HTMLTree

from fivefold.data.curate.web_page import _declared_main, extract_page
from fivefold.errors import ConfigError

SENTENCES = " ".join(
    f"The {n}th sentence tells what the function number {n} does." for n in range(20)
)
# resiliparse takes an element for furniture by its id.
CHAPTER = f'<section id="related-functions"><h2>Related</h2><p>{SENTENCES}</p></section>'
STORY = f"<section id=story><h2>Story</h2><p>{SENTENCES.replace('function', 'river')}</p></section>"
MENU = "<nav><ul><li><a href=/a>Front page</a></li></ul></nav>"


def text_of(body: str, **options) -> str:
    return extract_page(f"<html><body>{body}</body></html>".encode(), "html", **options).text


@pytest.mark.parametrize("main", ["<main>{}</main>", "<div role=main>{}</div>"])
def test_a_chapter_of_the_declared_main_part_stays_whatever_its_id_is(main: str):
    assert "function number 7" not in text_of(STORY + CHAPTER)
    text = text_of(MENU + main.format(STORY + CHAPTER))
    assert "function number 7" in text
    assert "river number 7" in text
    assert "Front page" not in text


def test_a_list_of_links_is_no_reason_to_take_the_whole_part():
    links = "".join(f"<li><a href=/{n}>Link to page number {n}</a></li>" for n in range(60))
    text = text_of(f"<main>{STORY}<ul id=related>{links}</ul></main>")
    assert "river number 7" in text
    assert "Link to page number 7" not in text


def test_trafilatura_reads_a_page_of_which_resiliparse_finds_little():
    pytest.importorskip("trafilatura")
    page = f"{MENU}<div id=related-functions><article><p>{SENTENCES}</p></article></div>"
    assert "function number 7" not in text_of(page)
    assert "function number 7" in text_of(page, extractor="auto")
    assert "function number 7" in text_of(page, extractor="trafilatura")


@pytest.mark.parametrize("page", [STORY, f"{MENU}<p>Short.</p>", f"<main>{STORY}{CHAPTER}</main>"])
def test_auto_asks_nobody_else_where_resiliparse_finds_the_text(
    page: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    assert text_of(page, extractor="auto") == text_of(page)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(ConfigError, match=r"fivefold\[extract\]"):
        text_of(STORY, extractor="trafilatura")


@pytest.mark.parametrize(
    "page",
    [
        "<p>none",
        "<MAIN>one</MAIN>",
        "<main role=main>once</main>",
        "<div role='main'><main>two</main></div>",
        "<div role='MAIN'>another value</div>",
        "<svg><main>out of it</main></svg><template><main>in it</main></template>",
        "",
    ],
)
def test_declared_main_parts_are_those_of_the_selector(page: str):
    tree = HTMLTree.parse(page)
    assert tree.document
    found = _declared_main(tree.document)
    expected = list(tree.document.query_selector_all('main, [role="main"]'))
    assert len(found) == len(expected)
    assert all(one in expected for one in found)
