"""Who computes what in the next step, and on whose memory.

One budget of tokens a step covers decoded tokens, drafts and prompt chunks alike. Requests that
decode come first, then running prompts, then the queue, by priority and arrival. When blocks run
out, prefixes that nobody uses are evicted; then the youngest running request goes back to the
queue, and what it had computed stays in the prefix tree as long as there is room.

Surprise: a request whose prompt begins like one that is being computed right now waits a step for
it and finds the shared blocks in the tree: the members of a group compute their prompt once.
"""

from bisect import insort

import numpy as np
from numpy.typing import NDArray

from fivefold.serve.batch import Part
from fivefold.serve.config import EngineConfig
from fivefold.serve.pool import BlockPool
from fivefold.serve.prefix_tree import Node, PrefixTree, Salt
from fivefold.serve.request import Request


def _turn(request: Request) -> tuple[int, int]:
    return -request.priority, request.arrival


class Scheduler:
    """Queue, running requests, blocks and prefixes; knows nothing of tensors on a device."""

    def __init__(self, config: EngineConfig, context_tokens: int) -> None:
        """Schedule for a model with contexts of `context_tokens`."""
        self.config = config
        self.pool = BlockPool(config.pool_blocks)
        self.tree = PrefixTree(self.pool, config.block_tokens)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.version = 0
        self.preemptions = 0
        whole = -(-context_tokens // config.block_tokens)
        self.table: NDArray[np.int64] = np.zeros(
            (config.most_running, min(whole, config.pool_blocks)), dtype=np.int64
        )
        self._free_rows = list(range(config.most_running))[::-1]

    def add(self, request: Request) -> None:
        """Put a request into the queue, at its turn."""
        insort(self.waiting, request, key=_turn)

    def plan(self) -> list[Part]:
        """Choose the parts of the next step and reserve their blocks; empty: nothing to do."""
        parts: list[Part] = []
        left = self.config.step_tokens
        decoding = [request for request in self.running if self._decodes(request)]
        for request in decoding:
            if request.row >= 0 and self._reserve(request):
                left -= self._add_part(parts, request, left)
        for request in self.running:
            if left and request.remaining > 1:
                left -= self._add_part(parts, request, left)
        if left:
            self._admit(parts, left)
        return parts

    def _decodes(self, request: Request) -> bool:
        return request.remaining == 1 and not (request.in_flight and request.is_closing)

    def _add_part(self, parts: list[Part], request: Request, left: int) -> int:
        """Plan as many tokens of a request as the budget allows; returns how many."""
        drafts = 0
        if request.remaining == 1:
            drafts = min(request.wanted_drafts, left - 1)
            drafts = min(
                drafts, len(request.blocks) * self.config.block_tokens - len(request.tokens)
            )
        known = len(request.tokens) + request.in_flight
        begin = request.computed
        end = min(known, begin + left) + drafts
        at = parts[-1].at + parts[-1].size if parts else 0
        draws = end - drafts == known and request.limit > 0
        part = Part(request, begin, end, at, request.row, drafts, draws)
        if request.scores_prompt:
            first = max(request.params.prompt_logprobs_begin or 0, 1, begin + 1)
            part.scored = range(first, min(len(request.prompt), end + 1))
        parts.append(part)
        request.computed = end
        return part.size

    def _reserve(self, request: Request) -> bool:
        """Give a decoding request the blocks of its next token, and of its drafts if there is room.

        False: it was the youngest, and went back to the queue itself.
        """
        size = self.config.block_tokens
        known = len(request.tokens) + request.in_flight
        while not self._grow(request, -(-known // size)):
            victim = max(self.running, key=_turn)
            self.retract(victim)
            self.preemptions += 1
            if victim is request:
                return False
        if request.wanted_drafts:
            self._grow(request, -(-(known + request.wanted_drafts) // size))
        return True

    def _grow(self, request: Request, blocks: int) -> bool:
        """Let a request have `blocks` blocks, evicting prefixes; False: there are not so many."""
        missing = min(blocks, self.table.shape[1]) - len(request.blocks)
        if missing <= 0:
            return True
        if self.pool.free < missing:
            self.tree.evict(missing - self.pool.free)
        if self.pool.free < missing:
            return False
        had = len(request.blocks)
        request.blocks += self.pool.take(missing)
        self.table[request.row, had : had + missing] = request.blocks[had:]
        return True

    def _admit(self, parts: list[Part], left: int) -> None:
        """Start queued requests while rows, blocks and budget last."""
        for request in list(self.waiting):
            if not left or not self._free_rows:
                return
            node, blocks = self._known_beginning(request)
            if self._neighbour_computes(request, len(blocks)):
                continue
            self.tree.lock(node)
            request.row = self._free_rows.pop()
            request.kept_node, request.kept_blocks = node, len(blocks)
            request.blocks = blocks
            self.table[request.row, : len(blocks)] = blocks
            known = len(request.tokens) + request.in_flight
            if not self._grow(request, -(-known // self.config.block_tokens)):
                self._free(request)
                return
            self.waiting.remove(request)
            insort(self.running, request, key=_turn)
            request.kv_version = self.version
            request.computed = request.kept_blocks * self.config.block_tokens
            if not request.was_admitted:
                request.was_admitted, request.cached_tokens = True, request.computed
            left -= self._add_part(parts, request, left)

    def _known_beginning(self, request: Request) -> tuple[Node, list[int]]:
        """Find the shared blocks that a request can use; its last token is always computed."""
        usable = len(request.tokens) - 1 if self.config.shares_prefixes else 0
        if request.in_flight:
            usable += 1
        if request.scores_prompt and len(request.prompt_logprobs) < request.scored_tokens:
            usable = min(usable, max(request.params.prompt_logprobs_begin or 0, 1) - 1)
        whole = usable // self.config.block_tokens * self.config.block_tokens
        return self.tree.find(self._salt(request), request.tokens[:whole])

    def _neighbour_computes(self, request: Request, known_blocks: int) -> bool:
        """Is the block after the known ones about to be made by a running prompt?"""
        if not self.config.shares_prefixes or request.scores_prompt:
            return False
        end = (known_blocks + 1) * self.config.block_tokens
        if end >= len(request.tokens):
            return False
        return any(
            other.is_unpublished
            and other.salt == request.salt
            and len(other.prompt) >= end
            and other.kv_version == self.version
            and other.tokens[:end] == request.tokens[:end]
            for other in self.running
        )

    def publish(self, request: Request) -> None:
        """Share the whole blocks of a computed prompt while the request goes on."""
        request.is_unpublished = False
        if not self.config.shares_prefixes or request.kv_version != self.version:
            return
        whole = len(request.prompt) // self.config.block_tokens
        if whole <= request.kept_blocks:
            # After a preemption the tree may hold more than the prompt already.
            return
        tokens = request.tokens[: whole * self.config.block_tokens]
        node, blocks, duplicates = self.tree.insert(self._salt(request), tokens, request.blocks)
        self.tree.lock(node)
        self._unlock(request)
        request.kept_node, request.kept_blocks = node, len(blocks)
        request.blocks[: len(blocks)] = blocks
        self.table[request.row, : len(blocks)] = blocks
        self.pool.give(duplicates)

    def retract(self, request: Request) -> None:
        """Send a running request back to the queue; what it computed may stay in the tree."""
        self.release(request)
        request.preemptions += 1
        self.add(request)

    def release(self, request: Request) -> None:
        """Take rows and blocks from a running request, keeping its whole blocks as a prefix."""
        self.running.remove(request)
        if self.config.shares_prefixes and request.kv_version == self.version:
            tokens = request.tokens[: request.computed]
            whole = len(tokens) // self.config.block_tokens
            _, _, duplicates = self.tree.insert(self._salt(request), tokens, request.blocks)
            self.pool.give(duplicates)
            self.pool.give(request.blocks[whole:])
            self._unlock(request)
            request.blocks, request.kept_blocks = [], 0
        self._free(request)

    def _free(self, request: Request) -> None:
        """Give back a row, the blocks that the tree does not own, and the lock."""
        self.pool.give(request.blocks[request.kept_blocks :])
        self._unlock(request)
        self._free_rows.append(request.row)
        request.blocks, request.kept_blocks = [], 0
        request.row, request.computed, request.kv_version = -1, 0, -1
        request.is_unpublished, request.draft_seed = True, None

    def _unlock(self, request: Request) -> None:
        if request.kept_node is not None:
            self.tree.unlock(request.kept_node)
            request.kept_node = None

    def _salt(self, request: Request) -> Salt:
        return self.version, request.salt

    def load(self) -> dict[str, int]:
        """Return how many requests and blocks there are of each kind."""
        pool, tree = self.pool, self.tree
        return {
            "waiting_requests": len(self.waiting),
            "running_requests": len(self.running),
            "used_blocks": pool.total - pool.free - tree.kept_blocks,
            "kept_blocks": tree.kept_blocks,
            "total_blocks": pool.total,
            "preemptions": self.preemptions,
            "evicted_blocks": tree.evicted_blocks,
            "version": self.version,
        }

    def check(self) -> None:
        """Assert that every block is owned once, and the tree's invariants."""
        self.tree.check()
        held = [block for r in self.running for block in r.blocks[r.kept_blocks :]]
        self.pool.check([*held, *self.tree.blocks()])
        for request in self.running:
            row = self.table[request.row, : len(request.blocks)]
            assert row.tolist() == request.blocks, "the table differs from the request's blocks"
