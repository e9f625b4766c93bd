"""What the adapter takes from torch, name by name: an upgrade that moves any of it fails here."""

import inspect
import random

import pytest
import torch
from torch.distributed.pipelining import schedules, stage

from fivefold.errors import MismatchError
from fivefold.parallel.pipeline.runtime import check_torch, lower_row, plain_steps
from fivefold.parallel.pipeline.safe_wait import find_safe_waits
from fivefold.plan.make_schedule import make_schedule
from fivefold.plan.schedule import Action


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_this_torch_is_the_pinned_one() -> None:
    check_torch(torch.__version__)
    with pytest.raises(MismatchError, match=r"torch 2\.14\.0"):
        check_torch("2.14.0+cpu")


def test_actions_are_as_the_tables_write_them() -> None:
    action = schedules._Action(3, schedules._ComputationType.from_str("I"), 2)
    assert str(action) == "3I2"
    kinds = {kind.name: kind.value for kind in schedules._ComputationType}
    assert kinds["FULL_BACKWARD"] == "B"
    assert kinds["REDUCE_GRAD"] == "REDUCE_GRAD"


def test_runtime_calls_what_the_stage_overrides() -> None:
    source = inspect.getsource(schedules._PipelineScheduleRuntime._step_microbatches)
    for call in (
        "stage.forward_one_chunk(",
        "stage.backward_one_chunk(",
        "stage.backward_weight_one_chunk(",
        "stage.perform_reduce_grad(",
        "stage.get_fwd_send_ops(mb_index)",
        "stage.get_bwd_send_ops(mb_index)",
        "stage.get_fwd_recv_ops(mb_index)",
        "stage.get_bwd_recv_ops(mb_index)",
        ".set_local_fwd_input(",
        ".set_local_bwd_input(",
        "stage.get_local_bwd_output(mb_index)",
        "self._initialize_stages(",
        "self._maybe_compute_loss(",
    ):
        assert call in source, f"torch's runtime no longer has {call}"


def test_signatures_are_those_written_against() -> None:
    base = stage._PipelineStageBase
    assert parameters(base.__init__)[1:] == [
        "submodule", "stage_index", "num_stages", "device", "group", "dw_builder",
    ]  # fmt: skip
    assert parameters(base.forward_one_chunk)[1:] == [
        "fwd_chunk_id", "args", "kwargs", "save_forward_output",
    ]  # fmt: skip
    assert parameters(base.backward_one_chunk)[1:] == [
        "bwd_chunk_id", "loss", "full_backward", "last_backward",
    ]  # fmt: skip
    assert parameters(base.backward_weight_one_chunk)[1:] == ["bwd_chunk_id", "last_backward"]
    assert parameters(base.perform_reduce_grad)[1:] == ["grad_scale_factor"]
    assert parameters(schedules._add_send_recv) == [
        "compute_actions",
        "stage_to_rank",
        "num_stages",
    ]
    abstract = {"_prepare_forward_infra", "_prepare_backward_infra", "_create_grad_recv_info"}
    assert base.__abstractmethods__ == abstract


def test_runs_of_one_stage_end_with_a_reduction() -> None:
    schedule = make_schedule("interleaved", 2, 4, chunks=3)
    row = [str(action) for action in lower_row(schedule.actions[0]) if action[1].name != "FORWARD"]
    group = ["4B{0}", "4B{1}", "4REDUCE_GRAD", "2B{0}", "2B{1}", "2REDUCE_GRAD"]
    group += ["0B{0}", "0B{1}", "0REDUCE_GRAD"]
    assert row == [cell.format(*pair) for pair in ((0, 1), (2, 3)) for cell in group]


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half"])
def test_every_send_has_its_receive_in_the_same_order(name: str) -> None:
    schedule = make_schedule(name, 4, 6)
    rows = {rank: lower_row(row) for rank, row in enumerate(schedule.actions)}
    homes = schedule.rank_of_stage
    lowered = schedules._add_send_recv(rows, lambda s: homes[s], schedule.stages)
    sent, received = {}, {}
    for rank, row in lowered.items():
        for s, kind, microbatch, _ in row:
            step = {"SEND_F": 1, "RECV_F": -1, "SEND_B": -1, "RECV_B": 1}.get(kind.value)
            if step is None:
                continue
            peer = homes[s + step]
            if kind.value.startswith("SEND"):
                sent.setdefault((rank, peer), []).append((s + step, microbatch))
            else:
                received.setdefault((peer, rank), []).append((s, microbatch))
    assert sent == received


def play(lowered, homes, stages: int, rank: int, waits, order: random.Random) -> int:
    """Run the rows in a random order that messages allow; return how many waits came too early."""
    places = dict.fromkeys(lowered, 0)
    done: set[tuple[str, int, int]] = set()
    early = 0
    while any(places[r] < len(row) for r, row in lowered.items()):
        ready = []
        for r, row in lowered.items():
            if places[r] == len(row):
                continue
            s, kind, m = row[places[r]]
            need = {"F": ("SEND_F", s - 1, m), "B": ("SEND_B", s + 1, m), "I": ("SEND_B", s + 1, m)}
            before = need.get(kind)
            is_local = before is None or not 0 <= before[1] < stages or homes[before[1]] == r
            if is_local or before in done:
                ready.append(r)
        r = order.choice(ready)
        s, kind, m = lowered[r][places[r]]
        if r == rank and kind in "FBI":
            for sent in waits.get(Action(s, kind, m), []):
                step, receive = (1, "RECV_F") if sent.kind == "F" else (-1, "RECV_B")
                early += (receive, sent.stage + step, sent.microbatch) not in done
        done.add((kind, s, m))
        places[r] += 1
    return early


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half"])
def test_sends_are_waited_for_only_after_the_receiver_has_asked(name: str) -> None:
    schedule = make_schedule(name, 4, 8)
    rows = {rank: lower_row(row) for rank, row in enumerate(schedule.actions)}
    homes = schedule.rank_of_stage
    lowered = plain_steps(schedules._add_send_recv(rows, lambda s: homes[s], schedule.stages))
    for rank, row in lowered.items():
        waits = find_safe_waits(lowered, rank, schedule)
        for seed in range(5):
            assert not play(lowered, homes, schedule.stages, rank, waits, random.Random(seed))
        sends = sum(step.kind.startswith("SEND") for step in row)
        # What remains for the step's end: the last messages of each direction.
        assert sends - sum(map(len, waits.values())) <= sends // 2
