"""Overrides, validation reports and hashes of configs."""

from typing import Annotated, Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import (
    Config,
    Runtime,
    Unhashed,
    apply_overrides,
    config_to_json,
    hash_config,
    parse_literal,
    validate,
)
from fivefold.errors import ConfigError


class Leaf(Config):
    size: int = 3
    """Size."""
    rate: float = 0.5
    """Rate."""
    threads: Runtime[int] = pydantic.Field(default=1, gt=0)
    """Threads."""


class Point(Config):
    weight: float
    """Weight."""
    start: int = 0
    """Start."""


class Tree(Config):
    name: str = "oak"
    """Name."""
    leaf: Leaf = Leaf()
    """A group."""
    spare: Leaf | None = None
    """An optional group."""
    leaves: tuple[Leaf, ...] = (Leaf(), Leaf(size=4))
    """A list of groups."""
    points: dict[str, tuple[Point, ...]] = pydantic.Field(default_factory=dict)
    """Groups under free names."""
    contexts: tuple[int, ...] = (256, 512)
    """A list of values."""
    free: dict[str, Any] = pydantic.Field(default_factory=lambda: {"theta": 1e4})
    """Free names."""
    cache: Runtime[str] = "/tmp"
    """Cache."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Tree":
        if self.leaf.size > 100:
            raise ConfigError(expected="a small leaf", found=str(self.leaf.size), fix="Shrink it")
        return self


def changed(*overrides: str, tree: Tree | None = None) -> Tree:
    return apply_overrides({"tree": tree or Tree()}, overrides)["tree"]


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        changed(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e6", 2_000_000),
        ("1E3", 1000),
        ("2.5", 2.5),
        ("3.0", 3.0),
        ("1e-3", 0.001),
        ("-4", -4),
        ("true", True),
        ("True", True),
        ("None", None),
        ("null", None),
        ("[1,2]", [1, 2]),
        ('"12"', "12"),
        ("a word", "a word"),
        ("[/x]", "[/x]"),
    ],
)
def test_parse_literal_reads_json_and_falls_back_to_text(text: str, value: object) -> None:
    parsed = parse_literal(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_override_sets_values_at_every_depth() -> None:
    tree = changed(
        "tree.name=elm",
        "tree.leaf.size=2e1",
        "tree.leaf.rate=1",
        "tree.contexts=[128]",
        "tree.leaves.1.size=9",
        'tree.spare={"size": 5}',
        "tree.free.alpha=[1,2]",
    )
    assert (tree.name, tree.leaf.size, tree.leaf.rate) == ("elm", 20, 1.0)
    assert tree.contexts == (128,)
    assert tree.leaves == (Leaf(), Leaf(size=9))
    assert tree.spare == Leaf(size=5)
    assert tree.free == {"theta": 1e4, "alpha": [1, 2]}


def test_override_sets_one_item_of_a_tuple() -> None:
    assert changed("tree.contexts.1=1024").contexts == (256, 1024)


def test_override_reaches_into_an_optional_group_set_before() -> None:
    assert changed('tree.spare={"size": 5}', "tree.spare.rate=2").spare == Leaf(size=5, rate=2)


def test_override_sets_a_group_under_a_free_name() -> None:
    tree = changed('tree.points.wiki=[{"weight": 2}]', "tree.points.wiki.0.start=7")
    assert tree.points == {"wiki": (Point(weight=2, start=7),)}


def test_override_keeps_the_value_after_the_first_equals_sign() -> None:
    assert changed("tree.name=a=b").name == "a=b"


def test_last_of_two_overrides_wins() -> None:
    assert changed("tree.name=elm", "tree.name=fir").name == "fir"


def test_override_leaves_the_given_configs_alone() -> None:
    tree = Tree()
    changed("tree.leaves.0.size=8", "tree.free.theta=1", tree=tree)
    assert tree == Tree()


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("tre.name=x", "Did you mean `tree`"),
        ("tree.nam=x", "Did you mean `name`"),
        ("tree.leaf.sise=1", "Did you mean `size`"),
        ("tree.leaves.0.raet=1", "Did you mean `rate`"),
        ('tree.leaf={"sise": 1}', "Did you mean `size`"),
        ('tree.spare={"sise": 1}', "Did you mean `size`"),
        ('tree.points.wiki=[{"wieght": 1}]', "Did you mean `weight`"),
        ("tree.leaf.zzz=1", "Known here: rate, size, threads"),
        ("tree.contexts.2=1", "Known here: 0, 1"),
        ("tree.points.wiki.0.weight=1", "assign the whole group"),
    ],
)
def test_unknown_key_names_what_is_known_there(override: str, near: str) -> None:
    assert near in message(override)


def test_group_and_value_are_told_apart() -> None:
    assert "a key inside `tree`" in message("tree=3")
    assert "single value 'oak'" in message("tree.name.first=3")
    assert "`tree.leaf`" in message("tree.leaf=3")


@pytest.mark.parametrize("override", ["tree.name", "tree..name=3", "=3", ".=3"])
def test_malformed_override_shows_the_form(override: str) -> None:
    assert "`stage.key=value`" in message(override)


def test_wrong_type_names_path_and_value() -> None:
    text = message("tree.leaf.size=many")
    assert "`tree.leaf.size`" in text
    assert "'many'" in text


def test_validator_message_comes_through_unchanged() -> None:
    assert message("tree.leaf.size=101") == "Expected a small leaf; found 101. Shrink it."


def test_missing_field_is_found_as_nothing() -> None:
    with pytest.raises(ConfigError, match=r"`here\.weight`.*found nothing"):
        validate(Point, {}, where="here")


def test_config_is_frozen_and_strict() -> None:
    with pytest.raises(pydantic.ValidationError):
        Leaf().size = 4  # pyright: ignore[reportAttributeAccessIssue]  # the refusal under test
    with pytest.raises(pydantic.ValidationError):
        Leaf.model_validate({"length": 4})


def test_config_survives_json() -> None:
    tree = changed('tree.points.wiki=[{"weight": 2}]', "tree.leaf.rate=0.1")
    assert Tree.model_validate(config_to_json(tree)) == tree


@pytest.mark.parametrize(
    "override",
    ["tree.cache=/x", "tree.leaf.threads=2", "tree.leaves.1.threads=2"],
)
def test_hash_ignores_runtime_fields_at_any_depth(override: str) -> None:
    assert hash_config(changed(override)) == hash_config(Tree())


def test_hash_ignores_runtime_fields_of_optional_and_named_groups() -> None:
    class Holder(Config):
        spare: Leaf | None = None
        named: dict[str, tuple[Leaf, ...]] = pydantic.Field(default_factory=dict)
        marked: Annotated[Leaf, Unhashed()] = Leaf()

    def holder(threads: int) -> Holder:
        leaf = Leaf(threads=threads)
        return Holder(spare=leaf, named={"a": (leaf,)}, marked=Leaf(size=threads))

    assert hash_config(holder(1)) == hash_config(holder(2))


@pytest.mark.parametrize(
    "override",
    [
        "tree.name=elm",
        "tree.leaf.size=4",
        "tree.leaves.0.rate=1",
        "tree.leaves=[]",
        'tree.spare={"size": 3}',
        'tree.points.wiki=[{"weight": 1}]',
        "tree.contexts.0=128",
        "tree.contexts=[512,256]",
        "tree.free.theta=1e5",
        "tree.free.other=null",
    ],
)
def test_hash_changes_with_any_other_field(override: str) -> None:
    assert hash_config(changed(override)) != hash_config(Tree())


def test_hash_of_equal_configs_is_equal() -> None:
    tree = changed("tree.free.theta=10000")
    assert tree == Tree()
    assert hash_config(tree) == hash_config(Tree())


def test_hash_counts_fields_that_a_config_does_not_know() -> None:
    class Open(Config):
        model_config = pydantic.ConfigDict(extra="allow")

    assert hash_config(Open.model_validate({"a": 1})) != hash_config(Open.model_validate({"a": 2}))


@given(
    first=st.tuples(st.integers(-5, 5), st.floats(-5, 5)),
    second=st.tuples(st.integers(-5, 5), st.floats(-5, 5)),
)
def test_hash_is_equal_exactly_where_values_are(
    first: tuple[int, float], second: tuple[int, float]
) -> None:
    one, other = (Leaf(size=size, rate=rate) for size, rate in (first, second))
    assert (hash_config(one) == hash_config(other)) == (one == other)


@given(size=st.integers(-(10**15), 10**15), rate=st.floats(allow_nan=False, allow_infinity=False))
def test_override_by_a_value_printed_is_that_value(size: int, rate: float) -> None:
    tree = changed(f"tree.leaf.size={min(size, 100)}", f"tree.leaf.rate={rate!r}")
    assert (tree.leaf.size, tree.leaf.rate) == (min(size, 100), rate)
