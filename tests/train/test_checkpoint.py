"""Resume state: whole or not there, the last two kept, damage and full disks named."""

from pathlib import Path

import pytest
import torch
from tiny_model import build
from torch.distributed.checkpoint.api import CheckpointException

from fivefold.errors import CorruptFileError, DivergenceError, StorageError
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.train import checkpoint
from fivefold.train.checkpoint import load_state, save_state, saved_steps
from fivefold.train.config import GradientConfig
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.train.progress import Progress, count_skipped
from fivefold.train.step import StepResult

TINY = preset("nano", num_hidden_layers=2, n_routed_experts=4, num_experts_per_tok=2)


def make(deviation: float = 0.08) -> tuple[Transformer, HybridOptimizer]:
    model = build(TINY, deviation=deviation)
    return model, HybridOptimizer(model.named_parameters(), TINY, OptimizerConfig())


def test_saved_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = make()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    optimizer.step(1e-3)
    save_state(tmp_path, 7, model, optimizer, {"step": 7})
    other, other_optimizer = make(deviation=0.3)
    assert load_state(tmp_path, other, other_optimizer) == {"step": 7}
    for mine, theirs in ((model, other), (optimizer, other_optimizer)):
        state, loaded = mine.state_dict(), theirs.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_last_two_states_are_kept_and_partial_ones_ignored(tmp_path: Path) -> None:
    model, optimizer = make()
    assert load_state(tmp_path, model, optimizer) is None
    for step in (1, 2, 3):
        save_state(tmp_path, step, model, optimizer, {"step": step})
    (tmp_path / "step_00000009.partial").mkdir()
    assert saved_steps(tmp_path) == [2, 3]
    assert load_state(tmp_path, model, optimizer) == {"step": 3}


@pytest.mark.parametrize("file", ["progress.json", ".metadata", "__0_0.distcp"])
def test_damaged_state_is_named(tmp_path: Path, file: str) -> None:
    model, optimizer = make()
    save_state(tmp_path, 1, model, optimizer, {"step": 1})
    path = tmp_path / "step_00000001" / file
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(CorruptFileError, match="step_00000001"):
        load_state(tmp_path, model, optimizer)


def test_full_disk_keeps_the_states_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    save_state(tmp_path, 1, model, optimizer, {"step": 1})

    def fail(*_: object, **__: object) -> None:
        raise CheckpointException("save failed", {0: (OSError("No space left on device"), None)})  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint.dcp, "save", fail)
    with pytest.raises(StorageError):
        save_state(tmp_path, 2, model, optimizer, {"step": 2})
    assert saved_steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_too_many_skipped_steps_in_a_row_stop_training() -> None:
    config = GradientConfig(total_tokens=100, nonfinite_limit=2)
    skipped = StepResult({"loss_nats": 1.0}, {}, 0.1, True, [])
    good = StepResult({"loss_nats": 1.0}, {}, 0.1, False, [])
    progress = Progress()
    for result in (skipped, skipped, good, skipped, skipped):
        count_skipped(progress, result, config)
    assert progress.skipped == 4
    with pytest.raises(DivergenceError, match="3 up to step"):
        count_skipped(progress, skipped, config)
