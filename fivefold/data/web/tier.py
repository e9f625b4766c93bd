"""Scores of all documents to tiers: who is best, who is added, who is rescued.

A document's tier is that of its percentile with the fastText classifier. The embedding classifier
has a say on documents from `min_quality` on: it adds those that it finds best to the top tier, at
most `max_added` for each one that fastText chose, and lifts others as far as the tier below, by its
own percentile. What then stands in a tier of `rescue_from` is rescued by the world-knowledge
classifier, best first, up to `share` of the bytes that the tiers keep; one that is larger than the
room left is passed over. Ties go by id, so that the result depends on documents alone.

An embedding classifier alone chose worse than fastText did in DCLM's comparison (section 4.4), so
it adds and never removes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fivefold.data.web.config import KNOWLEDGE, EmbeddingClassifierConfig, KnowledgeConfig, Tier

ADDED, RESCUED = "added", "rescued"
"""What lifted a document above its percentile with fastText."""


@dataclass(frozen=True)
class Scores:
    """What is known of all documents of a run, in the order of their ids; NaN: not embedded."""

    ids: Sequence[str]
    quality: NDArray[np.float64]
    """Percentile with the fastText classifier."""
    embedding: NDArray[np.float64]
    """Percentile with the embedding classifier."""
    knowledge: NDArray[np.float64]
    """Score of the world-knowledge classifier."""
    knowledge_probability: NDArray[np.float64]
    """The same, calibrated."""
    size_bytes: NDArray[np.int64]
    """UTF-8 bytes of the text."""
    sites: Sequence[str]
    """Host of the address; empty where there is none."""


@dataclass(frozen=True)
class Choice:
    """The tier of every document."""

    tiers: list[str]
    lifted_by: list[str]
    """`added`, `rescued`, or empty."""
    threshold: float | None
    """Least world-knowledge score that was rescued."""


def choose_tiers(
    scores: Scores,
    tiers: Sequence[Tier],
    embedding: EmbeddingClassifierConfig | None,
    knowledge: KnowledgeConfig | None,
) -> Choice:
    """Return the tier of every document, best tier first in `tiers`."""
    combined = scores.quality.copy()
    lifted = np.full(len(combined), "", dtype=object)
    if embedding:
        added = _added(scores, tiers[0].min_percentile, embedding)
        able = (scores.quality >= embedding.min_quality) & ~np.isnan(scores.embedding)
        able &= combined < tiers[0].min_percentile
        below_top = np.nextafter(tiers[0].min_percentile, 0.0)
        own = np.minimum(scores.embedding[able], below_top)
        combined[able] = np.maximum(combined[able], own)
        combined[added] = tiers[0].min_percentile
        lifted[added] = ADDED
    edges = np.array([tier.min_percentile for tier in tiers])
    numbers = (combined[:, None] < edges).sum(axis=1)
    names = [tiers[number].name for number in numbers.tolist()]
    threshold = None
    if knowledge:
        epochs = np.array([tier.epochs for tier in tiers])
        kept_bytes = int(scores.size_bytes[epochs[numbers] > 0].sum())
        rescued = _rescued(scores, names, kept_bytes, knowledge)
        for place in rescued:
            names[place], lifted[place] = KNOWLEDGE, RESCUED
        threshold = float(scores.knowledge[rescued].min()) if rescued else None
    return Choice(names, lifted.tolist(), threshold)


def _added(scores: Scores, top: float, config: EmbeddingClassifierConfig) -> list[int]:
    """Return the documents that the embedding classifier adds to the top tier."""
    chosen = scores.quality >= top
    able = ~chosen & (scores.quality >= config.min_quality)
    # A comparison with NaN is false: what was not embedded is not added.
    able &= scores.embedding >= config.min_percentile
    places = np.flatnonzero(able).tolist()
    places.sort(key=lambda place: (-scores.embedding[place], scores.ids[place]))
    return places[: int(config.max_added * chosen.sum())]


def _rescued(
    scores: Scores, names: Sequence[str], kept_bytes: int, config: KnowledgeConfig
) -> list[int]:
    """Return the documents to rescue, best first, as many as there is room for."""
    able = np.isin(names, config.rescue_from) & (scores.knowledge_probability >= config.min_score)
    places = np.flatnonzero(able).tolist()
    places.sort(key=lambda place: (-scores.knowledge[place], scores.ids[place]))
    rescued: list[int] = []
    room, of_site = config.share * kept_bytes, config.site_share * kept_bytes
    taken: defaultdict[str, int] = defaultdict(int)
    for place in places:
        size, site = int(scores.size_bytes[place]), scores.sites[place]
        if size > room or (site and taken[site] + size > of_site):
            continue
        room -= size
        taken[site] += size
        rescued.append(place)
    return rescued


def tier_epochs(tiers: Sequence[Tier], knowledge: KnowledgeConfig | None) -> Mapping[str, float]:
    """Return how often each tier is seen, best first, rescued documents last."""
    epochs = {tier.name: tier.epochs for tier in tiers}
    return {**epochs, KNOWLEDGE: knowledge.epochs} if knowledge else epochs


def tier_sizes(
    choice: Choice, size_bytes: NDArray[np.int64], epochs: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return documents, bytes and epochs of each tier that is seen."""
    sizes = {
        name: {"documents": 0, "bytes": 0, "epochs": float(times)}
        for name, times in epochs.items()
        if times > 0
    }
    for name, size in zip(choice.tiers, size_bytes.tolist(), strict=True):
        if name in sizes:
            sizes[name]["documents"] += 1
            sizes[name]["bytes"] += size
    return sizes


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the Jaccard similarity of two sets; 1 for two empty ones."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0
