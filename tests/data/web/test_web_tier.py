"""Tiers by hand and by property: who is in the top tier, who is lifted, who is rescued."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import apply_overrides
from fivefold.data.web.config import (
    EmbeddingClassifierConfig,
    KnowledgeConfig,
    WebConfig,
)
from fivefold.data.web.tier import (
    ADDED,
    RESCUED,
    Scores,
    choose_tiers,
    overlap,
    tier_epochs,
    tier_sizes,
)
from fivefold.errors import ConfigError

TIERS = WebConfig().tiers
ADD = EmbeddingClassifierConfig()
KNOW = KnowledgeConfig(share=0.5, site_share=1.0)


def scores(
    quality: list[float],
    embedding: list[float] | None = None,
    knowledge: list[float] | None = None,
    sizes: list[int] | None = None,
    sites: list[str] | None = None,
) -> Scores:
    count = len(quality)
    nothing = [float("nan")] * count
    return Scores(
        ids=[f"{n:03d}" for n in range(count)],
        quality=np.array(quality),
        embedding=np.array(embedding or nothing),
        knowledge=np.array(knowledge or nothing),
        knowledge_probability=np.array(knowledge or nothing),
        size_bytes=np.array(sizes or [100] * count),
        sites=sites or [str(n) for n in range(count)],
    )


def test_without_other_scores_the_tier_is_that_of_fasttext():
    choice = choose_tiers(scores([0.95, 0.9, 0.89, 0.75, 0.5, 0.3, 0.0]), TIERS, ADD, KNOW)
    assert choice.tiers == ["top", "top", "high", "high", "middle", "fair", "low"]
    assert choice.lifted_by == [""] * 7
    assert choice.threshold is None


def test_added_documents_are_good_for_both_and_no_more_than_their_share():
    quality = [0.95] * 10 + [0.6, 0.6, 0.6, 0.6, 0.6, 0.4]
    embedding = [0.1] * 10 + [0.96, 0.99, 0.97, 0.98, 0.9, 1.0]
    choice = choose_tiers(scores(quality, embedding), TIERS, ADD, None)
    # A document that fastText chose stays, whatever the other says; 0.35 x 10 leaves room for 3.
    assert choice.tiers[:10] == ["top"] * 10
    assert choice.lifted_by[10:] == ["", ADDED, ADDED, ADDED, "", ""]
    # The others are lifted as far as the tier below, from `min_quality` on.
    assert choice.tiers[10:] == ["high", "top", "top", "top", "high", "fair"]


def test_rescue_takes_the_middle_only_the_best_first_while_there_is_room():
    quality = [0.95, 0.95, 0.8, 0.6, 0.6, 0.3, 0.3, 0.1]
    knowledge = [0.9, 0.9, 0.9, 0.7, 0.8, 0.95, 0.4, 0.99]
    sizes = [400, 400, 200, 100, 100, 500, 100, 100]
    # 1,200 bytes are kept; 5/12 of them is room for the best one of 500, or for two of 100.
    for share, expected in ((0.45, [5]), (0.6, [4, 5, 3]), (0.01, [])):
        config = KnowledgeConfig(share=share, site_share=1.0, min_score=0.5)
        choice = choose_tiers(scores(quality, None, knowledge, sizes), TIERS, None, config)
        rescued = [n for n, by in enumerate(choice.lifted_by) if by == RESCUED]
        assert rescued == sorted(expected)
        assert all(choice.tiers[n] == "knowledge" for n in rescued)
        assert choice.tiers[7] == "low"
        assert choice.threshold == (knowledge[expected[-1]] if expected else None)


def test_no_site_is_rescued_beyond_its_share():
    quality, knowledge = [0.95] * 10 + [0.3] * 6, [0.9] * 16
    sites = ["s"] * 10 + ["one", "one", "one", "two", "two", "three"]
    config = KnowledgeConfig(share=0.5, site_share=0.1)
    choice = choose_tiers(scores(quality, None, knowledge, None, sites), TIERS, None, config)
    assert [n for n, by in enumerate(choice.lifted_by) if by] == [10, 13, 15]


def test_pages_without_a_host_are_of_no_site_and_a_large_one_blocks_no_small_one():
    quality, knowledge = [0.95] * 10 + [0.3] * 4, [0.9] * 10 + [0.99, 0.9, 0.8, 0.7]
    sizes = [100] * 10 + [600, 200, 200, 200]
    config = KnowledgeConfig(share=0.5, site_share=0.1)
    choice = choose_tiers(scores(quality, None, knowledge, sizes, [""] * 14), TIERS, None, config)
    # 1,000 bytes are kept: there is room for 500, not for the best one of 600.
    assert [n for n, by in enumerate(choice.lifted_by) if by] == [11, 12]
    assert choice.threshold == 0.8


percent = st.floats(0, 1, allow_nan=False)


@given(
    st.lists(st.tuples(percent, percent, percent, st.integers(1, 999)), min_size=1, max_size=40),
    st.randoms(),
)
def test_properties_hold_for_any_scores(rows: list[tuple], random):
    columns = [list(column) for column in zip(*rows, strict=True)]
    given_scores = scores(columns[0], columns[1], columns[2], columns[3])
    config = KnowledgeConfig(share=0.05)
    choice = choose_tiers(given_scores, TIERS, ADD, config)
    alone = choose_tiers(given_scores, TIERS, None, None)
    names = [tier.name for tier in TIERS]
    size = given_scores.size_bytes
    for own, before, by in zip(choice.tiers, alone.tiers, choice.lifted_by, strict=True):
        if by == RESCUED:
            assert own == "knowledge"
        else:
            # The ensemble never lowers a document.
            assert names.index(own) <= names.index(before)
    chosen = alone.tiers.count("top")
    assert choice.lifted_by.count(ADDED) <= 0.35 * chosen
    assert choice.tiers.count("top") == chosen + choice.lifted_by.count(ADDED)
    rescued = np.array([by == RESCUED for by in choice.lifted_by])
    assert size[rescued].sum() <= 0.05 * size.sum()
    epochs = tier_epochs(TIERS, config)
    sizes = tier_sizes(choice, size, epochs)
    assert sum(one["documents"] for one in sizes.values()) == sum(
        epochs[t] > 0 for t in choice.tiers
    )
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = Scores(
        ids=[given_scores.ids[n] for n in order],
        quality=given_scores.quality[order],
        embedding=given_scores.embedding[order],
        knowledge=given_scores.knowledge[order],
        knowledge_probability=given_scores.knowledge_probability[order],
        size_bytes=size[order],
        sites=[given_scores.sites[n] for n in order],
    )
    again = choose_tiers(shuffled, TIERS, ADD, config)
    assert again.tiers == [choice.tiers[n] for n in order]
    assert again.threshold == choice.threshold


def test_overlap_is_jaccard():
    first, second = np.array([True, True, False]), np.array([False, True, True])
    assert overlap(first, second) == pytest.approx(1 / 3)
    assert overlap(~first & first, ~first & first) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('tiers=[{"name":"a","min_percentile":0.5,"epochs":1}]', "the last from 0"),
        ('tiers=[{"name":"knowledge","min_percentile":0,"epochs":1}]', "rescued documents"),
        ('knowledge.rescue_from=["best"]', "tiers below the first"),
        ('knowledge.label={"scorer":{"kind":"head","head":"x"}}', "kind rule or endpoint"),
        ("knowledge.label.negative_to=4", "`negative_to` below"),
        ("quantiles=plan.json", "the models that they belong to"),
        ("embed.url=http://x", "a `url` with the name of a `model`"),
    ],
)
def test_configs_that_mean_nothing_are_refused(change: str, message: str):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"web": WebConfig()}, [f"web.{change}"])
