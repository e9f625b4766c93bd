import pytest

from fivefold.models.preset import preset
from fivefold.plan.chain import model_pieces
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.flops import training_flops
from fivefold.plan.hardware import find_hardware
from fivefold.plan.layout import Layout
from fivefold.plan.parameters import count_parameters
from fivefold.plan.piece import Piece, merge_pieces

_PERFECT = find_hardware("h100").model_copy(
    update={
        "matmul_efficiency": 1.0,
        "expert_efficiency": 1.0,
        "attention_efficiency": 1.0,
        "half_rate_rows": 0.0,
    }
)


def _chain(name: str, layout: Layout, **run: object) -> list[Piece]:
    config = preset(name)
    training = TrainingRun.model_validate({"total_tokens": 1, **run})
    return model_pieces(config, training, layout, _PERFECT, Precision())


@pytest.mark.parametrize("name", ["glm5", "glm45", "deepseek_v3", "nano"])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
@pytest.mark.parametrize("recompute", ["none", "feed_forward", "full"])
def test_chain_time_is_the_flops_at_perfect_rates(name: str, stage: str, recompute: str) -> None:
    chain = _chain(name, Layout(gpus=1), stage=stage, recompute=recompute)
    flops = training_flops(preset(name), 4096, stage=stage, recompute=recompute)  # pyright: ignore[reportArgumentType]

    seconds = sum(piece.seconds for piece in chain)
    assert seconds * _PERFECT.peak_flops == pytest.approx(4096 * flops.total)


@pytest.mark.parametrize("name", ["glm5", "glm45", "glm47_flash", "nano"])
def test_chain_holds_every_matrix_and_one_copy_of_the_embedding(name: str) -> None:
    chain = _chain(name, Layout(gpus=1))
    matrices = sum(part.matrices for part in count_parameters(preset(name)).parts)
    held = sum(piece.dense + piece.experts + piece.table for piece in chain)

    assert held == matrices + preset(name).vocab_size * preset(name).hidden_size


def test_chain_expert_ranks_divide_experts_only() -> None:
    alone = _chain("glm5", Layout(gpus=64))[10]
    shared = _chain("glm5", Layout(gpus=64, expert=64))[10]

    assert shared.experts == alone.experts / 64
    assert shared.dense == alone.dense


def test_chain_tensor_ranks_repeat_the_latents() -> None:
    alone = _chain("glm5", Layout(gpus=8))[10]
    shared = _chain("glm5", Layout(gpus=8, tensor=8))[10]

    assert alone.dense / 8 < shared.dense < alone.dense / 2
    assert shared.activation_bytes == alone.activation_bytes / 8


def test_chain_context_ranks_expand_the_whole_row_when_dense() -> None:
    def seconds(context: int, stage: str) -> float:
        layout = Layout(gpus=8, context=context)
        return context * _chain("glm5", layout, stage=stage, context_tokens=131_072)[10].seconds

    free = find_hardware("h100").peak_flops
    extra = (seconds(8, "dense") - seconds(1, "dense")) * free / 131_072
    up = 2 * 64 * (192 + 256) * 512
    # Three passes over seven more shares of the row; the rest is the gathering itself.
    assert extra > 3 * 7 * up
    assert seconds(8, "sparse") - seconds(1, "sparse") < seconds(8, "dense") - seconds(1, "dense")


def test_merge_adds_everything_up() -> None:
    chain = _chain("nano", Layout(gpus=1))
    merged = merge_pieces(chain)

    assert merged.seconds == pytest.approx(sum(piece.seconds for piece in chain))
    assert merged.streams == 3
    assert merged.table == 3 * 2048 * 128
