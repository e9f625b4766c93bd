"""Carry out a planned step: drafts, forward, draws. No scheduling, no requests changed.

This is the part that an overlapped loop runs on another thread while the next step is planned, so
that it reads of a batch only what planning has finished with. Speculation verifies deterministic
drafts: the token after each place is drawn as without drafts, and a draft counts if it is the token
drawn. That accepts a draft with the target's probability of it, which is rejection sampling for a
proposal that is certain (Leviathan et al. 2023, section 2.3), and makes the output the same, token
for token, as without speculation.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fivefold.serve.batch import Batch, Part, map_keys
from fivefold.serve.request import DraftSeed, TokenLogprob
from fivefold.serve.runner import Runner
from fivefold.serve.sampler import choose

_SCORED_ROWS = 128
"""Prompt positions whose logits exist at a time."""


@dataclass(eq=False)
class Outcome:
    """What a step found out."""

    tokens: list[list[int]]
    """Tokens drawn after each part: none, one, or one more than there were drafts."""
    logprobs: list[list[TokenLogprob]]
    drafts: list[list[int]]
    """Drafts that each part verified."""
    scores: list[list[float]]
    """Raw log-probabilities of each part's `scored` prompt positions."""
    hidden_TD: Tensor
    routing: list[Tensor]


class Executor:
    """Runs batches one after the other on one runner."""

    def __init__(
        self,
        runner: Runner,
        table: NDArray[np.int64],
        block_tokens: int,
        device: torch.device,
    ) -> None:
        """Read blocks of draft tokens from `table`."""
        self._runner, self._table, self._block_tokens = runner, table, block_tokens
        self._device = device
        self._drawn_M: Tensor | None = None

    @torch.inference_mode()
    def run(self, batch: Batch) -> Outcome:
        """Compute one step."""
        drafts = self._draft(batch)
        ids_T = self._ids(batch, drafts)
        hidden_TD, routing = self._runner.forward(ids_T, batch.keys)
        tokens, logprobs = self._draw(batch, hidden_TD)
        scores = [self._score(part, hidden_TD) for part in batch.parts]
        return Outcome(tokens, logprobs, drafts, scores, hidden_TD, routing)

    def _ids(self, batch: Batch, drafts: list[list[int]]) -> Tensor:
        """Fill in drafts, and tokens that the step before has drawn."""
        ids = list(batch.ids)
        for part, drafted in zip(batch.parts, drafts, strict=True):
            last = part.at + part.size
            ids[last - len(drafted) : last] = drafted
        ids_T = torch.tensor(ids, device=self._device)
        if min(ids) < 0:
            assert self._drawn_M is not None, "the step before has drawn nothing"
            unknown = ids_T < 0
            ids_T[unknown] = self._drawn_M[-1 - ids_T[unknown]]
        return ids_T

    def _draw(
        self, batch: Batch, hidden_TD: Tensor
    ) -> tuple[list[list[int]], list[list[TokenLogprob]]]:
        """Draw the token after each place that wants one."""
        tokens: list[list[int]] = []
        logprobs: list[list[TokenLogprob]] = []
        places = [place for part in batch.parts for place in part.drawn_places]
        draws = [draw for part in batch.parts for draw in part.draws_at()]
        if not places:
            return [[] for _ in batch.parts], [[] for _ in batch.parts]
        choice = choose(self._runner.logits(hidden_TD[places]), draws)
        self._drawn_M = choice.token_M
        sampled, raw = choice.sampled_M.tolist(), choice.raw_M.tolist()
        tops = [
            tuple(zip(*pair, strict=True))
            for pair in zip(choice.top_ids, choice.top_raw, strict=True)
        ]
        rows = list(map(TokenLogprob, sampled, raw, tops))
        drawn, at = choice.token_M.tolist(), 0
        for part in batch.parts:
            count = len(part.drawn_places)
            tokens.append(drawn[at : at + count])
            logprobs.append(rows[at : at + count])
            at += count
        return tokens, logprobs

    def _score(self, part: Part, hidden_TD: Tensor) -> list[float]:
        """Return the raw log-probability of each scored prompt token."""
        scores: list[float] = []
        first = part.at - part.begin - 1
        for begin in range(part.scored.start, part.scored.stop, _SCORED_ROWS):
            end = min(begin + _SCORED_ROWS, part.scored.stop)
            raw_MW = self._runner.logits(hidden_TD[first + begin : first + end]).log_softmax(-1)
            target_M = torch.tensor(part.request.prompt[begin:end], device=self._device)
            scores += raw_MW.gather(1, target_M[:, None])[:, 0].tolist()
        return scores

    def _draft(self, batch: Batch) -> list[list[int]]:
        """Continue each part's seed by as many drafts as were planned, greedily."""
        drafts: list[list[int]] = [[] for _ in batch.parts]
        states: list[Tensor] = []
        active = [i for i, part in enumerate(batch.parts) if part.drafts]
        for i in active:
            seed = batch.parts[i].request.draft_seed
            assert seed is not None, "drafts were planned without a seed"
            drafts[i].append(seed.token)
            states.append(seed.state_D)
        for depth in range(1, max((part.drafts for part in batch.parts), default=0)):
            kept = [j for j, i in enumerate(active) if batch.parts[i].drafts > depth]
            active, states = [active[j] for j in kept], [states[j] for j in kept]
            parts = []
            for row, i in enumerate(active):
                part = batch.parts[i]
                begin = part.end - part.drafts - 2 + depth
                parts.append(Part(part.request, begin, begin + 1, row, part.row))
            keys = map_keys(parts, self._table, self._block_tokens, 1, self._device)
            next_T = torch.tensor([drafts[i][-1] for i in active], device=self._device)
            state_TD = self._runner.draft(torch.stack(states), next_T, keys)
            states = list(state_TD)
            best = self._runner.logits(state_TD).argmax(-1).tolist()
            for i, token in zip(active, best, strict=True):
                drafts[i].append(token)
        return drafts

    @torch.inference_mode()
    def seed_drafts(self, batch: Batch, hidden_TD: Tensor) -> list[DraftSeed | None]:
        """Run the MTP layer over a step whose tokens are known; return the seed after each part.

        Places whose next token is not known (rejected drafts) compute something that nothing reads:
        the next step writes over their keys.
        """
        next_ids: list[int] = []
        ends: list[int] = []
        for part in batch.parts:
            tokens = part.request.tokens
            known = tokens[part.begin + 1 : part.end + 1]
            next_ids += known + [0] * (part.size - len(known))
            ends.append(part.at + max(len(known) - 1, 0))
        state_TD = self._runner.draft(
            hidden_TD, torch.tensor(next_ids, device=self._device), batch.keys
        )
        drawing = [i for i, part in enumerate(batch.parts) if part.draws]
        seeds: list[DraftSeed | None] = [None] * len(batch.parts)
        if drawing:
            end_MD = state_TD[[ends[i] for i in drawing]]
            best = self._runner.logits(end_MD).argmax(-1).tolist()
            for i, token, state_D in zip(drawing, best, end_MD, strict=True):
                seeds[i] = DraftSeed(token, state_D)
        return seeds
