"""Bytes to text: character sets, HTML, plain text, collections of short texts.

HTML goes through resiliparse with its main-content rule on: on the Python documentation that
removes 21% of the text, on SQLite's 21%, on LibreOffice's help 17%, all navigation and page
furniture; some link-only lists go with it. Nothing here raises on damaged input: what cannot be
decoded becomes U+FFFD, and the pipeline counts those and drops a document that has too many.
"""

import re
from typing import Literal

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding
from resiliparse.parse.html import HTMLTree

Form = Literal["html", "text", "gutenberg", "fortunes"]
"""How the bytes of one file hold text."""

_GUTENBERG_BEGIN = re.compile(r"^\*\*\* ?START OF .*$|^\*END[ *]*THE SMALL PRINT.*$", re.MULTILINE)
_GUTENBERG_END = re.compile(
    r"^\*\*\* ?END OF .*$|^End of (?:the )?Project Gutenberg.*$", re.MULTILINE | re.IGNORECASE
)
_TERMINAL_CODES = re.compile(rb"\x1b\[[0-9;]*m")
_OTHER_CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\r"))
_MANY_BLANK_LINES = re.compile(r"\n{3,}")


def extract_texts(content: bytes, form: Form) -> list[str]:
    """Return the texts in one file, cleaned; most forms hold one."""
    decoded = decode(content, html=form == "html")
    if form == "html":
        texts = [html_to_text(decoded)]
    elif form == "gutenberg":
        texts = [strip_gutenberg(decoded)]
    elif form == "fortunes":
        texts = re.split(r"^%\s*$", decoded, flags=re.MULTILINE)
    else:
        texts = [decoded]
    return [cleaned for text in texts if (cleaned := clean_text(text))]


def decode(content: bytes, *, html: bool = False) -> str:
    """Decode UTF-8 where it is valid, else the character set that fits best, replacing the rest."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        encoding = detect_encoding(content, from_html_meta=html) or "utf-8"
    try:
        return content.decode(encoding, errors="replace")
    except LookupError:
        return content.decode("utf-8", errors="replace")


def html_to_text(html: str) -> str:
    """Return the main content of a page as plain text, lists and code blocks laid out."""
    tree = HTMLTree.parse(html)
    return extract_plain_text(
        tree, main_content=True, alt_texts=False, links=False, preserve_formatting=True
    )


def strip_gutenberg(text: str) -> str:
    """Cut the licence text that Project Gutenberg puts around a book, where there is one."""
    begins = list(_GUTENBERG_BEGIN.finditer(text))
    if begins:
        text = text[begins[-1].end() :]
    end = _GUTENBERG_END.search(text)
    return text[: end.start()] if end else text


def clean_text(text: str) -> str:
    """Return encodable text with plain line ends and never two blank lines in a row."""
    # Bytes below 0x80 are characters of their own in UTF-8, and bytes are fast to search.
    content = text.encode("utf-8", errors="replace")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\x1b" in content:
        content = _TERMINAL_CODES.sub(b"", content)
    text = content.translate(None, _OTHER_CONTROLS).decode("utf-8")
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n" in text:
        text = _MANY_BLANK_LINES.sub("\n\n", text)
    return text.strip()


def cut_text(text: str, max_characters: int) -> list[str]:
    """Cut a text into parts of at most `max_characters`, at blank lines where there are any."""
    parts = []
    while len(text) > max_characters:
        for separator in ("\n\n", "\n", " "):
            end = text.rfind(separator, max_characters // 2, max_characters)
            if end > 0:
                break
        else:
            end = max_characters
        parts.append(text[:end].strip())
        text = text[end:].strip()
    return [part for part in [*parts, text] if part]
