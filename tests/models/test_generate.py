"""Sampling: greedy decode against full forwards, the sampled law against the softmax."""

import pytest
import torch
from tiny_model import build, ids_of

from fivefold.models.generate import Sampling, choose, generate, stream
from fivefold.models.preset import preset

NANO = preset("nano")


def test_greedy_decode_equals_recomputing_everything() -> None:
    model = build(NANO).double()
    prompt = ids_of(NANO, 3, 25)
    found = generate(model, prompt, 15, Sampling(temperature=0))
    ids = prompt
    with torch.no_grad():
        for _ in range(15):
            best = model.logits(model(ids).hidden_BTD[:, -1]).argmax(-1)
            ids = torch.cat([ids, best[:, None]], 1)
    assert found == ids[:, 25:].tolist()


def test_generation_stops_each_row_at_its_own_stop_token() -> None:
    model = build(NANO)
    prompt = ids_of(NANO, 2, 8)
    free = generate(model, prompt, 12, Sampling(temperature=0))
    stop = free[0][4]
    stopped = generate(model, prompt, 12, Sampling(temperature=0), stop_ids=(stop,))
    for row, whole in zip(stopped, free, strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)


def test_same_seed_same_text() -> None:
    model = build(NANO)
    prompt = ids_of(NANO, 2, 8)
    first, again, other = (
        [
            step.tolist()
            for step in stream(model, prompt, 6, Sampling(), torch.Generator().manual_seed(seed))
        ]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_sampled_frequencies_follow_the_truncated_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    draws = 40_000
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=0.7, top_p=0.9)
    drawn = choose(logits.expand(draws, -1), sampling, generator)
    p = (logits / 0.7).softmax(-1)
    kept = torch.zeros(5)
    total = 0.0
    for token in p.argsort(descending=True):
        if total < 0.9:
            kept[token] = p[token]
        total += float(p[token])
    expected = kept / kept.sum()
    found = torch.bincount(drawn, minlength=5) / draws
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() <= 4 * deviation).all()
    assert (kept == 0).any()


def test_top_k_one_is_greedy() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(3))
    drawn = choose(logits, Sampling(top_k=1), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -2}])
def test_meaningless_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="top_p"):
        Sampling(**bad)  # pyright: ignore[reportArgumentType]
