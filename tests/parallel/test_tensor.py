"""The parts of a model on tensor ranks: what each rank holds, the loss, attention, refusals."""

import pytest
import torch
from team import CaseError, Team
from tiny_training import TINY, Setting, make_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fivefold.errors import ConfigError
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED, chunked_loss_and_logprobs
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.fsdp import shard_weights
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.parallel.part import cut_of
from fivefold.parallel.tensor import SplitModel, check_divides
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.parallel.vocabulary import vocabulary_loss_and_logprobs

pytestmark = pytest.mark.dist

WORDS = 99
"""Odd, so that ranks hold different numbers of rows."""


def make_loss_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(23, 16, generator=generator, dtype=dtype)
    weight = torch.randn(WORDS, 16, generator=generator, dtype=dtype)
    labels = torch.randint(0, WORDS, (23,), generator=generator)
    labels[[2, 9, 10]] = IGNORED
    return hidden, weight, labels, torch.rand(23, generator=generator).to(dtype)


class NothingAsWide(TorchDispatchMode):
    """Fails where a tensor with the whole vocabulary as a dim is made."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            assert WORDS not in result.shape, f"{func} makes {tuple(result.shape)}"
        return result


def vocabulary_case(world: World, dtype: torch.dtype, weighted: bool) -> list[Tensor]:
    group = Mesh(ParallelConfig(tp=world.size), world).group("tp")
    hidden, weight, labels, factors = make_loss_inputs(dtype)
    cut = cut_of("lm_head.weight", tuple(weight.shape), ParallelConfig(tp=world.size), world.rank)
    assert cut is not None
    own = cut.of(weight).clone().requires_grad_()
    hidden.requires_grad_()
    with NothingAsWide():
        total, logprobs = vocabulary_loss_and_logprobs(
            hidden,
            own,
            labels,
            factors if weighted else None,
            chunk_tokens=8,
            begin=cut.begin,
            group=group,
        )
        (total * 0.5).backward()
    assert hidden.grad is not None
    assert own.grad is not None
    return [total.detach(), logprobs, hidden.grad, own.grad]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_vocabulary_loss_equals_the_whole_one(
    four: Team, dtype: torch.dtype, limit: float, weighted: bool
) -> None:
    hidden, weight, labels, factors = make_loss_inputs(dtype)
    hidden.requires_grad_()
    weight.requires_grad_()
    total, logprobs = chunked_loss_and_logprobs(
        hidden, weight, labels, factors if weighted else None, chunk_tokens=8
    )
    (total * 0.5).backward()
    results = four.run(vocabulary_case, dtype, weighted)
    for found, found_logprobs, _, _ in results:
        torch.testing.assert_close(found, total.detach(), rtol=limit, atol=limit)
        torch.testing.assert_close(found_logprobs, logprobs, rtol=limit, atol=limit)
    d_hidden = torch.stack([result[2] for result in results]).sum(0)
    d_weight = torch.cat([result[3] for result in results])
    torch.testing.assert_close(d_hidden, hidden.grad, rtol=limit, atol=limit)
    torch.testing.assert_close(d_weight, weight.grad, rtol=limit, atol=limit)


def make_biased(mode: str) -> Transformer:
    """Return the tiny model with biases around its attention."""
    torch.manual_seed(7)
    model = make_model(Setting(mode="sparse" if mode == "probe" else "dense"))
    shape = model.config.model_copy(update={"attention_bias": True})
    biased = Transformer(shape).double()
    biased.load_state_dict(model.state_dict(), strict=False)
    for name, parameter in biased.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return biased


def run_forward(model: Transformer, mode: str, forced: list[Tensor] | None) -> list[Tensor]:
    ids = torch.arange(24).view(2, 12)
    documents = torch.tensor([[0] * 7 + [1] * 5, [0] * 10 + [-1] * 2])
    indexer = "probe" if mode == "probe" else "frozen"
    positions = torch.arange(12).expand(2, -1)
    around = model.surroundings(positions, documents, indexer=indexer)
    out = model(ids, around=around, forced_routing=forced)
    measured = [number for loss in out.index_losses for number in (loss.total, *(loss.mass or ()))]
    chosen = [routing.chosen_TA for routing in out.routing]
    return [out.hidden_BTD.detach(), *(number.detach() for number in measured), *chosen]


def forward_case(world: World, mode: str, forced: list[Tensor] | None) -> list[Tensor]:
    split = SplitModel(make_biased(mode), Mesh(ParallelConfig(tp=world.size), world))
    return run_forward(split.model, mode, forced)


@pytest.mark.parametrize("mode", ["probe", "replay"])
def test_forward_equals_one_process(pair: Team, mode: str) -> None:
    forced = None
    if mode == "replay":
        forced = [torch.tensor([[layer, 7 - layer]] * 24) for layer in range(2)]
    wanted = run_forward(make_biased(mode), mode, forced)
    assert len(wanted) == (1 + 4 * 3 + 2 if mode == "probe" else 3)
    for found in pair.run(forward_case, mode, forced):
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def whole_again(world: World, config: ParallelConfig) -> bool:
    """Look at the plain model twice, then take parts from what the first training has left."""
    mesh, plain = Mesh(config, world), make_model(Setting())
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    for _ in range(2):
        split = SplitModel(plain, mesh)
        if config.fsdp > 1:
            shard_weights(split, torch.float64)
        for _ in range(2):
            assert all(value.is_meta for value in plain.parameters())
            split.materialise()
            seen = plain.state_dict()
            names = [name for name, value in seen.items() if not value.is_meta]
            assert all(torch.equal(seen[name], before[name]) for name in names)
            assert mesh.is_first or not any(name in split.shapes for name in names)
            assert not mesh.is_first or names == list(before)
            split.release()
        split.materialise()
        split.close()
    return True


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(tp=4),
        ParallelConfig(dp=2, tp=2, ep=2),
        ParallelConfig(fsdp=2, tp=2, ep=2),
        ParallelConfig(fsdp=4, ep=2),
    ],
)
def test_parts_make_the_whole(four: Team, config: ParallelConfig) -> None:
    assert four.run(whole_again, config) == [True] * 4


def test_ranks_that_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="`tp` to divide the model's 4 attention heads"):
        check_divides(TINY, ParallelConfig(tp=3))
    with pytest.raises(ConfigError, match="`ep` to divide the model's 8 routed experts"):
        check_divides(TINY, ParallelConfig(dp=3, ep=3))


def test_another_zero_stage_is_refused() -> None:
    split = SplitModel(make_model(Setting()), Mesh(ParallelConfig(zero=0), ALONE))
    with pytest.raises(ConfigError, match=r"`parallel.zero` 1 or 2 with `tp` or `ep`"):
        SplitRows(split)


def test_a_part_without_parameters_cuts_none() -> None:
    assert SplitModel(make_model(Setting()), Mesh(), {}).cuts == {}


def other_rows(world: World, tokens: int, extra: int) -> None:
    split = SplitModel(make_model(Setting()), Mesh(ParallelConfig(tp=2), world))
    split.model(torch.arange(tokens)[None] + extra * world.rank)


def test_other_rows_on_a_tensor_rank_name_it(pair: Team) -> None:
    with pytest.raises(CaseError, match=r"1 of 12 tokens on rank 1, or other tokens"):
        pair.run(other_rows, 12, 1)


def test_rows_that_ranks_cannot_cut_are_refused(pair: Team) -> None:
    with pytest.raises(CaseError, match="rows of tokens that 2 tensor ranks divide; found 11"):
        pair.run(other_rows, 11, 0)
