"""Running a table of `plan` on torch's pipelining runtime: the one file that touches it.

From torch come the interpreter of lowered tables and the pass that adds sends and receives in an
order that cannot hang. Around them are ours: the tables, in memory (`plan.make_schedule`); stages
whose shapes come with each microbatch instead of being inferred once; receive buffers and sends
that end when they are done (`message`); deferred weight gradients through `dw_builder`
(`weight_store`); gradients that change owner with the stage (`program.GradientKeeper`).

All of torch's names used here begin with an underscore, so torch is pinned and `check_torch`
refuses another version; `tests/parallel/pipeline/test_contract.py` shows what changed in one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining.schedules import (
    _Action,
    _add_send_recv,
    _ComputationType,
    _PipelineScheduleRuntime,
)
from torch.distributed.pipelining.stage import _PipelineStageBase

from fivefold.errors import MismatchError
from fivefold.parallel.mesh import Group
from fivefold.parallel.pipeline.message import Mailbox, MessageLedger, Outbox
from fivefold.parallel.pipeline.program import GradientKeeper, Message, StageProgram
from fivefold.parallel.pipeline.safe_wait import Step, find_safe_waits
from fivefold.parallel.pipeline.weight_store import WeightGradientStore
from fivefold.plan.schedule import Action, Schedule, find_faults

TORCH_VERSION = "2.13"
"""The version whose private interface this file is written for."""


class PipelineRuntime:
    """The stages of one rank and the table that they run by."""

    def __init__(
        self,
        schedule: Schedule,
        programs: Mapping[int, StageProgram],
        *,
        group: Group,
        device: torch.device,
        stores: Mapping[int, WeightGradientStore] | None = None,
        keeper: GradientKeeper | None = None,
        carries_gradient: bool = True,
    ) -> None:
        """Prepare the stages that the schedule places on this rank.

        Args:
            schedule: a valid table for the ranks of `group`.
            programs: this rank's stages by their number.
            group: the pipeline's ranks, in order.
            device: where tensors live.
            stores: where each stage's deferred weight gradients go, as `defer_weight_gradients`
                was told; a stage without an entry defers nothing.
            keeper: owner of the gradients; None: they stay in `grad`.
            carries_gradient: do states take gradients back to the stage before? Not where only
                indexers learn.

        Raises:
            MismatchError: another torch than this file is written for.
        """
        check_torch(torch.__version__)
        faults = find_faults(schedule)
        assert not faults, f"schedule {schedule.name}: {'; '.join(faults)}"
        rank = group.rank
        local = [s for s, home in enumerate(schedule.rank_of_stage) if home == rank]
        assert sorted(programs) == local, f"rank {rank} holds stages {local}, not {list(programs)}"
        self.schedule = schedule
        self.stages = {
            stage: _Stage(
                programs[stage],
                stage,
                schedule.stages,
                group,
                device,
                store=(stores or {}).get(stage) or WeightGradientStore(),
                keeper=keeper,
                carries_gradient=carries_gradient,
            )
            for stage in local
        }
        self._runtime = _Runtime(schedule, list(self.stages.values()))
        done = find_safe_waits(self._runtime.steps, rank, schedule)
        for stage, action in ((self.stages[action.stage], action) for action in done):
            outboxes = [(self.stages[sent.stage].outbox, sent) for sent in done[action]]
            stage.finishes[action.kind, action.microbatch] = outboxes

    def step(self, microbatches: Sequence[Any]) -> list[Tensor]:
        """Run forward and backward on all microbatches, whatever the programs take as such.

        Returns the sum of the losses that this rank's stages took, one a microbatch, without
        gradient. Gradients are left in `grad`, or with the keeper.
        """
        expected = self.schedule.microbatches
        assert len(microbatches) == expected, f"{len(microbatches)} microbatches, not {expected}"
        for stage in self.stages.values():
            stage.begin(microbatches)
        self._runtime.run(microbatches)
        for stage in self.stages.values():
            stage.end()
        losses = [stage.losses for stage in self.stages.values()]
        return [torch.stack(shares).sum() for shares in zip(*losses, strict=True)]


def check_torch(version: str) -> None:
    """Refuse a torch whose private pipelining interface may differ.

    Raises:
        MismatchError: not the pinned version.
    """
    if version.split("+")[0].rsplit(".", 1)[0] != TORCH_VERSION:
        raise MismatchError(
            expected=f"torch {TORCH_VERSION}, whose pipelining runtime this adapter is written for",
            found=f"torch {version}",
            fix=f"Install torch {TORCH_VERSION}, or adapt `parallel/pipeline/runtime.py`",
        )


class _Stage(_PipelineStageBase):
    """One stage between torch's runtime and its program."""

    def __init__(
        self,
        program: StageProgram,
        stage_index: int,
        num_stages: int,
        group: Group,
        device: torch.device,
        *,
        store: WeightGradientStore,
        keeper: GradientKeeper | None,
        carries_gradient: bool,
    ) -> None:
        # torch looks at a module for FSDP2 alone, to gather whole stages; ours gather blocks.
        module = torch.nn.Module()
        super().__init__(
            module, stage_index, num_stages, device, group.handle, dw_builder=store.take
        )
        self.program, self.store, self.keeper = program, store, keeper
        self.carries_gradient = carries_gradient
        self.ledger = MessageLedger()
        self.inputs, self.gradients = (Mailbox(self.ledger, device) for _ in range(2))
        self.outbox = Outbox(self.ledger, group)
        self.losses: list[Tensor] = []
        self.microbatches: Sequence[Any] = ()
        self.finishes: dict[tuple[str, int], list[tuple[Outbox, Action]]] = {}

    def begin(self, microbatches: Sequence[Any]) -> None:
        """Start a step."""
        self.microbatches, self.losses = microbatches, []

    def end(self) -> None:
        """Finish a step; everything that came and went must have gone."""
        self.outbox.wait_all()
        self.inputs.check_idle()
        self.gradients.check_idle()
        self.store.check_idle()
        assert not self.fwd_cache, f"stage {self.stage_index} has forwards without backwards"
        self.microbatches = ()

    def forward_one_chunk(
        self,
        fwd_chunk_id: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        save_forward_output: bool = True,
    ) -> tuple[Tensor, ...]:
        """Run F; the result is for a next stage on the same rank."""
        self._finish_sends("F", fwd_chunk_id)
        states = () if self.is_first else self.inputs.take(fwd_chunk_id)
        states = tuple(state.requires_grad_(self.carries_gradient) for state in states)
        result = self.program(self.microbatches[fwd_chunk_id], states)
        self.fwd_cache[fwd_chunk_id] = (result, list(states))
        shares = [loss.detach() for loss in result.losses]
        none = torch.zeros((), device=self.device)
        self.losses.append(torch.stack(shares).sum() if shares else none)
        return result.states

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """Run B, or I and leave W to `dw_runner`."""
        if self.keeper is not None:
            self.keeper.acquire(self.stage_index)
        self._finish_sends("B" if full_backward else "I", bwd_chunk_id)
        result, states = self.fwd_cache.pop(bwd_chunk_id)
        roots: list[Tensor] = list(result.losses)
        slopes: list[Tensor | None] = [None] * len(roots)
        if not self.is_last and self.carries_gradient:
            roots += result.states
            slopes += self.gradients.take(bwd_chunk_id)
        if roots:
            torch.autograd.backward(roots, slopes)
        if self.carries_gradient:
            self.bwd_cache[bwd_chunk_id] = tuple(state.grad for state in states)
        assert self.dw_builder is not None, "a stage has a store"
        self.dw_runner[bwd_chunk_id] = self.dw_builder()
        if full_backward:
            self.dw_runner.pop(bwd_chunk_id)()

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Run W."""
        if self.keeper is not None:
            self.keeper.acquire(self.stage_index)
        self.dw_runner.pop(bwd_chunk_id)()

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Hand the gradients to their keeper; losses are shares of the step's, so no factor."""
        if self.keeper is not None:
            self.keeper.release(self.stage_index)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Allocate the states of one microbatch and ask for them."""
        messages = self.program.messages(self.microbatches[fwd_chunk_id])
        buffers = self.inputs.allocate(fwd_chunk_id, messages)
        return [self._receive(buffer, self.stage_index - 1) for buffer in buffers]

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Allocate the gradients of the states sent for one microbatch and ask for them."""
        if not self.carries_gradient:
            return []
        sent = self.fwd_cache[bwd_chunk_id][0].states
        messages = [Message(state.shape, state.dtype) for state in sent]
        buffers = self.gradients.allocate(bwd_chunk_id, messages)
        return [self._receive(buffer, self.stage_index + 1) for buffer in buffers]

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Send the states; nothing is left for torch to send."""
        states = self.fwd_cache[fwd_chunk_id][0].states
        self._send(Action(self.stage_index, "F", fwd_chunk_id), states, self.stage_index + 1)
        return []

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Send the gradients of the received states; nothing is left for torch to send."""
        if self.carries_gradient:
            gradients = self.bwd_cache.pop(bwd_chunk_id)
            action = Action(self.stage_index, "B", bwd_chunk_id)
            self._send(action, _all_there(gradients), self.stage_index - 1)
        return []

    def set_local_fwd_input(self, prev_stage_outputs: Any, mb_index: int) -> None:
        """Take states from the stage before on the same rank."""
        self.inputs.put(mb_index, tuple(state.detach() for state in prev_stage_outputs))

    def get_local_bwd_output(self, mb_index: int) -> tuple[Tensor | None, ...]:
        """Give gradients to the stage before on the same rank."""
        return self.bwd_cache.pop(mb_index) if self.carries_gradient else ()

    def set_local_bwd_input(
        self, next_stage_bwd_outputs: tuple[Tensor | None, ...], mb_index: int
    ) -> None:
        """Take gradients from the stage after on the same rank."""
        if self.carries_gradient:
            self.gradients.put(mb_index, _all_there(next_stage_bwd_outputs))

    def _receive(self, buffer: Tensor, from_stage: int) -> dist.P2POp:
        peer = self._resolve_peer_global_rank(from_stage)
        return dist.P2POp(dist.irecv, buffer, peer, self.group)

    def _send(self, action: Action, tensors: Sequence[Tensor], to_stage: int) -> None:
        self.outbox.send(action, tensors, self.stage_index_to_group_rank[to_stage])

    def _finish_sends(self, kind: str, microbatch: int) -> None:
        for outbox, sent in self.finishes.get((kind, microbatch), ()):
            outbox.wait(sent)

    def _prepare_forward_infra(self, *_: Any, **__: Any) -> None:
        """Prepare nothing: shapes come with the microbatches."""

    def _prepare_backward_infra(self, *_: Any, **__: Any) -> None:
        """Prepare nothing."""

    def _create_grad_recv_info(self, act_send_info: dict) -> tuple:
        """Describe no buffers: they are allocated when asked for."""
        return ()


