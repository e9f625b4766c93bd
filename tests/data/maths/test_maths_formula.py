r"""Formulas in HTML: every form that carries TeX, MathML without it, what stays untouched."""

import re
import subprocess
from pathlib import Path

import pytest

from fivefold.data.archive import read_members
from fivefold.data.curate.web_page import extract_page
from fivefold.data.maths.formula import count_formulas, keep_formulas
from fivefold.data.maths.mathml import mathml_to_tex

TEX = r"\frac{a}{b} < c"
ESCAPED = r"\frac{a}{b} &lt; c"
ANNOTATED = (
    "<math xmlns='http://www.w3.org/1998/Math/MathML'><semantics><mrow><mi>a</mi></mrow>"
    f"<annotation encoding='application/x-tex'>{ESCAPED}</annotation></semantics></math>"
)
FORMS = {
    "sphinx": rf'<span class="math notranslate nohighlight">\({ESCAPED}\)</span>',
    "mathjax 2 script": f'<script type="math/tex">{TEX}</script>',
    "mathjax 2 drawn": '<span class="MathJax_Preview">a/b</span><span class="MathJax" id="M1">'
    '<nobr><span class="math"><span>a/b</span></span></nobr></span>'
    f'<script type="math/tex">{TEX}</script>',
    "mathjax 3": '<mjx-container class="MathJax"><mjx-math><mjx-mi>a</mjx-mi></mjx-math>'
    f"<mjx-assistive-mml>{ANNOTATED}</mjx-assistive-mml></mjx-container>",
    "katex": f'<span class="katex"><span class="katex-mathml">{ANNOTATED}</span>'
    '<span class="katex-html" aria-hidden="true"><span class="base"><span>a</span></span></span>'
    "</span>",
    "mathml": ANNOTATED,
    "alttext": f'<math alttext="{ESCAPED}"><mi>a</mi></math>',
    "sphinx image": f'<img class="math" src="_images/math/0d58.png" alt="{ESCAPED}"/>',
    "wiki image": f'<img src="https://w.org/api/rest_v1/media/math/render/svg/ab" alt="{ESCAPED}">',
}
DISPLAYS = {
    "sphinx": '<div class="math nohighlight">\n\\[\\begin{split}%s\\end{split}\\]</div>',
    "script": '<script type="math/tex; mode=display">\\begin{split}%s\\end{split}</script>',
    "katex": '<span class="katex-display"><span class="katex"><math><semantics><mi>a</mi>'
    '<annotation encoding="application/x-tex">\\begin{split}%s\\end{split}</annotation></semantics>'
    '</math><span class="katex-html"><span>a</span></span></span></span>',
    "mathml": '<math display="block"><semantics><mi>a</mi><annotation encoding="application/x-tex">'
    "\\begin{split}%s\\end{split}</annotation></semantics></math>",
}


def text_of(html: str) -> str:
    page = f"<html><body><p>{html}</p></body></html>"
    return extract_page(keep_formulas(page).encode(), "html", main_content=False).text


@pytest.mark.parametrize("form", FORMS)
def test_every_inline_form_gives_its_tex_once(form: str):
    assert text_of(f"Let {FORMS[form]} hold.") == f"Let ${TEX}$ hold."


@pytest.mark.parametrize("form", DISPLAYS)
def test_every_display_form_stands_by_itself(form: str):
    tex = r"a &amp;= b \\ &amp;\le c"
    found = text_of(
        "Then "
        + DISPLAYS[form] % (tex if form != "script" else tex.replace("&amp;", "&"))
        + " holds."
    )
    assert list(filter(None, found.split("\n"))) == [
        "Then",
        r"$$\begin{split}a &= b \\ &\le c\end{split}$$",
        "holds.",
    ]


def test_delimiters_count_only_where_mathjax_is_loaded_and_never_in_code():
    body = r"Let \(x_1\) be. <pre>re.sub('\(x\)', y)</pre> <code>\(z\)</code> \[y = 2\]"
    loaded = '<script src="/MathJax.js"></script>' + body
    assert text_of(body).startswith(r"Let \(x_1\) be.")
    found = text_of(loaded)
    assert found.startswith("Let $x_1$ be.")
    assert r"re.sub('\(x\)', y)" in found
    assert r"\(z\)" in found
    assert "$$y = 2$$" in found


def test_what_is_no_formula_stays_as_it_is():
    page = (
        '<p class="math">plain</p><img class="photo" alt="x_1 = 2"><img class="math" alt="">'
        "<span class='aftermath'>\\(a\\)</span><script>var math = '$';</script>"
        "<div class='math'><img src='a.png' alt='a'></div>"
    )
    assert keep_formulas(page) == page


def test_unclosed_and_hostile_markup_is_survived():
    for page in ("<span class='math'>\\(x", "<math><mi>x", "<" * 5000, "<math " * 2000, "$" * 9999):
        assert isinstance(keep_formulas(page), str)
    nested = "<div class='math'>" * 300 + r"\(x\)" + "</div>" * 300
    assert "$x$" in keep_formulas(nested)


