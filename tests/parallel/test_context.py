"""Context parallelism against one process: losses, gradients, steps, ties, masks, bytes."""

import functools
from collections.abc import Callable

import pytest
import torch
from spread_training import train_spread
from team import Team
from test_batch import make_rows
from test_zero import EXACT, check_equal, train_alone
from tiny_training import Mode, Setting, copies, furthest, make_model, rows_of_step
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.errors import ConfigError
from fivefold.models.mla import LatentAttention
from fivefold.models.transformer import Block, Transformer
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.context.across import ContextParallel, check_attention
from fivefold.parallel.context.assignment import Order
from fivefold.parallel.context.attention import Form
from fivefold.parallel.context.exchange import gathered_bytes, swapped_bytes
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.train.batch import make_batch

pytestmark = pytest.mark.dist

CP2 = ParallelConfig(cp=2)
CP4 = ParallelConfig(cp=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
def test_five_steps_equal_one_process(pair: Team, mode: Mode) -> None:
    setting = Setting(mode=mode, microbatch_rows=4)
    wanted = train_alone(setting, 5)
    for found in pair.run(train_spread, setting, CP2, 5):
        check_equal(found, wanted, EXACT)


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        pytest.param(
            "dense",
            ParallelConfig(cp=4, cp_form="heads", ranks_per_node=2),
            marks=pytest.mark.slow,
        ),
        pytest.param("sparse", CP4, marks=pytest.mark.slow),
        ("warm_up", ParallelConfig(dp=2, cp=2, cp_order="zigzag")),
        ("sparse", ParallelConfig(dp=2, cp=2, cp_form="heads")),
    ],
)
def test_five_steps_of_four_ranks_equal_one_process(
    four: Team, mode: Mode, config: ParallelConfig
) -> None:
    setting = Setting(mode=mode, microbatch_rows=4)
    wanted = train_alone(setting, 5)
    for found in four.run(train_spread, setting, config, 5):
        check_equal(found, wanted, EXACT)


