"""The prefix tree against a plain set of known beginnings."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from fivefold.serve.pool import BlockPool
from fivefold.serve.prefix_tree import Node, PrefixTree

SIZE = 2
SALT = (0, "")

TOKENS = st.lists(st.integers(0, 2), max_size=12)
ACTIONS = st.one_of(
    st.tuples(st.just("insert"), TOKENS),
    st.tuples(st.just("find"), TOKENS),
    st.tuples(st.just("lock"), TOKENS),
    st.tuples(st.just("unlock"), st.integers(0, 5)),
    st.tuples(st.just("evict"), st.integers(1, 6)),
)


class Model:
    """What the tree should know: the block of every known whole beginning."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], int] = {}

    def longest(self, tokens: list[int]) -> list[int]:
        blocks: list[int] = []
        for end in range(SIZE, len(tokens) + 1, SIZE):
            block = self.known.get(tuple(tokens[:end]))
            if block is None:
                break
            blocks.append(block)
        return blocks


@settings(max_examples=150, derandomize=True)
@given(st.lists(ACTIONS, max_size=30))
def test_tree_knows_what_a_dictionary_of_beginnings_knows(actions: list) -> None:
    pool = BlockPool(40)
    tree = PrefixTree(pool, SIZE)
    model = Model()
    locked: list[tuple[Node, list[int]]] = []
    for action, value in actions:
        if action == "insert":
            count = len(value) // SIZE
            if pool.free < count:
                continue
            mine = pool.take(count)
            _, blocks, duplicates = tree.insert(SALT, value, mine)
            assert sorted({*blocks, *duplicates} & set(mine)) == sorted(mine)
            pool.give(duplicates)
            for place, block in enumerate(blocks):
                known = model.known.setdefault(tuple(value[: (place + 1) * SIZE]), block)
                assert known == block
        elif action == "find":
            assert tree.find(SALT, value)[1] == model.longest(value)
        elif action == "lock":
            node, blocks = tree.find(SALT, value)
            tree.lock(node)
            locked.append((node, blocks))
        elif action == "unlock" and locked:
            tree.unlock(locked.pop(value % len(locked))[0])
        elif action == "evict":
            before = pool.free
            freed = tree.evict(value)
            assert pool.free == before + freed
            left = set(tree.blocks())
            model.known = {key: block for key, block in model.known.items() if block in left}
            for _, blocks in locked:
                assert set(blocks) <= left
        tree.check()
        pool.check(tree.blocks())
        assert sorted(tree.blocks()) == sorted(model.known.values())
    for node, _ in locked:
        tree.unlock(node)
    tree.flush()
    assert pool.free == pool.total
    assert not tree.kept_blocks


def filled() -> tuple[BlockPool, PrefixTree]:
    pool = BlockPool(20)
    return pool, PrefixTree(pool, SIZE)


def test_least_recently_used_leaf_goes_first() -> None:
    pool, tree = filled()
    for tokens in ([0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]):
        _, _, duplicates = tree.insert(SALT, tokens, pool.take(2))
        pool.give(duplicates)
    tree.find(SALT, [0, 0, 1, 1])
    tree.evict(1)
    assert len(tree.find(SALT, [0, 0, 2, 2])[1]) == 1
    assert len(tree.find(SALT, [0, 0, 1, 1])[1]) == 2


def test_a_parent_outlives_its_children() -> None:
    pool, tree = filled()
    tree.insert(SALT, [0, 0, 1, 1, 2, 2], pool.take(3))
    tree.find(SALT, [0, 0])
    tree.evict(1)
    assert len(tree.find(SALT, [0, 0, 1, 1, 2, 2])[1]) == 1


def test_other_salts_are_never_found() -> None:
    pool, tree = filled()
    tree.insert((0, ""), [1, 1, 2, 2], pool.take(2))
    assert tree.find((1, ""), [1, 1, 2, 2])[1] == []
    assert tree.find((0, "other"), [1, 1, 2, 2])[1] == []


def test_a_lost_block_is_noticed() -> None:
    pool, tree = filled()
    tree.insert(SALT, [1, 1, 2, 2], pool.take(2))
    pool.take(1)
    with pytest.raises(AssertionError, match="lost"):
        pool.check(tree.blocks())


def test_unlocking_twice_is_noticed() -> None:
    pool, tree = filled()
    node, _, _ = tree.insert(SALT, [1, 1], pool.take(1))
    tree.lock(node)
    tree.unlock(node)
    with pytest.raises(AssertionError, match="twice"):
        tree.unlock(node)