def test_comments_and_outer_dollars_go():
    page = '<script type="math/tex">% note\n{\\displaystyle a % b\n+ 50\\% }</script>'
    assert text_of(page) == r"$a + 50\%$"


def test_formulas_are_counted():
    assert count_formulas("$a$ and $$b$$, 5") == 2
    assert count_formulas("no formula, 5$ only\nand $ there") == 0


MATHML = {
    "<mfrac><mn>1</mn><mrow><mi>x</mi><mo>+</mo><mi>y</mi></mrow></mfrac>": r"\frac{1}{x+y}",
    "<msup><mi>x</mi><mn>2</mn></msup>": "x^2",
    "<msubsup><mi>a</mi><mi>i</mi><mrow><mi>n</mi><mo>&#x2212;</mo><mn>1</mn></mrow>"
    "</msubsup>": "a_i^{n-1}",
    "<msup><mrow><mi>x</mi><mi>y</mi></mrow><mn>2</mn></msup>": "{xy}^2",
    "<munderover><mo>&sum;</mo><mrow><mi>k</mi><mo>=</mo><mn>0</mn></mrow><mi>&infin;</mi>"
    "</munderover>": r"\sum_{k=0}^{\infty}",
    "<msqrt><mi>&alpha;</mi><mi>x</mi></msqrt>": r"\sqrt{\alpha x}",
    "<mroot><mi>x</mi><mn>3</mn></mroot>": r"\sqrt[3]{x}",
    "<mi>sin</mi><mo>&ApplyFunction;</mo><mi>x</mi>": r"\sin x",
    "<mover><mi>v</mi><mo>&#x2192;</mo></mover>": r"\vec{v}",
    "<mfenced><mi>a</mi><mi>b</mi></mfenced>": "(a,b)",
    "<mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>0</mn></mtd></mtr><mtr><mtd><mn>0</mn></mtd>"
    "<mtd><mn>1</mn></mtd></mtr></mtable>": r"\begin{matrix} 1 & 0 \\ 0 & 1 \end{matrix}",
    "<mi>x</mi><mo>&#8712;</mo><mi>&#8477;</mi>"
    "<mtext>, if any</mtext>": r"x\in\mathbb{R}\text{, if any}",
}


@pytest.mark.parametrize("markup", MATHML)
def test_mathml_without_tex_is_written_as_tex(markup: str):
    assert mathml_to_tex(f"<math><mrow>{markup}</mrow></math>") == MATHML[markup]
    prefixed = re.sub(r"<(/?)", r"<\1m:", f"<math>{markup}</math>")
    assert mathml_to_tex(prefixed) == MATHML[markup]


def test_broken_mathml_is_no_formula():
    assert mathml_to_tex("<math><mi>x</math>") is None
    assert "$" not in keep_formulas("<p><math><mi>x</math></p>")


def gold_formulas(source: str) -> list[str]:
    """Return the formulas of a Sphinx source, as roles and as directives."""
    found = re.findall(r":math:`([^`]+)`", source)
    for indent, first, block in re.findall(
        r"^( *)\.\. math::[ \t]*(.*)\n((?:\1 +.*\n|[ \t]*\n)*)", source, re.MULTILINE
    ):
        lines = [line.strip() for line in block.split("\n") if not re.match(r"\s*:\w+:", line)]
        found += re.split(r"\n\s*\n", f"{first}\n" + "\n".join(lines))
        assert indent is not None
    return [tex for one in found if (tex := plain(one))]


def plain(tex: str) -> str:
    tex = re.sub(r"\\(?:begin|end)\{(?:split|aligned|gathered)\}|\\[,;! ]", "", tex)
    return re.sub(r"\s+", "", tex).strip(".,")


@pytest.mark.network
@pytest.mark.slow
def test_pages_hold_the_formulas_of_their_sphinx_sources(tmp_path: Path):
    subprocess.run(["apt-get", "-q", "download", "python-sympy-doc"], cwd=tmp_path, check=True)
    (archive,) = tmp_path.glob("*.deb")
    root = "usr/share/doc/python-sympy-doc/html/"
    members = dict(read_members(archive, rf"{root}.*\.(?:html|txt)"))
    there = wanted = 0
    for name, content in members.items():
        page = name.replace("_sources/", "").replace(".rst.txt", ".html")
        if "_sources/" not in name or page not in members:
            continue
        gold = gold_formulas(content.decode())
        kept = keep_formulas(members[page].decode("utf-8", "replace"))
        text = plain(extract_page(kept.encode(), "html", main_content=False).text)
        there += sum(f"${tex}$" in text or f"{tex}" in text for tex in gold)
        wanted += len(gold)
    assert wanted > 400
    assert there >= 0.95 * wanted
