"""Text of a PDF, page by page, through pdfium: lines joined, running heads and page numbers out.

A line goes as a page number when it is the first or last of its page and numbers stand there on
most pages; as a running head or foot when the same line, digits aside, stands there on most pages.
A word that a hyphen cuts at the end of a line is joined; the hyphen stays before a capital.

Surprise: pdfium takes hyphen and line end between letters for one character, U+FFFE or U+0002.
Scans have no text at all: such a file comes out empty, and is dropped as such.
"""

import re
from collections import Counter
from dataclasses import dataclass

from fivefold.data.curate.verdict import Edit
from fivefold.errors import ConfigError

_NUMBER = re.compile(
    r"(?:page\s+)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:/|of)\s*\d{1,4})?", re.IGNORECASE
)
_DIGITS = re.compile(r"\d+")
_SOFT_HYPHEN = re.compile("[\ufffe\x02\xad](?:\r?\n)?")
_CUT_WORD = re.compile(r"(?<=[^\W\d_])-\n(?=[^\W\d_])")
_FEWEST_PAGES = 3
"""Pages from which on a line can be told to repeat."""


class PdfError(ValueError):
    """Bytes that pdfium takes for no PDF, or for one that needs a password."""


@dataclass(frozen=True, slots=True)
class PdfText:
    """What a PDF says."""

    text: str
    title: str
    edits: tuple[Edit, ...]
    """Lines that were taken out, in the text of all pages."""


def read_pdf(content: bytes) -> PdfText:
    """Return the text of a PDF; may hang or crash on a hostile one.

    Raises:
        ConfigError: pypdfium2 is not installed.
        PdfError: a cut, altered or locked file.
    """
    try:
        import pypdfium2
    except ImportError as error:
        raise missing_extra("pypdfium2", error) from error
    # pdfium mends a file whose end is missing by leaving out what it does not find.
    if b"%%EOF" not in content[-1024:]:
        raise PdfError("a PDF without its end")
    try:
        with pypdfium2.PdfDocument(content) as document:
            pages = [_page_text(document, number) for number in range(len(document))]
            title = document.get_metadata_dict().get("Title", "")
    except pypdfium2.PdfiumError as error:
        raise PdfError(str(error)) from error
    text, edits = join_pages(pages)
    return PdfText(text, title, edits)


def _page_text(document: "object", number: int) -> str:
    page = document[number]  # type: ignore[index]  # a PdfDocument; its package is optional
    text_page = page.get_textpage()
    try:
        return text_page.get_text_range()
    finally:
        text_page.close()
        page.close()


def join_pages(pages: list[str]) -> tuple[str, tuple[Edit, ...]]:
    """Return the text of all pages without what every page repeats, and what was taken out."""
    lines = [
        _SOFT_HYPHEN.sub("-\n", page).replace("\r\n", "\n").strip().split("\n") for page in pages
    ]
    repeated = _repeated_lines(lines)
    kept: list[str] = []
    edits: list[Edit] = []
    position = 0
    for page in lines:
        left = []
        for place, line in enumerate(page):
            is_edge = place in (0, len(page) - 1)
            reason = repeated.get(_shape(line), "") if is_edge else ""
            if reason:
                edits.append(Edit(reason, position, position + len(line), line))
            else:
                left.append(line.rstrip())
            position += len(line) + 1
        if any(left):
            kept.append("\n".join(left))
    return _CUT_WORD.sub(_joint, "\n".join(kept)), tuple(edits)


def _joint(cut: re.Match[str]) -> str:
    return "" if cut.string[cut.end()].islower() else "-"


def _repeated_lines(pages: list[list[str]]) -> dict[str, str]:
    """Return the reasons of first and last lines, by shape, that stand on most pages."""
    if len(pages) < _FEWEST_PAGES:
        return {}
    shapes: Counter[str] = Counter()
    for page in pages:
        shapes.update({_shape(line) for line in (page[0], page[-1]) if line.strip()})
    least = len(pages) / 2
    return {
        shape: "extract.page_number" if shape == "#" else "extract.running_head"
        for shape, count in shapes.items()
        if count > least
    }


def _shape(line: str) -> str:
    """Return a line without what changes from page to page."""
    stripped = " ".join(line.split())
    return "#" if _NUMBER.fullmatch(stripped) else _DIGITS.sub("0", stripped)


def missing_extra(package: str, error: ImportError) -> ConfigError:
    """Return the error for a package of the extra `extract` that cannot be imported."""
    return ConfigError(
        expected=f"the package `{package}`, which `extract.extractor` or the input asks for",
        found=f"none that can be imported ({error})",
        fix="Run `pip install 'fivefold[extract]'`, choose `extract.extractor=resiliparse`, or "
        "leave PDF files out",
    )
