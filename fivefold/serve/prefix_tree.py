"""A radix tree over token blocks: which beginnings have their keys in the pool already?

Every node holds a run of whole blocks; children are found by their first block's tokens. The roots
are keyed by a salt, which holds the weight version, so that keys of other weights are never found.
The tree owns the blocks of its nodes. A running request locks the path to its node; leaves without
a lock are evicted, the least recently used first. Source of the idea: SGLang (Zheng et al. 2024),
section 3; block-aligned splits as in mini-sglang.

Surprise: locks are counted on every node of a path, so that a split only has to copy the count.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from fivefold.serve.pool import BlockPool

Salt = tuple[Hashable, ...]


@dataclass(eq=False)
class Node:
    """A run of blocks below its parent; a root has none."""

    tokens: tuple[int, ...]
    blocks: list[int]
    parent: "Node | None"
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    locks: int = 0
    last_used: int = 0


class PrefixTree:
    """Finds, adds, locks and evicts runs of blocks."""

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        """Keep blocks of `pool`, which get back what is evicted."""
        self._pool = pool
        self._size = block_tokens
        self._roots: dict[Salt, Node] = {}
        self._clock = 0
        self.kept_blocks = 0
        self.evicted_blocks = 0

    def find(self, salt: Salt, tokens: Sequence[int]) -> tuple[Node, list[int]]:
        """Return the node that ends the longest known beginning of whole blocks, and its blocks.

        The node holds exactly that beginning: a longer run is split.
        """
        self._clock += 1
        node = self._roots.setdefault(salt, Node((), [], None))
        blocks: list[int] = []
        while True:
            begin = len(blocks) * self._size
            child = node.children.get(tuple(tokens[begin : begin + self._size]))
            if child is None:
                return node, blocks
            shared = self._shared_blocks(child, tokens, begin)
            if shared < len(child.blocks):
                child = self._split(child, shared)
            child.last_used = self._clock
            blocks += child.blocks
            node = child

    def insert(
        self, salt: Salt, tokens: Sequence[int], blocks: Sequence[int]
    ) -> tuple[Node, list[int], list[int]]:
        """Own the whole blocks of `tokens`; return the node, all its blocks, and duplicates.

        The duplicates are those of `blocks` whose tokens the tree held in blocks of its own: the
        caller gives them back and goes on with the tree's.
        """
        whole = len(tokens) // self._size
        node, known = self.find(salt, tokens[: whole * self._size])
        pairs = zip(blocks, known, strict=False)
        duplicates = [given for given, held in pairs if given != held]
        fresh = list(blocks[len(known) : whole])
        if fresh:
            run = tuple(tokens[len(known) * self._size : whole * self._size])
            child = Node(run, fresh, node, last_used=self._clock)
            node.children[run[: self._size]] = child
            self.kept_blocks += len(fresh)
            node = child
        return node, known + fresh, duplicates

    def lock(self, node: Node) -> None:
        """Keep a node and all above it."""
        self._count(node, 1)

    def unlock(self, node: Node) -> None:
        """Undo one `lock`."""
        self._count(node, -1)

    def _count(self, node: Node | None, by: int) -> None:
        while node is not None:
            node.locks += by
            assert node.locks >= 0, "a node was unlocked twice"
            node = node.parent

    def evict(self, count: int) -> int:
        """Give back at least `count` blocks if so many are unlocked; returns how many."""
        heap = [
            (leaf.last_used, id(leaf), leaf) for leaf in self._nodes() if self._is_free_leaf(leaf)
        ]
        heapq.heapify(heap)
        freed = 0
        while heap and freed < count:
            _, _, leaf = heapq.heappop(heap)
            freed += len(leaf.blocks)
            self._remove(leaf)
            parent = leaf.parent
            if parent is not None and self._is_free_leaf(parent):
                heapq.heappush(heap, (parent.last_used, id(parent), parent))
        self.evicted_blocks += freed
        self._drop_empty_roots()
        return freed

    def flush(self) -> int:
        """Evict all that is unlocked; returns the blocks."""
        return self.evict(self.kept_blocks)

    def blocks(self) -> list[int]:
        """Return all blocks that the tree owns."""
        return [block for node in self._nodes() for block in node.blocks]

    def check(self) -> None:
        """Assert every invariant of the tree; for idle moments and tests."""
        total = 0
        for salt, root in self._roots.items():
            assert root.parent is None, salt
            assert not root.tokens, salt
        for node in self._nodes():
            total += len(node.blocks)
            assert node.blocks, "an empty node"
            assert len(node.tokens) == len(node.blocks) * self._size, "tokens and blocks differ"
            parent = node.parent
            assert parent is not None, "a run without a parent"
            assert parent.children.get(node.tokens[: self._size]) is node, "a lost child"
            assert parent.locks >= node.locks, "a locked node below fewer locks"
        assert total == self.kept_blocks, "the count of kept blocks is wrong"

    def _shared_blocks(self, child: Node, tokens: Sequence[int], begin: int) -> int:
        """Count the leading blocks of `child` that `tokens` continue with from `begin`."""
        size = self._size
        shared = 1
        while shared < len(child.blocks):
            low, high = shared * size, (shared + 1) * size
            if child.tokens[low:high] != tuple(tokens[begin + low : begin + high]):
                break
            shared += 1
        return shared

    def _split(self, node: Node, blocks: int) -> Node:
        """Cut a node after `blocks`; returns the new upper part."""
        cut = blocks * self._size
        parent = node.parent
        assert parent is not None, "a root has no blocks to split"
        upper = Node(node.tokens[:cut], node.blocks[:blocks], parent)
        upper.locks, upper.last_used = node.locks, node.last_used
        parent.children[upper.tokens[: self._size]] = upper
        node.tokens, node.blocks, node.parent = node.tokens[cut:], node.blocks[blocks:], upper
        upper.children[node.tokens[: self._size]] = node
        return upper

    def _is_free_leaf(self, node: Node) -> bool:
        return not node.children and not node.locks and node.parent is not None

    def _remove(self, leaf: Node) -> None:
        assert leaf.parent is not None, "a root is not evicted"
        del leaf.parent.children[leaf.tokens[: self._size]]
        self._pool.give(leaf.blocks)
        self.kept_blocks -= len(leaf.blocks)

    def _drop_empty_roots(self) -> None:
        empty = [salt for salt, root in self._roots.items() if not root.children and not root.locks]
        for salt in empty:
            del self._roots[salt]

    def _nodes(self) -> list[Node]:
        """Return all nodes but the roots."""
        found: list[Node] = []
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            found.append(node)
            stack += node.children.values()
        return found
