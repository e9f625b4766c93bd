"""The loss of conversations: against one conversation at a time, whatever the packing.

The oracle runs each sample alone, without rows, masks of documents or shared denominators.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_model import build

from fivefold.data.loader import Rows
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.train.batch import label_counts, make_batch, microbatches
from fivefold.train.losses import language_loss
from fivefold.train.sft import sft_objective
from fivefold.train.sft_config import SftConfig

TINY = preset(
    "nano",
    vocab_size=99,
    num_hidden_layers=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    index_topk=8,
)
ROW = 24
DEPTHS = 2


class Piece(NamedTuple):
    """A rendered conversation."""

    ids: np.ndarray
    weight: np.ndarray


def make_pieces(count: int, seed: int = 0) -> list[Piece]:
    """Make conversations of 4 to 12 tokens, about half of which are learned, with weights."""
    rng = np.random.default_rng(seed)
    pieces = []
    for _ in range(count):
        size = int(rng.integers(4, 13))
        weight = rng.choice([0.5, 1.0, 2.0]) * (rng.random(size) < 0.5)
        weight[0], weight[-1] = 0, 1
        pieces.append(Piece(rng.integers(3, 99, size), weight))
    return pieces


PIECES = make_pieces(7)
LAYOUT = [[0, 3], [1, 2], [4], [5, 6]]


def lay(pieces: list[Piece], layout: list[list[int]], row_tokens: int = ROW + 1) -> Rows:
    """Put pieces into rows, in the order that the layout says."""
    shape = (len(layout), row_tokens)
    ids = np.zeros(shape, dtype=np.int32)
    document, positions = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    weight = np.zeros(shape, dtype=np.float32)
    for row, numbers in enumerate(layout):
        begin = 0
        for place, number in enumerate(numbers):
            piece = pieces[number]
            end = begin + len(piece.ids)
            ids[row, begin:end], weight[row, begin:end] = piece
            document[row, begin:end] = place
            positions[row, begin:end] = np.arange(len(piece.ids))
            begin = end
    return Rows(ids, document, positions, np.zeros(len(layout), dtype=np.int16), weight)


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def learn(
    model: Transformer, rows: Rows, size: int = 99
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Return loss, gradients and metrics of a step on `rows` in microbatches of `size`."""
    model.zero_grad()
    loss, measured = 0.0, {}
    for part in microbatches(rows, size):
        found = language_loss(
            model, part, rows, depths=DEPTHS, mtp_weight=0.3, balance_weight=0.0, chunk_tokens=9
        )
        found.total.backward()
        loss += float(found.total.detach())
        for name, value in found.measured.items():
            measured[name] = measured.get(name, 0.0) + float(value)
    return loss, gradients(model), measured


def naive_loss(model: Transformer, pieces: list[Piece]) -> torch.Tensor:
    """Run each conversation alone: mean over all labels of a depth, each times its weight."""
    sums = torch.zeros(DEPTHS + 1, dtype=torch.float64)
    labels = torch.zeros(DEPTHS + 1, dtype=torch.float64)
    for piece in pieces:
        ids = torch.from_numpy(piece.ids.astype(np.int64))[None]
        around = model.surroundings(torch.arange(ids.shape[1] - 1)[None])
        state = model(ids[:, :-1], around=around).hidden_BTD
        for depth in range(DEPTHS + 1):
            if depth:
                assert model.mtp is not None
                next_ids = ids[:, (torch.arange(ids.shape[1] - 1) + depth) % ids.shape[1]]
                state, *_ = model.mtp(state, model.embed_tokens(next_ids), around)
            logprobs = model.lm_head(state)[0].log_softmax(-1)
            for place in range(len(piece.ids) - 1 - depth):
                target = place + 1 + depth
                factor = float(piece.weight[target])
                if factor:
                    sums[depth] -= factor * logprobs[place, int(piece.ids[target])]
                    labels[depth] += 1
    means = sums / labels
    return means[0] + 0.3 * means[1:].mean()


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Weights of tokens are fp32: 1e-7 relative.
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-8), name


def test_loss_and_gradient_equal_conversations_run_one_by_one() -> None:
    model = build(TINY).double()
    loss, found, _ = learn(model, lay(PIECES, LAYOUT))
    model.zero_grad()
    expected = naive_loss(model, PIECES)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert_close(found, gradients(model))