def gradients_of(
    world: World, setting: Setting, config: ParallelConfig | None, rows: Rows, change: str = ""
) -> dict[str, Tensor]:
    """Return the loss and all gradients of one batch; no sharing: the oracle."""
    model = make_model(setting)
    CHANGES[change](model)
    if config is None:
        loss = setting.objective(model, rows, rows, 0).total
        group = Mesh().group("cp")
    else:
        mesh = Mesh(config, world)
        group = mesh.group("cp")
        loss = setting.objective(model, rows, rows, 0, ContextParallel(mesh, model)).total
    loss.backward()
    found = {"loss": all_reduce(loss.detach().clone(), group)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = all_reduce(parameter.grad, group)
    return found


def tie_scores(model: Transformer) -> None:
    """Give all keys one score, so that the lowest places win: those of the first shards."""
    for name, parameter in model.named_parameters():
        if "weights_proj" in name:
            parameter.data.zero_()


def recompute(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = True


def share_selections(model: Transformer) -> None:
    """Let the second layer use the selection of the first."""
    for module in model.modules():
        if isinstance(module, LatentAttention) and module.layer == 1:
            module.indexer = None


def narrow(model: Transformer) -> None:
    model.set_index_topk(4)


CHANGES: dict[str, Callable[[Transformer], None]] = {
    "": lambda model: None,
    "ties": tie_scores,
    "recompute": recompute,
    "shared_selection": share_selections,
    "narrow": narrow,
}


@functools.cache
def wanted_gradients(setting: Setting, rows_key: str, change: str) -> dict[str, Tensor]:
    return gradients_of(ALONE, setting, None, ROWS[rows_key], change)


ROWS = {
    "short": rows_of_step(0),
    # 21 tokens do not divide among ranks or chunks.
    "odd": make_rows([[1, 20], [22], [1, 1, 1, 9], [2, 13]], 22),
    # Documents alone, no mask and no padding.
    "whole": make_rows([[33], [33]], 33),
    # Longer than a mask may be.
    "long": make_rows([[700, 1361]], 2061),
}


@pytest.mark.parametrize(
    ("mode", "rows", "change", "form"),
    [
        ("dense", "short", "", "latents"),
        ("dense", "odd", "", "latents"),
        ("dense", "odd", "", "heads"),
        ("dense", "odd", "narrow", "latents"),
        ("dense", "odd", "narrow", "heads"),
        ("dense", "whole", "", "latents"),
        ("warm_up", "odd", "", "latents"),
        ("warm_up", "odd", "", "heads"),
        ("warm_up", "whole", "", "latents"),
        ("warm_up", "short", "shared_selection", "latents"),
        ("sparse", "short", "ties", "latents"),
        ("sparse", "short", "ties", "heads"),
        ("sparse", "odd", "", "latents"),
        ("sparse", "odd", "", "heads"),
        ("sparse", "whole", "ties", "latents"),
        ("sparse", "short", "recompute", "latents"),
        ("sparse", "short", "shared_selection", "heads"),
    ],
)
def test_loss_and_gradients_equal_one_process(
    four: Team, mode: Mode, rows: str, change: str, form: Form
) -> None:
    setting = Setting(mode=mode)
    wanted = wanted_gradients(setting, rows, change)
    for found in four.run(
        gradients_of, setting, ParallelConfig(cp=4, cp_form=form), ROWS[rows], change
    ):
        assert furthest(found, wanted)[0] <= EXACT


@pytest.mark.parametrize(
    ("change", "form"),
    [
        pytest.param("", "latents", marks=pytest.mark.slow),
        pytest.param("", "heads", marks=pytest.mark.slow),
        ("narrow", "latents"),
    ],
)
def test_rows_longer_than_a_mask_equal_one_process(pair: Team, change: str, form: Form) -> None:
    setting = Setting()
    wanted = wanted_gradients(setting, "long", change)
    for found in pair.run(
        gradients_of, setting, ParallelConfig(cp=2, cp_form=form), ROWS["long"], change
    ):
        assert furthest(found, wanted)[0] <= EXACT


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
def test_order_of_tokens_changes_nothing(pair: Team, order: Order) -> None:
    setting = Setting(mode="sparse")
    wanted = wanted_gradients(setting, "odd", "ties")
    for found in pair.run(
        gradients_of, setting, ParallelConfig(cp=2, cp_order=order), ROWS["odd"], "ties"
    ):
        assert furthest(found, wanted)[0] <= EXACT


def hidden_states(world: World, setting: Setting, config: ParallelConfig) -> Tensor:
    """Return the hidden states of all tokens, in the microbatch's order."""
    mesh = Mesh(config, world)
    model = make_model(setting)
    context = ContextParallel(mesh, model)
    rows = ROWS["odd"]
    batch = make_batch(rows, 0, "cpu", keeps_padding=True)
    around = context.surroundings(model, batch.positions_BT, batch.documents_BT, indexer="sparse")
    with torch.no_grad():
        own = model(around.shard.take(batch.ids_BT), around=around).hidden_BTD
        return around.shard.gather(own)


def test_ranks_agree_bitwise_and_forms_too(four: Team) -> None:
    setting = Setting(mode="sparse", dtype="float32")
    runs = [
        four.run(
            hidden_states, setting, ParallelConfig(cp=4, cp_form="heads", ranks_per_node=nodes)
        )
        for nodes in (None, 1, 2, 4)
    ]
    flat = runs[0][0]
    # What travels in one phase or two is the same.
    assert all(torch.equal(found, flat) for run in runs for found in run)


def probe(world: World, config: ParallelConfig | None) -> list[Tensor]:
    """Return totals, counts and masses of attention of every layer."""
    mesh = Mesh() if config is None else Mesh(config, world)
    model = make_model(Setting())
    model.set_index_topk(4)
    rows = ROWS["odd"]
    batch = make_batch(rows, 0, "cpu", keeps_padding=True)
    ids = batch.ids_BT
    if config is None:
        around = model.surroundings(batch.positions_BT, batch.documents_BT, indexer="probe")
    else:
        context = ContextParallel(mesh, model)
        around = context.surroundings(
            model, batch.positions_BT, batch.documents_BT, indexer="probe"
        )
        ids = around.shard.take(ids)
    with torch.no_grad():
        losses = model(ids, around=around).index_losses
    told = []
    for loss in losses:
        assert loss.mass is not None
        parts = [loss.total, loss.queries.double(), *loss.mass]
        told.append(all_reduce(torch.stack(parts), mesh.group("cp")))
    return told


def test_probe_counts_every_query_once(pair: Team) -> None:
    wanted = probe(ALONE, None)
    for found in pair.run(probe, CP2):
        for mine, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(mine, theirs, rtol=EXACT, atol=0)


def look_alone(world: World, setting: Setting) -> bool:
    """Is the model, once it shares tokens, still the same under its own surroundings?"""
    model = make_model(setting)
    ids = torch.arange(2 * 16).view(2, 16)
    with torch.no_grad():
        before = model(ids).hidden_BTD
        ContextParallel(Mesh(ParallelConfig(cp=world.size), world), model)
        return torch.equal(model(ids).hidden_BTD, before) and bool(copies(model.state_dict()))


def test_model_runs_alone_as_before(pair: Team) -> None:
    assert all(pair.run(look_alone, Setting(mode="sparse")))


class OtherAttention(LatentAttention):
    """Stands for what another axis makes of attention."""


@pytest.mark.parametrize(
    ("change", "message"), [("heads", "found 3 heads"), ("class", "found OtherAttention")]
)
def test_attention_that_cannot_be_shared_is_refused(change: str, message: str) -> None:
    model = make_model(Setting())
    attention = next(m for m in model.modules() if isinstance(m, LatentAttention))
    if change == "heads":
        attention.heads = 3
    else:
        attention.__class__ = OtherAttention
    with pytest.raises(ConfigError, match=message):
        check_attention(attention, "heads", 2)


def bytes_of_a_batch(world: World, setting: Setting, config: ParallelConfig) -> dict[str, float]:
    """Return what this rank sent for the attention of one batch, forward and backward."""
    mesh = Mesh(config, world)
    model = make_model(setting)
    rows = rows_of_step(0)
    context = ContextParallel(mesh, model)
    setting.objective(model, rows, rows, 0, context).total.backward()
    return {operation: mesh.ledger.sent_bytes(operation) for operation, _ in mesh.ledger.totals}


@pytest.mark.parametrize("form", ["latents", "heads"])
def test_bytes_of_a_batch_are_those_of_the_formulas(four: Team, form: Form) -> None:
    setting = Setting(dtype="float32")
    shape = make_model(setting).config
    assert shape.kv_lora_rank is not None
    # 8 rows of 16 tokens divide evenly; three layers, and the MTP layer at two depths.
    tokens, calls = 8 * 16, 3 + 2
    width = shape.kv_lora_rank + shape.qk_rope_head_dim
    gathered = calls * gathered_bytes(tokens, width, 4, 4)
    width = shape.num_attention_heads * (shape.qk_head_dim + shape.v_head_dim)
    swapped = calls * swapped_bytes(tokens // 4, width, 4, 4)
    for found in four.run(bytes_of_a_batch, setting, ParallelConfig(cp=4, cp_form=form)):
        assert found["all_gather"] == found["reduce_scatter"] == gathered
        # There, and back again for the gradients.
        assert found.get("all_to_all", 0.0) == 2 * swapped * (form == "heads")
