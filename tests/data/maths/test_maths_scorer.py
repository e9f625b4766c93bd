"""Who scores: the rule's order, a head that recovers its teacher, marks read strictly, models."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy.stats import spearmanr

from fivefold.data.long.scorer import TokenScores
from fivefold.data.maths.config import ScorerConfig
from fivefold.data.maths.endpoint import EndpointScorer, parse_mark
from fivefold.data.maths.head import fit_head, measure_agreement, read_head, spearman, write_head
from fivefold.data.maths.rule import RuleScorer, find_signals
from fivefold.data.maths.scorer import LikelihoodRatio, PromptedRubric, open_scorer
from fivefold.errors import CorruptFileError, MissingFileError
from fivefold.text.completer import RefusedError
from fivefold.text.tokenizer import Tokenizer

LESSON = (
    "A prime number is an integer greater than one that has no divisor but one and itself. "
    "Theorem: there are infinitely many primes. Proof: suppose there were only $p_1, \\dots, p_n$, "
    "and consider the integer $N = p_1 p_2 \\cdots p_n + 1$. Since $N$ leaves the residue one "
    "modulo every prime of the list, it has a prime divisor that is not in it; hence the list is "
    "not whole."
)
GOSSIP = (
    "The village was quiet in the morning, and nobody had seen the captain since the evening "
    "before when he walked down to the river with his dog and a lantern, as he liked to do in "
    "autumn."
)
TABLE = "Name | Value\n" + "\n".join(f"x_{k} = {k * 37 % 101}; y[{k}] = {k}" for k in range(30))


def test_rule_puts_lessons_before_prose_and_tables_last():
    lesson, gossip, table = RuleScorer().score([LESSON, GOSSIP, TABLE])
    assert 5 >= lesson > 4
    assert gossip < 1
    assert table < lesson / 2
    assert RuleScorer().score([""]) == [0]


def test_signals_count_formulas_and_words_outside_them():
    found = find_signals(r"The integral $\int integral$ of a vector, $$integral$$ costs $5 and $7.")
    assert (found.formulas, found.field, found.different) == (2, 2, 2)
    assert find_signals("这个定理的证明用到了矩阵和向量。").field == 4


def texts_and_marks(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    good = ["theorem", "proof", "lemma", "integer", "prime"]
    bad = ["sale", "click", "banner", "shop", "price"]
    shares = random.random(count)
    texts = [
        " ".join(random.choice(good if random.random() < share else bad) for _ in range(60))
        for share in shares
    ]
    return texts, 5 * shares


def test_head_recovers_what_words_say_and_its_file_is_the_same(tmp_path: Path):
    texts, marks = texts_and_marks(120, 1)
    others, expected = texts_and_marks(60, 2)
    head = fit_head(texts, marks, 256, 1.0)
    scores = head.score(others)
    found = measure_agreement(expected, scores, 120, 3)
    assert found.spearman > 0.95
    assert found.auc > 0.98
    assert (found.trained, found.heldout, found.failed) == (120, 60, 3)
    write_head(head, tmp_path / "head.npz")
    assert read_head(tmp_path / "head.npz").score(others).tolist() == scores.tolist()
    config = ScorerConfig(kind="head", head=str(tmp_path / "head.npz"))
    assert open_scorer(config).score(others).tolist() == scores.tolist()
    assert head.score(others[:1]).tolist() == scores[:1].tolist()


def test_head_is_the_ridge_solution():
    texts, marks = texts_and_marks(40, 5)
    head = fit_head(texts, marks, 64, 2.0)
    vectors = head._embedder.embed(texts).astype(np.float64)

    def loss(weights: np.ndarray, intercept: float) -> float:
        return float(((vectors @ weights + intercept - marks) ** 2).sum() + 2.0 * weights @ weights)

    best = loss(head.weights.astype(np.float64), head.intercept)
    for axis in range(0, 64, 7):
        step = np.zeros(64)
        step[axis] = 1e-2
        assert loss(head.weights + step, head.intercept) > best
        assert loss(head.weights - step, head.intercept) > best
    assert loss(head.weights.astype(np.float64), head.intercept + 1e-2) > best


def test_rank_correlation_is_scipys():
    random = np.random.default_rng(0)
    for _ in range(5):
        one, other = random.integers(0, 6, 40).astype(float), random.random(40).round(1)
        assert spearman(one, other) == pytest.approx(spearmanr(one, other)[0])
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_missing_and_foreign_heads_are_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"scorer\.head"):
        read_head(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(CorruptFileError):
        read_head(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="served_model"):
        ScorerConfig(kind="endpoint", url="http://h")


def test_only_the_object_that_was_asked_for_is_a_mark():
    assert [parse_mark(f'{{"score": {n}}}') for n in range(6)] == list(range(6))
    numbers = ("6", "-1", "3.5", '"3"', "true", "null")
    wrong = ["3", "", "[3]", 'So {"score": 3}', '{"score": 3, "why": 1}']
    for answer in [*wrong, *(f'{{"score": {number}}}' for number in numbers)]:
        assert parse_mark(answer) is None


Answer = Callable[[str, int], httpx.Response]


def scorer_with(answer: Answer, **values: object) -> tuple[EndpointScorer, list[str]]:
    prompts: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["temperature"] == 0
        prompts.append(body["messages"][0]["content"])
        return answer(prompts[-1], len(prompts))

    config = ScorerConfig(
        kind="endpoint", url="http://h", served_model="m", connections=1, attempts=1
    ).model_copy(update=values)
    return EndpointScorer(config, httpx.MockTransport(handle)), prompts


def said(content: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})


def test_endpoint_takes_the_mean_of_two_orders_and_asks_again_when_they_differ():
    near, prompts = scorer_with(lambda _, n: said(f'{{"score": {[4, 5][n - 1]}}}'))
    assert near.score(["T e x t"]).tolist() == [4.5]
    assert len(prompts) == 2
    first, second = ((one.index("T e x t"), one.index("Judge how")) for one in prompts)
    assert first[0] > first[1]
    assert second[0] < second[1]
    far, prompts = scorer_with(lambda _, n: said(f'{{"score": {[1, 5, 4][n - 1]}}}'))
    assert far.score(["x"]).tolist() == [4]
    assert len(prompts) == 3


def test_endpoint_failures_are_nan_never_zero(caplog: pytest.LogCaptureFixture):
    one_bad, _ = scorer_with(lambda _, n: said(["no", '{"score": 2}', '{"score": 3}'][n - 1]))
    assert one_bad.score(["x"]).tolist() == [2.5]
    bad, _ = scorer_with(lambda _, n: said("I would give it a 3."))
    assert np.isnan(bad.score(["x", "y"])).all()
    down, _ = scorer_with(lambda _, n: httpx.Response(500, text="broken"))
    assert np.isnan(down.score(["x"])).all()
    busy, prompts = scorer_with(
        lambda _, n: httpx.Response(429) if n == 1 else said('{"score": 5}'), attempts=2
    )
    assert busy.score(["x"]).tolist() == [5]
    assert len(prompts) == 3
    long, prompts = scorer_with(
        lambda prompt, _: httpx.Response(400) if "long" in prompt else said('{"score": 1}'),
        attempts=3,
    )
    marks = long.score(["long", "x"])
    assert np.isnan(marks[0])
    assert marks[1] == 1
    assert len(prompts) == 5
    assert "3 requests for marks refused, the first: Expected a request" in caplog.text
    refused, _ = scorer_with(lambda _, n: httpx.Response(401, json={"error": {"message": "key"}}))
    with pytest.raises(RefusedError, match="key"):
        refused.score(["x"])


class LetterModel:
    """Finds letters of a text probable, and one digit where it is asked for a mark."""

    def __init__(self, tokenizer: Tokenizer, good: str, digit: str = "") -> None:
        self.tokenizer, self.context_tokens = tokenizer, 4096
        self._good, self._digit = set(good), digit

    def score_tokens(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        return [self._row(row) for row in rows]

    def _row(self, row: Sequence[int]) -> TokenScores:
        words = [self.tokenizer.decode([token]) for token in row]
        told = [0.0 if set(word) <= self._good else -2.0 for word in words]
        told[-1] = 0.0 if words[-1] == self._digit else told[-1] - 20 * bool(self._digit)
        logprobs = np.array([math.nan, *told[1:]], dtype=np.float32)
        return TokenScores(np.zeros_like(logprobs), logprobs)


def test_likelihood_ratio_is_the_difference_of_bits_per_byte(tokenizer: Tokenizer):
    knows, ignorant = LetterModel(tokenizer, "abc "), LetterModel(tokenizer, "")
    good, bad = LikelihoodRatio(knows, ignorant).score(["abccabbca", "xyzzyxyxz"])
    assert good > bad == 0
    assert np.isnan(LikelihoodRatio(knows, ignorant).score([""])).all()


@pytest.mark.parametrize("digit", "035")
def test_prompted_rubric_gives_the_mark_that_the_model_would(tokenizer: Tokenizer, digit: str):
    model = LetterModel(tokenizer, "", digit)
    assert PromptedRubric(model).score(["A text."])[0] == pytest.approx(int(digit), abs=1e-4)
    model.context_tokens = 10
    assert np.isnan(PromptedRubric(model).score(["A text."])).all()