@pytest.mark.parametrize(
    ("layout", "size", "row_tokens"),
    [
        (LAYOUT, 1, ROW + 1),
        (LAYOUT, 3, ROW + 1),
        ([[6, 4], [3, 0], [2, 5], [1]], 2, ROW + 1),
        ([[number] for number in range(7)], 2, ROW + 1),
        ([[5, 6, 1, 0], [4, 2, 3]], 1, 2 * ROW + 1),
    ],
    ids=["rows alone", "uneven split", "other mates", "one a row", "longer rows"],
)
def test_packing_and_microbatches_change_neither_loss_nor_gradient(
    layout: list[list[int]], size: int, row_tokens: int
) -> None:
    model = build(TINY).double()
    loss, expected, measured = learn(model, lay(PIECES, LAYOUT))
    again, found, others = learn(model, lay(PIECES, layout, row_tokens), size)
    assert again == pytest.approx(loss, rel=1e-6)
    assert others == pytest.approx(measured, rel=1e-6)
    assert_close(found, expected)


def test_labels_are_the_learned_tokens_at_every_depth() -> None:
    rows = lay(PIECES, LAYOUT)
    assert rows.weight is not None
    batch = make_batch(rows, DEPTHS, "cpu")
    assert batch.weights_BT is not None
    for depth, count in enumerate(label_counts(rows, DEPTHS)):
        labels, weights = batch.labels_BT[depth], batch.weights_BT[depth]
        expected = sum(int((piece.weight[1 + depth :] > 0).sum()) for piece in PIECES)
        assert count == int((labels != IGNORED).sum()) == expected
        for row, place in (labels != IGNORED).nonzero().tolist():
            target = place + 1 + depth
            assert labels[row, place] == rows.ids[row, target]
            assert weights[row, place] == rows.weight[row, target] > 0


def test_masked_label_moves_nothing_and_a_learned_one_does() -> None:
    """The last token of a conversation is a label only: no place reads it."""
    model = build(TINY)
    for last, moves in ((0.0, False), (1.0, True)):
        results = []
        for token in (7, 8):
            first = PIECES[0]
            ids, weight = first.ids.copy(), first.weight.copy()
            ids[-1], weight[-1] = token, last
            changed = [Piece(ids, weight), *PIECES[1:]]
            results.append(learn(model, lay(changed, LAYOUT)))
        (loss, one, _), (other_loss, two, _) = results
        assert (loss != other_loss) == moves
        assert any(not torch.equal(one[name], two[name]) for name in one) == moves


def test_conversation_without_labels_has_no_gradient() -> None:
    model = build(TINY)
    silent = [Piece(piece.ids, np.zeros_like(piece.weight)) for piece in PIECES]
    loss, found, measured = learn(model, lay(silent, LAYOUT))
    assert loss == 0.0
    assert measured["loss_nats"] == 0.0
    assert all(not gradient.any() for gradient in found.values())


def test_loss_of_a_conversation_does_not_depend_on_its_row_mates() -> None:
    model = build(TINY).double()
    quiet = [PIECES[0], *(Piece(p.ids, np.zeros_like(p.weight)) for p in PIECES[1:])]
    strangers = [PIECES[0], *(Piece(p.ids, np.zeros_like(p.weight)) for p in make_pieces(6, 9))]
    alone, expected, _ = learn(model, lay(quiet, [[0]]))
    for pieces, layout in ((quiet, [[3, 0]]), (strangers, [[0, 2]]), (strangers, [[2], [1, 0]])):
        loss, found, _ = learn(model, lay(pieces, layout, 2 * ROW))
        assert loss == pytest.approx(alone, rel=1e-6)
        assert_close(found, expected)


def test_weights_scale_losses_and_not_denominators() -> None:
    model = build(TINY).double()
    rows = lay(PIECES, LAYOUT)
    assert rows.weight is not None
    loss, once, measured = learn(model, rows)
    twice_loss, twice, same = learn(model, replace(rows, weight=2 * rows.weight))
    assert twice_loss == pytest.approx(2 * loss, rel=1e-6)
    assert same == pytest.approx(measured, rel=1e-12)
    assert_close(twice, {name: 2 * gradient for name, gradient in once.items()})


def test_weights_of_one_are_the_loss_without_weights() -> None:
    model = build(TINY)
    rows = lay(PIECES, LAYOUT)
    ones = replace(rows, weight=(rows.document >= 0).astype(np.float32))
    with_ones, without = learn(model, ones), learn(model, replace(rows, weight=None))
    assert with_ones[0] == without[0]
    assert with_ones[2] == without[2]
    assert all(torch.equal(with_ones[1][name], without[1][name]) for name in without[1])


def test_objective_counts_the_answers_of_the_step() -> None:
    model = build(TINY)
    rows = lay(PIECES, LAYOUT)
    objective = sft_objective(SftConfig())
    parts = [objective(model, part, rows, 0).measured for part in microbatches(rows, 3)]
    learned = sum(int((piece.weight[1:] > 0).sum()) for piece in PIECES)
    assert sum(float(part["answer_tokens"]) for part in parts) == learned
    assert next(iter(parts[0])) == "loss_nats"
