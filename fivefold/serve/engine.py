"""The engine: token ids in, token ids and log-probabilities out, one step at a time.

The life of a request. `add` checks it and puts it into the queue. A step plans: the scheduler finds
the longest beginning whose keys are in the prefix tree, reserves blocks and cuts the prompt into
chunks that fit the step's budget. The runner computes all tokens of the step, of all requests, in
one forward, and leaves their keys in the pool. After the last prompt token, and after each decoded
one, the sampler draws the next token from a hash of seed and position. The request gets it with its
log-probabilities and the version of the weights, and the caller is told. If blocks run out, the
youngest request goes back to the queue and computes again what the tree does not keep. It finishes
by a stop, by length or by `abort`. Then its blocks go to the prefix tree, and its row to another.

An engine belongs to one thread; `worker` puts one behind an async interface. `step` is the simple
loop's body, `step_overlapped` the other's: it plans a step while the one before runs.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.models.transformer import Transformer
from fivefold.serve.account import adapt_drafts, count_accepted, record_routing
from fivefold.serve.batch import Batch, Part, map_keys
from fivefold.serve.config import EngineConfig
from fivefold.serve.execute import Executor, Outcome
from fivefold.serve.pool import CachePool
from fivefold.serve.request import (
    FinishReason,
    QueueFullError,
    Request,
    RequestError,
    SamplingParams,
    TokenLogprob,
    check_prompt,
)
from fivefold.serve.runner import FusedRunner, Runner
from fivefold.serve.scheduler import Scheduler
from fivefold.serve.stable_runner import StableRunner
from fivefold.serve.statistics import Statistics
from fivefold.serve.weights import check_weights, copy_weights

PauseMode = Literal["abort", "in_place", "retract"]


class Engine:
    """Serves one model on one device; see the module docstring."""

    def __init__(self, model: Transformer, config: EngineConfig | None = None) -> None:
        """Allocate the pool for `model`, whose weights the engine shares.

        Raises:
            ConfigError: speculation without an MTP layer.
        """
        self.model, self.config = model, config or EngineConfig()
        if self.config.draft_tokens and model.mtp is None:
            raise ConfigError(
                expected="a model with an MTP layer for `draft_tokens` above 0",
                found="`num_nextn_predict_layers` of 0",
                fix="Set `draft_tokens` to 0",
            )
        weight = model.lm_head.weight
        self.pool = CachePool(model.config, self.config, weight.dtype, weight.device)
        whole = self.config.pool_blocks * self.config.block_tokens
        self.context_tokens = min(model.config.max_position_embeddings, whole)
        self.scheduler = Scheduler(self.config, self.context_tokens)
        self.statistics = Statistics()
        self.runner: Runner = (StableRunner if self.config.deterministic else FusedRunner)(
            model, self.pool
        )
        table, size = self.scheduler.table, self.config.block_tokens
        self._executor = Executor(self.runner, table, size, self.pool.device)
        self._requests: dict[str, Request] = {}
        self._arrivals = 0
        self._paused = False
        self._in_flight: tuple[Batch, Future[Outcome]] | None = None
        self._drawn_rows: dict[Request, int] = {}
        self._thread: ThreadPoolExecutor | None = None

    @property
    def version(self) -> int:
        """Version of the weights."""
        return self.scheduler.version

    @property
    def is_paused(self) -> bool:
        """Do steps do nothing until `proceed`?"""
        return self._paused

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        rid: str | None = None,
        stops: Callable[[Sequence[int]], bool] | None = None,
        on_token: Callable[[Request, int], None] | None = None,
        on_finish: Callable[[Request], None] | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> Request:
        """Queue a request; it moves when the engine steps.

        Raises:
            RequestError: an empty or too long prompt, ids that the model does not have, settings
                without meaning, or a name in use.
            QueueFullError: as many requests wait as the engine is willing to hold.
        """
        params = params or SamplingParams()
        params.check(self.model.config.vocab_size)
        room = self.context_tokens - (params.max_new_tokens > 0)
        check_prompt(prompt, room, self.model.config.vocab_size)
        if len(self.scheduler.waiting) >= self.config.most_waiting:
            raise QueueFullError(
                expected=f"at most {self.config.most_waiting} waiting requests",
                found=f"{len(self.scheduler.waiting)}",
                fix="Try again later, or raise `most_waiting`",
            )
        self._arrivals += 1
        rid = rid if rid is not None else f"request-{self._arrivals}"
        if rid in self._requests:
            raise RequestError(
                expected="a name that no request in the engine has",
                found=repr(rid),
                fix="Choose another `rid`, or abort the first",
            )
        request = Request(rid, tuple(prompt), params, stops, on_token, on_finish, priority, salt)
        request.arrival = self._arrivals
        request.seed = self._arrivals if params.seed is None else params.seed
        request.limit = min(params.max_new_tokens, self.context_tokens - len(prompt))
        request.tokens = list(prompt)
        request.draft_limit = self.config.draft_tokens
        self._requests[rid] = request
        self.scheduler.add(request)
        return request

    def abort(self, rid: str | None = None) -> int:
        """End one request, or all, with what it has; returns how many there were."""
        chosen = [r for name, r in self._requests.items() if rid is None or name == rid]
        for request in chosen:
            self._finish(request, "abort")
        return len(chosen)

    def step(self) -> bool:
        """Plan, run and account for one step; False: there was nothing to do."""
        assert self._in_flight is None, "the overlapped loop is in the middle of a step"
        batch = self._plan()
        if batch is not None:
            self._account(batch, self._executor.run(batch))
        return batch is not None

    def step_overlapped(self) -> bool:
        """Plan and start a step, then account for the one before; False: nothing is left.

        Tokens that are not known yet are planned for as `in_flight`. With speculation, whose steps
        add an unknown number of tokens, this is `step`.
        """
        if self.config.draft_tokens:
            return self.step()
        before, self._in_flight = self._in_flight, None
        batch = self._plan()
        if batch is not None:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "fivefold-forward")
            self._in_flight = batch, self._thread.submit(self._executor.run, batch)
        if before is not None:
            self._account(before[0], before[1].result())
        return batch is not None or before is not None

    def settle(self) -> None:
        """Wait for a step that the overlapped loop has started, and account for it."""
        if self._in_flight is not None:
            (batch, future), self._in_flight = self._in_flight, None
            self._account(batch, future.result())

    def run_until_idle(self, *, overlaps: bool = False) -> None:
        """Step until every request has finished, or none can move because of a pause."""
        step = self.step_overlapped if overlaps else self.step
        while step():
            pass

    def close(self) -> None:
        """Settle, and end the thread of the overlapped loop."""
        self.settle()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def pause(self, mode: PauseMode) -> None:
        """Stop stepping. Running requests are aborted, keep their keys, or go back to the queue."""
        self.settle()
        self._paused = True
        if mode == "abort":
            self.abort()
        elif mode == "retract":
            for request in list(self.scheduler.running):
                self.scheduler.retract(request)

    def proceed(self) -> None:
        """Undo `pause`."""
        self._paused = False

    def flush_cache(self) -> bool:
        """Forget all kept prefixes; False, and nothing happens, while requests hold keys."""
        self.settle()
        if self.scheduler.running:
            return False
        self.scheduler.tree.flush()
        return True

    @torch.no_grad()
    def update_weights(
        self, weights: Mapping[str, Tensor] | None, version: int | None = None
    ) -> int:
        """Replace all weights between two steps, or none; returns the new version.

        `weights` is a state dict of the model; None: the caller has changed the shared model in
        place, and has not stepped since (see `Runner.refresh`). Running requests go on with the
        keys that they have; `pause("retract")` before it makes them compute anew. Prefixes of other
        weights are never found again.

        Raises:
            MismatchError: a name is missing or unknown, or a shape differs: the old weights serve.
            ConfigError: a version that is not above the present one.
        """
        version = self.version + 1 if version is None else version
        if version <= self.version:
            raise ConfigError(
                expected=f"a version above {self.version}",
                found=str(version),
                fix="Count versions upwards",
            )
        if weights is not None:
            check_weights(self.model, weights)
        self.settle()
        if weights is not None:
            copy_weights(self.model, weights)
        self.runner.refresh()
        for request in self.scheduler.running:
            request.kv_version = -1
        self.scheduler.version = version
        self.scheduler.tree.flush()
        return version

    def load(self) -> dict[str, int]:
        """Return what a router wants to know: requests, blocks, counters, version."""
        return self.scheduler.load()

    def check(self) -> None:
        """Assert every invariant; cheap when idle."""
        self.scheduler.check()
        held = {*self.scheduler.waiting, *self.scheduler.running}
        assert held == set(self._requests.values()), "a request is lost"

    def _plan(self) -> Batch | None:
        """Turn the scheduler's parts into a batch; None: nothing to do."""
        parts = [] if self._paused else self.scheduler.plan()
        if not parts:
            return None
        ids: list[int] = []
        rows: dict[Request, int] = {}
        drawn = 0
        for part in parts:
            request = part.request
            known = request.tokens[part.begin : part.end]
            # The one token in flight is row i of the step before; drafts are filled in later.
            if len(known) + part.drafts < part.size:
                known.append(-1 - self._drawn_rows[request])
            ids += known + [0] * part.drafts
            if part.draws:
                request.in_flight = 1
                rows[request] = drawn
                drawn += len(part.drawn_places)
        self._drawn_rows = rows
        table, size, device = self.scheduler.table, self.config.block_tokens, self.pool.device
        keys = map_keys(parts, table, size, self.runner.most_decoded, device)
        return Batch(parts, ids, self.version, keys)

    def _account(self, batch: Batch, outcome: Outcome) -> None:
        """Give requests what a step has found."""
        self.statistics.count_step(len(batch.ids))
        for i, part in enumerate(batch.parts):
            if part.request.finish is None:
                self._account_part(batch, part, outcome, i)
        if self.config.draft_tokens:
            self._seed_drafts(batch, outcome)

    def _account_part(self, batch: Batch, part: Part, outcome: Outcome, i: int) -> None:
        request = part.request
        if request.params.returns_routing:
            record_routing(part, outcome.routing, self.context_tokens)
        request.prompt_logprobs.update(zip(part.scored, outcome.scores[i], strict=True))
        if request.row >= 0 and request.is_unpublished and request.computed >= len(request.prompt):
            self.scheduler.publish(request)
        if part.draws:
            drawn, drafts = outcome.tokens[i], outcome.drafts[i]
            accepted = count_accepted(drafts, drawn)
            if drafts:
                # Keys of rejected drafts are forgotten by moving the counter back.
                request.computed = part.end - len(drafts) + accepted
                request.drafted += len(drafts)
                request.accepted += accepted
                self.statistics.count_drafts(len(drafts), accepted)
                if self.config.adapts_drafts:
                    adapt_drafts(request, accepted, self.config.draft_tokens)
            request.in_flight = 0
            for k in range(accepted + 1):
                self._add_token(request, drawn[k], outcome.logprobs[i][k], batch.version)
                if request.finish is not None:
                    return
        elif not request.limit and part.end >= len(request.prompt):
            self._finish(request, "length")

    def _add_token(self, request: Request, token: int, logprob: TokenLogprob, version: int) -> None:
        request.tokens.append(token)
        request.logprobs.append(logprob)
        request.add_version(version)
        self.statistics.output_tokens += 1
        if request.on_token is not None:
            request.on_token(request, token)
        own = () if request.params.ignore_eos else self.model.config.stop_token_ids
        if token in request.params.stop_ids or token in own:
            request.stopped_by = token
            self._finish(request, "stop")
        elif request.stops is not None and request.stops(request.output):
            self._finish(request, "stop")
        elif len(request.output) >= request.limit:
            self._finish(request, "length")

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish = reason
        del self._requests[request.rid]
        if request.row >= 0:
            # Tokens of which nothing is known (in flight, rejected) leave no keys behind.
            request.computed = min(request.computed, len(request.tokens))
            self.scheduler.release(request)
        elif request in self.scheduler.waiting:
            self.scheduler.waiting.remove(request)
        self.statistics.count_finish(request)
        if request.on_finish is not None:
            request.on_finish(request)

    def _seed_drafts(self, batch: Batch, outcome: Outcome) -> None:
        """Let the MTP layer see the step, and keep where the next drafts begin."""
        seeds = self._executor.seed_drafts(batch, outcome.hidden_TD)
        for part, seed in zip(batch.parts, seeds, strict=True):
            if part.request.row >= 0:
                part.request.draft_seed = seed
