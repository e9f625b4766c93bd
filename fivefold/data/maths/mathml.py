r"""Presentation MathML to TeX, for formulas that bring no TeX of their own.

Covers what pages hold: rows, identifiers, numbers, operators, text, fractions, roots, scripts,
limits above and below, fences and tables; other elements give what is inside them. The tree comes
from the standard library's parser; entities by name are those of HTML.

Surprise: an identifier of several letters is upright (`sin`), one letter is italic, and TeX needs a
blank between a command and a letter after it.
"""

# The signs of mathematics are what this file is about.
# ruff: noqa: RUF001

import html
import re
from collections.abc import Callable
from xml.etree import ElementTree

_SYMBOLS = {
    "∑": r"\sum", "∏": r"\prod", "∫": r"\int", "∮": r"\oint", "√": r"\surd", "∞": r"\infty",
    "∂": r"\partial", "∇": r"\nabla", "±": r"\pm", "∓": r"\mp", "×": r"\times", "÷": r"\div",
    "⋅": r"\cdot", "·": r"\cdot", "∘": r"\circ", "∗": "*", "−": "-", "≤": r"\le", "≥": r"\ge",
    "≠": r"\ne", "≈": r"\approx", "≡": r"\equiv", "∼": r"\sim", "≃": r"\simeq", "∝": r"\propto",
    "≪": r"\ll", "≫": r"\gg", "∈": r"\in", "∉": r"\notin", "⊂": r"\subset", "⊆": r"\subseteq",
    "∪": r"\cup", "∩": r"\cap", "∅": r"\emptyset", "∀": r"\forall", "∃": r"\exists",
    "¬": r"\neg", "∧": r"\wedge", "∨": r"\vee", "→": r"\to", "←": r"\leftarrow",
    "↦": r"\mapsto", "⇒": r"\Rightarrow", "⇔": r"\Leftrightarrow", "…": r"\ldots",
    "⋯": r"\cdots", "⋮": r"\vdots", "⋱": r"\ddots", "′": "'", "⟨": r"\langle",
    "⟩": r"\rangle", "‖": r"\|", "ℝ": r"\mathbb{R}", "ℂ": r"\mathbb{C}", "ℕ": r"\mathbb{N}",
    "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℓ": r"\ell", "ℏ": r"\hbar", "†": r"\dagger",
    "⊕": r"\oplus", "⊗": r"\otimes", "⊥": r"\perp", "∥": r"\parallel", "∣": "|",
    "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&", "$": r"\$", "_": r"\_",
    "\u2061": "", "\u2062": "", "\u2063": "", "\u2064": "",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "varsigma sigma tau upsilon phi chi psi omega"
)
_GREEK = _GREEK_NAMES.split()
_CAPITALS = "gamma delta theta lambda xi pi sigma upsilon phi psi omega"
_SYMBOLS |= {chr(0x3B1 + number): rf"\{name}" for number, name in enumerate(_GREEK)}
_SYMBOLS |= {
    chr(0x391 + number): rf"\{name.capitalize()}"
    for number, name in enumerate(_GREEK)
    if name in _CAPITALS.split()
}
_SYMBOLS |= {
    "ϵ": r"\epsilon",
    "ε": r"\varepsilon",
    "ϕ": r"\phi",
    "φ": r"\varphi",
    "ϑ": r"\vartheta",
}
_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp log ln lim max min sup inf "
    "det dim ker gcd deg arg Pr limsup liminf"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ACCENTS = {
    "^": "hat", "ˆ": "hat", "~": "tilde", "˜": "tilde", "¯": "bar", "‾": "overline",
    "―": "overline", "→": "vec", "⃗": "vec", "˙": "dot", "¨": "ddot", "⏞": "overbrace",
}  # fmt: skip
_BARE_AMPERSAND = re.compile(r"&(?!(?:[A-Za-z]+|#\d+|#x[0-9A-Fa-f]+);)")
_ENTITY = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)[A-Za-z]+;")
_PREFIX = re.compile(r"(</?)[A-Za-z]\w*:")
_XMLNS = re.compile(r"\s[\w:-]*xmlns(?::\w+)?\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_COMMAND_END = re.compile(r"\\[A-Za-z]+$")


def mathml_to_tex(markup: str) -> str | None:
    """Return the TeX of a `<math>` element; None if it is no well-formed XML."""
    plain = _XMLNS.sub("", _PREFIX.sub(r"\1", markup))
    plain = _ENTITY.sub(lambda entity: html.unescape(entity[0]), plain)
    plain = _BARE_AMPERSAND.sub("&amp;", plain)
    try:
        root = ElementTree.fromstring(plain)
    except ElementTree.ParseError:
        return None
    return " ".join(_element(root).split())


def _element(node: ElementTree.Element) -> str:
    write = _WRITERS.get(node.tag)
    return write(node) if write else _row(node)


def _row(node: ElementTree.Element) -> str:
    return _concatenate([_element(child) for child in node])


def _concatenate(parts: list[str]) -> str:
    written = ""
    for part in parts:
        # `\alpha` and `x` would become one command.
        is_glued = part[:1].isalpha() and _COMMAND_END.search(written)
        written += f" {part}" if is_glued else part
    return written


def _characters(text: str) -> str:
    return _concatenate([_SYMBOLS.get(letter, letter) for letter in text])


def _identifier(node: ElementTree.Element) -> str:
    text = (node.text or "").strip()
    if text in _FUNCTIONS:
        return rf"\{text}"
    if len(text) > 1 and text.isascii() and text.isalpha():
        return rf"\mathrm{{{text}}}"
    shape = {"bold": "mathbf", "double-struck": "mathbb", "script": "mathcal"}.get(
        node.get("mathvariant", "")
    )
    written = _characters(text)
    return rf"\{shape}{{{written}}}" if shape else written


def _token(node: ElementTree.Element) -> str:
    text = (node.text or "").strip()
    return rf"\{text}" if text in _FUNCTIONS else _characters(text)


def _said(node: ElementTree.Element) -> str:
    text = " ".join("".join(node.itertext()).split())
    return rf"\text{{{text}}}" if text else ""


def _parts(node: ElementTree.Element, count: int) -> list[str]:
    return [*map(_element, node), *[""] * count][:count]


def _group(tex: str) -> str:
    """Return TeX as one argument of a script."""
    return tex if len(tex) == 1 else f"{{{tex}}}"


def _fraction(node: ElementTree.Element) -> str:
    above, below = _parts(node, 2)
    return rf"\frac{{{above}}}{{{below}}}"


def _root(node: ElementTree.Element) -> str:
    radicand, index = _parts(node, 2)
    return rf"\sqrt[{index}]{{{radicand}}}"


def _scripts(marks: str) -> Callable[[ElementTree.Element], str]:
    def write(node: ElementTree.Element) -> str:
        base, *rest = _parts(node, 1 + len(marks))
        if len(base) > 1 and not re.fullmatch(r"\\[A-Za-z]+(?:\{[^{}]*\})?", base):
            base = f"{{{base}}}"
        return base + "".join(mark + _group(one) for mark, one in zip(marks, rest, strict=True))

    return write


def _over(node: ElementTree.Element) -> str:
    base, _ = _parts(node, 2)
    mark = (node[1].text or "").strip() if len(node) > 1 else ""
    return rf"\{_ACCENTS[mark]}{{{base}}}" if mark in _ACCENTS else _scripts("^")(node)


def _fenced(node: ElementTree.Element) -> str:
    marks = (node.get("separators", ",").strip() or ",")[0] if len(node) > 1 else ""
    inside = marks.join(map(_element, node))
    begin, end = (
        _characters(node.get(name, mark)) for name, mark in (("open", "("), ("close", ")"))
    )
    return f"{begin}{inside}{end}"


def _table(node: ElementTree.Element) -> str:
    rows = [" & ".join(map(_element, row)) for row in node]
    return r"\begin{matrix} " + r" \\ ".join(rows) + r" \end{matrix}"


_WRITERS: dict[str, Callable[[ElementTree.Element], str]] = {
    "mi": _identifier,
    "mn": _token,
    "mo": _token,
    "mtext": _said,
    "ms": _said,
    "mspace": lambda node: " ",
    "mphantom": lambda node: "",
    "annotation": lambda node: "",
    "annotation-xml": lambda node: "",
    "mfrac": _fraction,
    "msqrt": lambda node: rf"\sqrt{{{_row(node)}}}",
    "mroot": _root,
    "msub": _scripts("_"),
    "msup": _scripts("^"),
    "msubsup": _scripts("_^"),
    "munder": _scripts("_"),
    "mover": _over,
    "munderover": _scripts("_^"),
    "mfenced": _fenced,
    "mtable": _table,
}
