"""Sparse adaptation: which loss moves what, and what a start refuses."""

from pathlib import Path

import pytest
import torch
from test_batch import make_rows
from tiny_model import build, ids_of

from fivefold.errors import ConfigError, MismatchError
from fivefold.metrics import StageMetrics
from fivefold.models.convert import write_checkpoint
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.stage import StageContext
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.evaluate import probe_indexers
from fivefold.train.losses import language_loss, warm_up_objective
from fivefold.train.start import start_from

TINY = preset("nano", vocab_size=99, num_hidden_layers=2, index_topk=8)
SHARED = preset(
    "nano",
    vocab_size=99,
    num_hidden_layers=3,
    index_topk=8,
    indexer_types=("full", "shared", "full"),
)
ROWS = make_rows([[25, 15], [41], [40], [12]], 41)


def learn(model: Transformer, weight: float) -> dict[str, torch.Tensor]:
    """Return the gradients of the sparse objective on ROWS."""
    model.zero_grad()
    losses = language_loss(
        model,
        ROWS,
        ROWS,
        depths=2,
        mtp_weight=0.3,
        balance_weight=0.0,
        chunk_tokens=64,
        indexer="sparse",
        index_weight=weight,
    )
    losses.total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", [TINY, SHARED], ids=["full", "shared"])
def test_language_loss_moves_the_backbone_and_divergence_the_indexers(config) -> None:
    model = build(config).double()
    once, twice = learn(model, 1.0), learn(model, 2.0)
    assert once.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in once.items():
        factor = 2.0 if ".indexer." in name else 1.0
        assert gradient.abs().max() > 0, name
        assert torch.allclose(twice[name], factor * gradient, rtol=1e-9, atol=1e-12), name


def test_warm_up_gives_gradients_to_indexers_only() -> None:
    model = build(TINY)
    warm_up_objective(model, ROWS, ROWS, 0).total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if ".indexer." in name}


@pytest.mark.parametrize("config", [TINY, SHARED], ids=["full", "shared"])
def test_gathered_attention_equals_masked_attention(config) -> None:
    """The form is chosen by cost; the function is one. Packed rows with padding included."""
    model = build(config).double()
    ids = ids_of(config, 2, 40)
    documents = torch.tensor([[0] * 25 + [1] * 15, [0] * 40])
    positions = torch.arange(40).expand(2, -1)
    with torch.no_grad():
        outs = {}
        for mode in ("frozen", "sparse"):
            around = model.surroundings(positions, documents, indexer=mode)
            assert around.gathers(8) == (mode == "sparse")
            outs[mode] = model(ids, around=around).hidden_BTD
    assert (outs["frozen"] - outs["sparse"]).abs().max() < 1e-10


def test_sparse_mode_is_dense_where_everything_is_selected() -> None:
    config = preset("nano", vocab_size=99, num_hidden_layers=2, index_topk=64)
    model = build(config).double()
    ids = ids_of(config, 2, 40)
    with torch.no_grad():
        around = model.surroundings(torch.arange(40)[None], indexer="sparse")
        gap = model(ids, around=around).hidden_BTD - model(ids).hidden_BTD
    assert gap.abs().max() < 1e-10


def test_probe_bounds_recall_by_the_best_possible_selection() -> None:
    model = build(TINY)
    found = probe_indexers(model, ROWS, microbatch_rows=2)
    for layer in range(2):
        recall, best = found[f"index/recall_layer{layer}"], found[f"index/best_layer{layer}"]
        assert 0 < recall <= best <= 1 + 1e-6
        assert 0 < found[f"index/recent_layer{layer}"] <= best + 1e-6
        assert found[f"index/kl_nats_layer{layer}"] >= 0


def small_tokenizer(text: str) -> Tokenizer:
    return Tokenizer(train_tokenizer([text], TokenizerConfig(vocab_size=426)))


def test_start_refuses_another_tokenizer_and_too_long_contexts(tmp_path: Path) -> None:
    config = preset("nano", vocab_size=426, num_hidden_layers=2, max_position_embeddings=64)
    write_checkpoint(build(config), tmp_path / "start" / "checkpoint")
    ours = small_tokenizer("the cat sat on the mat " * 50)
    ours.save_pretrained(tmp_path / "start" / "checkpoint")
    ours.save_pretrained(tmp_path / "same")
    small_tokenizer("a dog dug a bog " * 50).save_pretrained(tmp_path / "other")
    metrics = StageMetrics(tmp_path / "metrics.jsonl", "midtrain")
    context = StageContext(0, "cpu", 1, metrics, track=None)  # pyright: ignore[reportArgumentType]
    model, _ = start_from(tmp_path / "start", tmp_path / "same", context, longest_tokens=64)
    assert model.config.vocab_size == 426
    with pytest.raises(MismatchError, match="tokenizer of the tokens"):
        start_from(tmp_path / "start", tmp_path / "other", context, longest_tokens=64)
    with pytest.raises(ConfigError, match="65 tokens"):
        start_from(tmp_path / "start", tmp_path / "same", context, longest_tokens=65)
