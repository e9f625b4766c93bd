"""The sampler: its law against the softmax, its log-probabilities, independence of the batch."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fivefold.serve.request import RequestError, SamplingParams
from fivefold.serve.sampler import Draw, choose, invert, log_distribution, uniform

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0, 0.5])

SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(top_k=3),
    SamplingParams(temperature=1.5, top_p=0.8),
    SamplingParams(min_p=0.2),
    SamplingParams(temperature=0.9, top_k=4, top_p=0.9, min_p=0.05, logit_bias=((3, 2.5),)),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, logit_bias=((4, 9.0),)),
]


def plain_distribution(logits: list[float], params: SamplingParams) -> list[float]:
    """Do it in plain Python, token by token."""
    biased = list(logits)
    for token, by in params.logit_bias:
        biased[token] += by
    if params.temperature == 0:
        best = max(range(len(biased)), key=lambda token: (biased[token], -token))
        return [float(token == best) for token in range(len(biased))]
    weights = [math.exp(value / params.temperature) for value in biased]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    order = order[: params.top_k or None]
    total = sum(weights[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        if mass < params.top_p:
            kept.append(token)
        mass += weights[token] / total
    kept = [token for token in kept if weights[token] >= params.min_p * weights[kept[0]]]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


@pytest.mark.parametrize("params", SETTINGS)
def test_distribution_is_that_of_plain_python(params: SamplingParams) -> None:
    found = log_distribution(LOGITS[None], [params])[0].exp()
    expected = torch.tensor(plain_distribution(LOGITS.tolist(), params))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


LEAST = 5e-324
"""The smallest float; fp32 rounds it to 0."""


@settings(max_examples=200)
@given(
    temperature=st.one_of(st.sampled_from([0.0, LEAST, 1e308]), st.floats(0, 1e308)),
    top_p=st.one_of(st.just(LEAST), st.floats(0, 1, exclude_min=True)),
    min_p=st.one_of(st.just(LEAST), st.floats(0, 1)),
    top_k=st.one_of(st.integers(0, 7), st.just(2**80)),
    bias=st.dictionaries(st.integers(0, 5), st.floats(-1e30, 1e30), max_size=6),
    seed=st.integers(0, 100),
)
def test_every_setting_that_is_accepted_draws_a_possible_token(
    temperature: float,
    top_p: float,
    min_p: float,
    top_k: int,
    bias: dict[int, float],
    seed: int,
) -> None:
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        min_p=min_p,
        top_k=top_k,
        logit_bias=tuple(bias.items()),
    )
    params.check(len(LOGITS))
    choice = choose(LOGITS[None], [Draw(params, seed, 3)])
    assert 0 <= int(choice.token_M) < len(LOGITS)
    assert -math.inf < float(choice.sampled_M) <= 0
    log_p = log_distribution(LOGITS[None], [params])
    assert float(log_p.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize("params", [SamplingParams(top_p=LEAST), SamplingParams(temperature=LEAST)])
def test_the_narrowest_setting_leaves_the_best_token(params: SamplingParams) -> None:
    log_p = log_distribution(LOGITS[None], [params])[0]
    assert log_p.exp().tolist() == [1.0] + 5 * [0.0]


@pytest.mark.parametrize("by", [1e31, -1e31, math.inf, math.nan])
def test_a_bias_that_fp32_cannot_carry_is_refused(by: float) -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        SamplingParams(logit_bias=((0, by),)).check(10)


@pytest.mark.parametrize("params", SETTINGS)
def test_rows_do_not_depend_on_their_neighbours(params: SamplingParams) -> None:
    draw = Draw(params, 5, 17)
    alone = choose(LOGITS[None], [draw])
    others = [Draw(other, 1, 2) for other in SETTINGS]
    together = choose(torch.stack([LOGITS] * (len(others) + 1)), [*others, draw])
    assert alone.token_M[0] == together.token_M[-1]
    assert alone.sampled_M[0] == together.sampled_M[-1]
    assert alone.raw_M[0] == together.raw_M[-1]


@pytest.mark.parametrize("params", SETTINGS)
def test_last_bits_do_not_depend_on_neighbours_either(params: SamplingParams) -> None:
    logits = torch.randn(60, 512, generator=torch.Generator().manual_seed(0)) * 3
    mine = [params] * 30
    others = [SETTINGS[place % len(SETTINGS)] for place in range(30)]
    alone = log_distribution(logits[:30], mine)
    among = log_distribution(logits, [*mine, *others])
    assert torch.equal(alone, among[:30])


@pytest.mark.parametrize("params", SETTINGS[:6])
def test_drawn_frequencies_pass_a_chi_square_test(params: SamplingParams) -> None:
    draws = 6000
    rows = [Draw(params, 3, position) for position in range(draws)]
    drawn = choose(LOGITS.expand(draws, -1), rows).token_M
    expected = draws * torch.tensor(plain_distribution(LOGITS.tolist(), params))
    found = torch.bincount(drawn, minlength=len(LOGITS)).double()
    possible = expected > 0
    assert not found[~possible].any()
    statistic = ((found - expected) ** 2 / expected)[possible].sum()
    # The 99.99% point of chi-square with 5 degrees of freedom.
    assert statistic < 25.7


@pytest.mark.parametrize("params", SETTINGS)
def test_reported_logprobs_are_those_of_both_distributions(params: SamplingParams) -> None:
    rows = [Draw(params, seed, 0) for seed in range(40)]
    choice = choose(LOGITS.expand(40, -1), rows)
    law = torch.tensor(plain_distribution(LOGITS.tolist(), params)).log()
    torch.testing.assert_close(choice.sampled_M, law[choice.token_M], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(choice.raw_M, LOGITS.log_softmax(-1)[choice.token_M])


def test_alternatives_are_the_most_likely_of_the_raw_distribution() -> None:
    rows = [Draw(SamplingParams(top_logprobs=n, temperature=0.1), 0, 0) for n in (0, 3)]
    choice = choose(LOGITS.expand(2, -1), rows)
    assert choice.top_ids[0] == []
    raw = LOGITS.log_softmax(-1)
    assert choice.top_raw[1] == raw.sort(descending=True).values[:3].tolist()
    assert [float(raw[token]) for token in choice.top_ids[1]] == choice.top_raw[1]


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0]])
    assert choose(logits, [Draw(SamplingParams(temperature=0), 0, 0)]).token_M.tolist() == [1]


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.floats(-40, 3), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_inverse_never_leaves_the_support(logits: list[float], number: float) -> None:
    log_p = (
        torch.tensor([logits]).log_softmax(-1).masked_fill(torch.tensor([logits]) < -20, -torch.inf)
    )
    if torch.isinf(log_p).all():
        return
    token = invert(log_p, torch.tensor([number], dtype=torch.float64))
    assert log_p[0, token[0]] > -torch.inf


def test_inverse_at_the_very_end_takes_the_last_possible_token() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert invert(log_p, torch.tensor([1.0], dtype=torch.float64)).tolist() == [1]


def test_counter_numbers_are_even_and_differ_by_every_argument() -> None:
    numbers = torch.tensor([uniform(1, position, "token") for position in range(4000)])
    counts = torch.histc(numbers, 10, 0, 1)
    # 6 standard deviations of a binomial count.
    assert (counts - 400).abs().max() < 6 * math.sqrt(4000 * 0.1 * 0.9)
    assert len({uniform(1, 2, "token"), uniform(2, 1, "token"), uniform(1, 2, "other")}) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"max_new_tokens": -1},
        {"top_logprobs": -1},
        {"prompt_logprobs_begin": -1},
        {"stop_ids": (6,)},
        {"logit_bias": ((0, math.inf),)},
        {"logit_bias": ((-1, 1.0),)},
    ],
)
def test_settings_without_meaning_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="Expected"):
        SamplingParams(**bad).check(6)
