"""Maths and science by rule: how much of it a text holds, and how well it teaches it.

The rubric is ours, five parts of one point each, so that the scale is that of the rubric a model is
asked with, 0 to 5: words of the field, formulas, words that explain and argue, whole sentences, and
little of what is no text (menus, tables of values, code). It is a weak labeller, for runs without a
model: the small scorer learns what goes with it.
"""

# Full-width marks end Chinese sentences.
# ruff: noqa: RUF001

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.words import unicode_words

_FIELD_WORDS = (
    "algebra algebraic algorithm angle approximation asymptotic atom atomic axiom bayesian bound "
    "calculus catalyst cell chemical circle coefficient commutative compact complex conjecture "
    "constant continuous convergence converge converges convex coordinate coordinates corollary "
    "correlation cosine covariance cubic curvature curve definition degree denominator density "
    "derivative determinant deviation diagonal differentiable differential dimension discrete "
    "distribution divisor divisible eigenvalue eigenvalues eigenvector electron ellipse energy "
    "entropy enzyme equation equations equilibrium estimator euclidean exponent exponential "
    "factorial finite fourier fraction function functional galaxy gaussian gene genome geometric "
    "geometry gradient gravity group hypergeometric hypothesis identity inequality infinite "
    "infinity integer integers integral integration interpolation interval inverse irrational "
    "isomorphism kinetic laplace lattice lemma likelihood limit linear logarithm logarithmic "
    "magnetic manifold mass mathematical mathematics matrices matrix mean median metric modulo "
    "molecule momentum multiplication multivariate natural neuron newton normal nucleus null "
    "numerator numerical orbit ordinary orthogonal oscillator parabola parameter particle "
    "perpendicular photon physics planet poisson polygon polynomial polynomials positive prime "
    "primes probability probabilities product projection proof proposition protein quadratic "
    "quantum quotient radius random rational reaction real recurrence regression residual residue "
    "ring root roots sample scalar sequence series sigma significance sine species spectrum square "
    "statistic statistical statistics stochastic subset summation symmetric symmetry tangent "
    "temperature tensor theorem topology transformation triangle trigonometric uniform univariate "
    "variable variables variance vector vectors velocity vertex voltage wave zeta"
)
_FIELD = frozenset(_FIELD_WORDS.split())
_FIELD_CHINESE = re.compile(
    "定理|证明|方程|函数|矩阵|向量|积分|微分|导数|概率|统计|几何|代数|整数|素数|三角|极限|数列"
    "|不等式"
    "|物理|化学|能量|分子|原子|细胞|速度|温度|实验"
)
_EXPLAINS = re.compile(
    r"\b(?:because|therefore|hence|thus|since|suppose|assume|let|given|consider|note that|recall"
    r"|it follows|we (?:have|show|obtain|see|get|can|find|define|use)|implies?|if and only if"
    r"|so that|for example|for instance|e\.g\.|i\.e\.|in other words|that is|such that|where|when"
    r"|proof|theorem|lemma|definition|corollary|example|exercise|solution|step|first|second|finally)\b"
    r"|因为|所以|因此|假设|设|例如|证明|定义|由此|从而",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\\$])\$(?!\s)[^$\n]{1,400}?(?<![\s\\])\$(?!\d)", re.DOTALL)
_SENTENCE_LINE = re.compile(r"[.!?:。！？：]['\")\]」]?\s*$")
_HARD_SIGNS = re.compile(r"[{}<>|=_\\/\[\];#@~^]")
_MIN_SENTENCE_WORDS = 8
_FULL_FIELD, _FULL_FORMULAS, _FULL_EXPLAINS = 4.0, 3.0, 4.0
"""Occurrences in a hundred words that give the whole point."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What a text holds of maths and science."""

    words: int
    formulas: int
    field: int
    """Occurrences of words of the field."""
    different: int
    """Different ones."""

    @property
    def per_hundred(self) -> float:
        """Formulas and words of the field in a hundred words."""
        return 100 * (self.formulas + self.field) / max(1, self.words)


def find_signals(text: str) -> Signals:
    """Return the signals of a text; words are those outside its formulas."""
    prose = _FORMULA.sub(" ", text)
    words = unicode_words(prose.lower())
    found = Counter(word for word in words if word in _FIELD)
    found.update(_FIELD_CHINESE.findall(prose))
    return Signals(len(words), len(_FORMULA.findall(text)), found.total(), len(found))


def rule_score(text: str) -> float:
    """Return the educational value of a text, 0 to 5."""
    signals = find_signals(text)
    if not signals.words:
        return 0.0
    prose = _FORMULA.sub(" ", text)
    hundreds = signals.words / 100
    lines = [line for line in prose.split("\n") if line.strip()]
    whole = sum(len(line) for line in lines if _is_sentence(line))
    characters = max(1, sum(map(len, lines)))
    digits = sum(map(str.isdigit, prose))
    hard = len(_HARD_SIGNS.findall(prose)) + digits
    parts = (
        min(1.0, signals.field / hundreds / _FULL_FIELD),
        min(1.0, signals.formulas / hundreds / _FULL_FORMULAS),
        min(1.0, len(_EXPLAINS.findall(prose)) / hundreds / _FULL_EXPLAINS),
        whole / characters,
        max(0.0, 1 - 5 * hard / characters),
    )
    # Prose without the subject is no science, however well it reads.
    subject = min(1.0, parts[0] + parts[1])
    return parts[0] + parts[1] + subject * sum(parts[2:])


def _is_sentence(line: str) -> bool:
    is_long = len(line.split()) >= _MIN_SENTENCE_WORDS or (not line.isascii() and len(line) >= 20)
    return is_long and bool(_SENTENCE_LINE.search(line))


class RuleScorer:
    """The rule as a `Scorer`."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the marks, 0 to 5."""
        return np.array([rule_score(text) for text in texts], dtype=np.float64)
