r"""Formulas of a page as TeX between dollars, written into its HTML before any extractor reads it.

Extractors see text: they lose formulas that are images, double those that stand in MathML and in
boxes for the eye, and drop scripts. So each formula's markup is replaced by `$...$`, or `$$...$$`
where it stands by itself, and whatever extractor follows keeps it. Known forms: MathML with a TeX
annotation, with `alttext`, or bare (`mathml`); MathJax's scripts and containers; KaTeX; Sphinx's
`class="math"` with `\(...\)` or `\[...\]`; images whose class or source says that their
alternative text is TeX; and `\(...\)`, `\[...\]` in the text of pages that load MathJax.

Plain Python over the page as a string: an element is found by its opening tag and ends where its
name's tags balance, so that the work is linear, and a page that never ends is stopped by the
signal that stops all steps.
"""

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fivefold.data.maths.mathml import mathml_to_tex

_TAG = r"(?:[^<>\"']|\"[^\"]*\"|'[^']*')*"
_BEGIN = re.compile(
    r"<(?P<name>math|m:math|script|span|div|img|mjx-container|pre|code|textarea|style)\b"
    rf"(?P<attributes>{_TAG})>",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_ANNOTATION = re.compile(
    r"<(?:m:)?annotation\b[^>]*encoding\s*=\s*[\"']?(?:application/x-tex|TeX|LaTeX)\b[^>]*>(.*?)"
    r"</(?:m:)?annotation>",
    re.IGNORECASE | re.DOTALL,
)
_MATHML = re.compile(r"<((?:m:)?math)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_ANY_TAG = re.compile(r"<[^>]*>")
_LOADS_MATHJAX = re.compile(r"mathjax|katex", re.IGNORECASE)
_DELIMITED = re.compile(r"\\\((.{1,2000}?)\\\)|\\\[(.{1,8000}?)\\\]", re.DOTALL)
_OUTER = (
    (re.compile(r"\s*\\\((.*)\\\)\s*", re.DOTALL), False),
    (re.compile(r"\s*\\\[(.*)\\\]\s*", re.DOTALL), True),
    (re.compile(r"\s*\$\$(.*)\$\$\s*", re.DOTALL), True),
    (re.compile(r"\s*\$(.*)\$\s*", re.DOTALL), False),
)
_BETWEEN_DOLLARS = re.compile(r"\$\$[^$]+\$\$|\$[^$\n]+\$")
_COMMENT = re.compile(r"(?<!\\)%[^\n]*(?:\n|\Z)")
_STYLE = re.compile(r"\s*\{\s*\\(?:displaystyle|textstyle)\b(.*)\}\s*", re.DOTALL)
_MATH_CLASSES = frozenset(
    {"math", "tex", "latex", "mwe-math-fallback-image-inline", "mwe-math-element"}
)
_IMAGE_CLASSES = _MATH_CLASSES | {"mwe-math-fallback-image-display", "ql-img-inline-formula"}
_IMAGE_SOURCE = re.compile(
    r"(?:^|/)(?:math|latex|render/svg|imgmath|cgi-bin/mathtex)", re.IGNORECASE
)
_TEX_SIGN = re.compile(r"[\\^_={}]|^[A-Za-z0-9,.+\-*/()|<> ]{1,40}$")


@dataclass(frozen=True, slots=True)
class Formula:
    """TeX, and whether it stands by itself."""

    tex: str
    is_display: bool = False

    def to_text(self) -> str:
        """Return it between dollars; nothing where there is nothing."""
        mark = "$$" if self.is_display else "$"
        return f"{mark}{self.tex}{mark}" if self.tex else ""


def keep_formulas(page: str) -> str:
    """Return the HTML with every formula that it knows as text between dollars."""
    parts, place = [], 0
    is_mathjax = bool(_LOADS_MATHJAX.search(page))
    for begin, end, formula in _find(page):
        parts.append(_delimited(page[place:begin]) if is_mathjax else page[place:begin])
        parts.append(page[begin:end] if formula is None else _markup(formula))
        place = end
    parts.append(_delimited(page[place:]) if is_mathjax else page[place:])
    return "".join(parts)


def count_formulas(text: str) -> int:
    """Return how many formulas stand between dollars, in HTML or in what was extracted from it."""
    return len(_BETWEEN_DOLLARS.findall(text))


def _markup(formula: Formula) -> str:
    text = html.escape(formula.to_text(), quote=False)
    if not text:
        return ""
    return f"<div>{text}</div>" if formula.is_display else f"<span>{text}</span>"


def _delimited(text: str) -> str:
    """Return text between formulas with what MathJax would find in it by its delimiters."""
    if "\\(" not in text and "\\[" not in text:
        return text

    def write(found: re.Match[str]) -> str:
        if "<" in found[0]:
            return found[0]
        tex = html.unescape(found[1] if found[1] is not None else found[2])
        return _markup(Formula(clean_tex(tex), found[1] is None))

    return _DELIMITED.sub(write, text)


def _find(page: str) -> Iterator[tuple[int, int, Formula | None]]:
    """Yield begin, end and formula of elements; None where nothing may be changed inside."""
    place = 0
    while begin := _BEGIN.search(page, place):
        name = begin["name"].lower()
        attributes = _attributes(begin["attributes"])
        read = _READERS.get(name)
        if name == "img":
            formula, end = _image(attributes), begin.end()
        elif read is None:
            # Code, and what is no text: dollars and backslashes there are not TeX.
            formula, end = None, _element_end(page, begin, name)
            yield begin.start(), end, None
        elif not _is_candidate(name, attributes):
            place = begin.end() if name != "script" else _element_end(page, begin, name)
            continue
        else:
            end = _element_end(page, begin, name)
            formula = read(page[begin.start() : end], attributes)
        if formula is not None:
            yield begin.start(), end, formula
            place = end
        else:
            place = begin.end() if read else end


def _attributes(written: str) -> dict[str, str]:
    return {
        name.lower(): html.unescape(one or two or three)
        for name, one, two, three in _ATTRIBUTE.findall(written)
    }


def _is_candidate(name: str, attributes: dict[str, str]) -> bool:
    if name in ("math", "m:math", "mjx-container"):
        return True
    if name == "script":
        return attributes.get("type", "").lower().startswith("math/")
    return bool(_classes(attributes) & _ELEMENT_CLASSES)


_ELEMENT_CLASSES = _MATH_CLASSES | {
    "katex", "katex-display", "mathjax", "mathjax_display", "mathjax_preview", "mathjax_svg",
    "mathjax_chtml",
}  # fmt: skip


def _classes(attributes: dict[str, str]) -> frozenset[str]:
    return frozenset(attributes.get("class", "").lower().split())


def _element_end(page: str, begin: re.Match[str], name: str) -> int:
    """Return where the element ends: its own closing tag, or the end of the page."""
    if begin["attributes"].endswith("/"):
        return begin.end()
    depth, tags = 1, re.compile(rf"<(/?){re.escape(name)}\b{_TAG}>", re.IGNORECASE)
    for tag in tags.finditer(page, begin.end()):
        depth += -1 if tag[1] else 0 if tag[0].endswith("/>") else 1
        if not depth:
            return tag.end()
    return begin.end()


def _inside(element: str) -> str:
    return element[element.index(">") + 1 : element.rindex("<")] if "</" in element else ""


def _math(element: str, attributes: dict[str, str]) -> Formula | None:
    is_display = attributes.get("display") == "block" or attributes.get("mode") == "display"
    annotation = _ANNOTATION.search(element)
    if annotation:
        tex: str | None = html.unescape(annotation[1])
    else:
        tex = attributes.get("alttext") or mathml_to_tex(element)
    return None if tex is None else Formula(clean_tex(tex), is_display)


def _script(element: str, attributes: dict[str, str]) -> Formula | None:
    kind = attributes["type"].lower().replace(" ", "")
    if kind.startswith("math/mml"):
        return _math_within(element, is_display=False)
    return Formula(clean_tex(_without_cdata(_inside(element))), "mode=display" in kind)


def _without_cdata(text: str) -> str:
    return text.replace("%<![CDATA[", "").replace("%]]>", "")


def _math_within(element: str, *, is_display: bool) -> Formula | None:
    found = _MATHML.search(element)
    if found is None:
        return None
    head = found[0][: found[0].index(">")]
    formula = _math(found[0], _attributes(head))
    return formula and Formula(formula.tex, formula.is_display or is_display)


def _container(element: str, attributes: dict[str, str]) -> Formula | None:
    return _math_within(element, is_display=attributes.get("display") == "true")


def _element(element: str, attributes: dict[str, str]) -> Formula | None:
    classes = _classes(attributes)
    if classes & {"mathjax", "mathjax_display", "mathjax_preview", "mathjax_svg", "mathjax_chtml"}:
        # MathJax's own drawing: what it says stands in the script that follows, or in MathML.
        return _math_within(element, is_display="mathjax_display" in classes) or Formula("")
    if within := _math_within(element, is_display="katex-display" in classes):
        return within
    inside = _inside(element)
    if "<img" in inside.lower() or "<script" in inside.lower():
        return None
    text = html.unescape(_ANY_TAG.sub("", inside))
    for outer, is_display in _OUTER:
        if found := outer.fullmatch(text):
            return Formula(clean_tex(found[1]), is_display)
    return None


def _image(attributes: dict[str, str]) -> Formula | None:
    """Return the formula of an image whose class or source says that its text is TeX."""
    text = attributes.get("alt", "")
    is_formula = bool(_classes(attributes) & _IMAGE_CLASSES) or bool(
        _IMAGE_SOURCE.search(attributes.get("src", ""))
    )
    if not (is_formula and text.strip() and _TEX_SIGN.search(text)):
        return None
    is_display = "\n" in text.strip() or "mwe-math-fallback-image-display" in _classes(attributes)
    return Formula(clean_tex(text), is_display)


_READERS: dict[str, Callable[[str, dict[str, str]], Formula | None]] = {
    "math": _math,
    "m:math": _math,
    "script": _script,
    "mjx-container": _container,
    "span": _element,
    "div": _element,
    "img": lambda element, attributes: _image(attributes),
}


def clean_tex(tex: str) -> str:
    r"""Return TeX in one line without comments, outer delimiters and outer `\displaystyle`."""
    tex = _COMMENT.sub("\n", tex)
    for outer, _ in _OUTER:
        if found := outer.fullmatch(tex):
            tex = found[1]
            break
    if found := _STYLE.fullmatch(tex):
        tex = found[1]
    return " ".join(tex.split())