def _all_there(gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return the gradients of all received states; each of them reaches some loss."""
    there = tuple(gradient for gradient in gradients if gradient is not None)
    assert len(there) == len(gradients), "a state that was received had no use"
    return there


class _Runtime(_PipelineScheduleRuntime):
    """torch's interpreter with our table in place of a generator's."""

    def __init__(self, schedule: Schedule, stages: list[_Stage]) -> None:
        super().__init__(stages, schedule.microbatches, _loss_is_known, scale_grads=False)
        homes = schedule.rank_of_stage
        rows = {rank: lower_row(row) for rank, row in enumerate(schedule.actions)}
        lowered = _add_send_recv(rows, lambda stage: homes[stage], schedule.stages)
        table: dict[int, list[_Action | None]] = {rank: [*row] for rank, row in lowered.items()}
        self._prepare_schedule_with_comms(table, format="compute_comms")
        self.steps = plain_steps(lowered)

    def run(self, microbatches: Sequence[Any]) -> None:
        """Execute this rank's row."""
        for stage in self._stages:
            stage.has_backward = True
        count = len(microbatches)
        self._step_microbatches([()] * count, [{}] * count, [None] * count)

    def _initialize_stages(self, *_: Any, **__: Any) -> None:
        """Infer nothing."""


def _loss_is_known(output: Any, target: Any) -> Tensor:
    """Stand for a loss where torch asks for one; stages take their own."""
    return torch.zeros(())


def plain_steps(lowered: Mapping[int, Sequence[_Action]]) -> dict[int, list[Step]]:
    """Return the lowered rows in plain types."""
    return {
        rank: [Step(stage, kind.value, microbatch) for stage, kind, microbatch, _ in row]
        for rank, row in lowered.items()
    }


def lower_row(row: Sequence[Action]) -> list[_Action]:
    """Translate a rank's actions and end every run of backward pieces of one stage.

    REDUCE_GRAD stands after the last B, I or W of a stage before those of another.
    """
    lowered: list[_Action] = []
    open_stage: int | None = None
    last = max(index for index, action in enumerate(row) if action.kind != "F")
    for index, action in enumerate(row):
        if action.kind != "F":
            if open_stage is not None and open_stage != action.stage:
                lowered.append(_Action(open_stage, _ComputationType.REDUCE_GRAD))
            open_stage = action.stage
        kind = _ComputationType.from_str(action.kind)
        lowered.append(_Action(action.stage, kind, action.microbatch))
        if index == last:
            lowered.append(_Action(action.stage, _ComputationType.REDUCE_GRAD))
    return lowered
