"""A row of 16K tokens through the whole model: nothing of the size of queries x keys is made."""

import pytest
import torch
from allocation import LargestTensor
from test_batch import make_rows
from tiny_model import build

from fivefold.models.preset import preset
from fivefold.models.surroundings import IndexerMode
from fivefold.train.compute import ComputeModel
from fivefold.train.losses import language_loss, warm_up_objective

TOKENS = 16_384
TINY = preset(
    "nano",
    vocab_size=99,
    hidden_size=16,
    intermediate_size=16,
    moe_intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=8,
    index_head_dim=8,
    index_topk=16,
    max_position_embeddings=TOKENS,
)
BOUND = 2**22
"""Numbers: 16 MiB in fp32. A mask of the row would have 2^28, a row of either axis 2^14."""


@pytest.mark.parametrize(
    ("documents", "recompute"),
    [
        ([TOKENS + 1], False),
        pytest.param([TOKENS + 1], True, marks=pytest.mark.slow),
        pytest.param([9000, 7385], False, marks=pytest.mark.slow),
    ],
)
def test_sparse_step_stays_within_the_bound(documents: list[int], recompute: bool) -> None:
    compute = ComputeModel(build(TINY), torch.float32, recompute=recompute)
    rows = make_rows([documents], TOKENS + 1)
    with LargestTensor() as largest:
        losses = language_loss(
            compute.model,
            rows,
            rows,
            depths=1,
            mtp_weight=0.3,
            balance_weight=0.0,
            chunk_tokens=1024,
            indexer="sparse",
        )
        losses.total.backward()
    assert float(losses.total.detach()) > 0
    assert largest.numbers <= BOUND, largest.shape


@pytest.mark.parametrize("indexer", ["frozen", pytest.param("probe", marks=pytest.mark.slow)])
def test_forward_stays_within_the_bound(indexer: IndexerMode) -> None:
    model = build(TINY)
    ids_BT = torch.from_numpy(make_rows([[TOKENS]], TOKENS).ids).long()
    positions_BT = torch.arange(TOKENS)[None]
    with torch.inference_mode(), LargestTensor() as largest:
        model(ids_BT, around=model.surroundings(positions_BT, indexer=indexer))
    assert largest.numbers <= BOUND, largest.shape


@pytest.mark.slow
def test_warm_up_stays_within_the_bound() -> None:
    model = build(TINY)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." in name)
    rows = make_rows([[TOKENS + 1]], TOKENS + 1)
    with LargestTensor() as largest:
        warm_up_objective(model, rows, rows, 0).total.backward()
    assert largest.numbers <= BOUND, largest.shape
