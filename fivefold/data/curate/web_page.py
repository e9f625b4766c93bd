"""Raw bytes to the text of a page, its title and the language that it declares.

Character set: UTF-8 where the bytes are valid, then what the server declared, then what the page
itself or its bytes suggest (resiliparse's detector), as browsers map the names. Text: resiliparse's
plain text with lists and code laid out, main content only if asked; 8 to 20 times as fast as
trafilatura, at a lower F1 on article pages.

Surprise: alternative texts of images stay out; with them the F1 on article pages falls.
"""

import codecs
import re
from dataclasses import dataclass
from typing import Literal

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import DocumentNode, ElementNode, HTMLTree

from fivefold.data.curate.pdf_page import missing_extra, read_pdf
from fivefold.data.curate.verdict import Edit
from fivefold.data.extract import Form, clean_text, strip_gutenberg

PageForm = Literal[Form, "pdf"]
"""How the bytes of one page hold text."""
Extractor = Literal["resiliparse", "auto", "trafilatura"]
"""What finds the main content of HTML; `auto` chooses by the page."""

_TITLE_CHARACTERS = 300
_FURNITURE = re.compile(
    r"<(nav|aside|footer|script|style|form)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
_LINK = re.compile(r"<a\b.*?</a\s*>", re.DOTALL | re.IGNORECASE)
_WHITE_SPACE = bytes(point for point in range(0x80) if chr(point).isspace())
_MAIN_SHARE = 0.9
"""Least share of a declared main part's prose; on Python's documentation three pages in four keep
more than 0.96, and those below 0.9 lost chapters or are lists of links."""
_VISIBLE_SHARE = 0.5
"""Share of a page's prose below which `auto` asks trafilatura; ours, without a source."""
_VISIBLE_CHARACTERS = 250
"""Prose below which there is nothing to ask for."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a page says."""

    text: str
    title: str = ""
    lang: str = ""
    """As the page declares it, the part before the first hyphen; empty if it does not."""
    edits: tuple[Edit, ...] = ()
    """Lines of text that were taken out."""


def extract_page(
    content: bytes,
    form: PageForm,
    charset: str = "",
    *,
    main_content: bool = True,
    extractor: Extractor = "resiliparse",
) -> Extracted:
    """Return the text of a page, cleaned, with its title and declared language.

    Raises:
        ConfigError: a package of the extra `extract` is needed and not installed.
        PdfError: a PDF cannot be read.
    """
    if form == "pdf":
        found = read_pdf(content)
        title = " ".join(clean_text(found.title).split())[:_TITLE_CHARACTERS]
        return Extracted(clean_text(found.text), title, edits=found.edits)
    decoded = decode_page(content, charset, html=form == "html")
    if form != "html":
        return Extracted(clean_text(strip_gutenberg(decoded) if form == "gutenberg" else decoded))
    tree = HTMLTree.parse(decoded)
    # Each question for the document makes a new one.
    document = tree.document
    text = _main_text(decoded, tree, document, extractor) if main_content else _plain_text(tree)
    title = " ".join(clean_text(tree.title or "").split())[:_TITLE_CHARACTERS]
    return Extracted(clean_text(text), title, _declared_language(document))


def _main_text(
    html: str, tree: HTMLTree, document: DocumentNode | None, extractor: Extractor
) -> str:
    if extractor == "trafilatura":
        return _ask_trafilatura(html)
    text = _plain_text(tree, main_content=True)
    parts = _declared_main(document)
    if len(parts) == 1:
        found = _size(text)
        if found >= _MAIN_SHARE * _size(parts[0].text or ""):
            return text
        part = _FURNITURE.sub("", parts[0].html or "")
        if found < _MAIN_SHARE * _prose_size(part):
            return _plain_text(HTMLTree.parse(part))
        return text
    if extractor == "auto":
        prose = _prose_size(_FURNITURE.sub("", html))
        if prose >= _VISIBLE_CHARACTERS and _size(text) < _VISIBLE_SHARE * prose:
            return max(text, _ask_trafilatura(html), key=_size)
    return text


def _declared_main(document: DocumentNode | None) -> list[ElementNode]:
    """Return the elements `main` and those with `role="main"`, each once."""
    if document is None:
        return []
    # Two plain questions take half the time of one selector.
    parts = list(document.get_elements_by_tag_name("main"))
    others = document.get_elements_by_attr("role", "main")
    return parts + [one for one in others if one not in parts]


def _plain_text(tree: HTMLTree, *, main_content: bool = False) -> str:
    return extract_plain_text(
        tree, main_content=main_content, alt_texts=False, links=False, preserve_formatting=True
    )


def _prose_size(html: str) -> int:
    """Count the characters that are no links: a list of links may go, what it leads to stays."""
    return _size(_plain_text(HTMLTree.parse(_LINK.sub("", html))))


def _size(text: str) -> int:
    """Count the characters that are no white space."""
    if text.isascii():
        return len(text.encode().translate(None, _WHITE_SPACE))
    return sum(map(len, text.split()))


def _ask_trafilatura(html: str) -> str:
    try:
        import trafilatura
    except ImportError as error:
        raise missing_extra("trafilatura", error) from error
    return trafilatura.extract(html, include_comments=True, include_tables=True) or ""


def decode_page(content: bytes, charset: str = "", *, html: bool = True) -> str:
    """Decode a page, replacing what cannot be read by U+FFFD."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    if charset and (known := _known_charset(charset)):
        try:
            return content.decode(known)
        except UnicodeDecodeError:
            # Servers often declare a default that the page does not keep to.
            pass
    suggested = detect_encoding(content, from_html_meta=html) or "utf-8"
    return content.decode(_known_charset(suggested) or "utf-8", errors="replace")


def _known_charset(name: str) -> str:
    """Return the codec of Python that browsers mean by this name; empty if there is none."""
    # GB 18030 holds all of GBK, and browsers read GBK with it.
    mapped = "gb18030" if name.lower() in ("gb2312", "gbk") else map_encoding_to_html5(name)
    try:
        return codecs.lookup(mapped or "").name
    except LookupError:
        return ""


def _declared_language(document: DocumentNode | None) -> str:
    root = document.query_selector("html") if document else None
    declared = (root.getattr("lang") or "") if root is not None else ""
    return declared.strip().lower().replace("_", "-").partition("-")[0][:8]
