"""Classifiers over vectors: of quality (`embedding`) and of facts stated (`world_knowledge`).

GLM-5 (section 2.2) trains a second quality classifier on sentence embeddings, and one that finds
world knowledge in pages of medium and low quality. Both are a logistic head here; the second sees
fact densities beside the vector. One head is trained on all documents and one on all but each fold,
which scores that fold: those scores give the area under the curve and the calibration. The fold's
head is kept, for a document that was learned from is never scored by a head that saw it: a run's
own pages are the negatives, and would all look worse than they are.

A classifier is a directory: `classifier.json` (kind, configs, what training found), `heads.npz`,
`words.json` (in how many texts a word stands, for TF-IDF and for rarity) and `seen.json` (what was
learned from, by fold).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fivefold.artifact import atomic_write, read_json, write_json
from fivefold.config import validate
from fivefold.data.curate.classifier import area_under_curve
from fivefold.data.curate.dclm_baseline import digest_file
from fivefold.data.document import Document
from fivefold.data.web.calibrate import Calibration, calibrate, calibration_error, quantiles_of
from fivefold.data.web.config import EmbedConfig, HeadConfig, Kind
from fivefold.data.web.embed import count_words, embed_documents, open_embedder
from fivefold.data.web.fact_density import FEATURES, fact_density
from fivefold.data.web.head import Head, train_head
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

_FACTS, _HEADS, _WORDS, _SEEN = "classifier.json", "heads.npz", "words.json", "seen.json"
_PARTS = ("centre", "scale", "weights", "bias")
_MIN_TEXTS = 2
"""Texts in which a word must stand to be known."""


@dataclass(frozen=True)
class TrainedHead:
    """What training found out; lies in the directory as `classifier.json`."""

    kind: Kind
    positives: int
    negatives: int
    auc: float
    """Probability that a positive scores above a negative, by heads that saw neither."""
    calibration_error: float
    """Mean distance of probability and frequency, on folds that the curve did not see."""
    quantiles: list[float]
    """Scores below which 0, 1/1000, ... of the negatives lie, by heads that did not see them."""


@dataclass(frozen=True)
class VectorScores:
    """What a classifier says of some texts."""

    score: NDArray[np.float64]
    """Probability by the head itself; its order is the classifier's order."""
    probability: NDArray[np.float64]
    """Calibrated probability; equal over stretches of scores."""


def train_vector_classifier(
    kind: Kind,
    positives: Iterable[Document],
    negatives: Iterable[Document],
    out: Path,
    embed: EmbedConfig,
    config: HeadConfig,
) -> TrainedHead:
    """Train into the directory `out`, on at most `max_documents` of each side.

    Raises:
        ConfigError: too few documents of one side.
        FivefoldError: as the embedder does.
    """
    good, other = (draw(some, config.max_documents) for some in (positives, negatives))
    if min(len(good), len(other)) < 2 * config.folds:
        raise ConfigError(
            expected=f"at least {2 * config.folds} documents of each kind to learn from",
            found=f"{len(good)} positive and {len(other)} negative ones",
            fix="Give more documents, or lower `head.folds`",
        )
    documents = [*good, *other]
    labels = np.arange(len(documents)) < len(good)
    folds = np.concatenate([fold_of(some, config.folds) for some in (good, other)])
    frequencies, count = count_words(one.text for one in documents)
    frequencies = {word: times for word, times in frequencies.items() if times >= _MIN_TEXTS}
    features = _Features(kind, embed, frequencies, count)
    x = features([one.text for one in documents])
    blocks, heads = features.blocks(x), []
    scores = np.empty(len(documents))
    for fold in range(config.folds):
        seen = folds != fold
        heads.append(train_head(x[seen], labels[seen], blocks, config.penalty))
        scores[~seen] = heads[-1].logits(x[~seen])
    heads.append(train_head(x, labels, blocks, config.penalty))
    curve = calibrate(scores, labels)
    with atomic_write(out / _HEADS) as partial, partial.open("wb") as file:
        np.savez(
            file,
            centre=np.array([head.centre for head in heads]),
            scale=np.array([head.scale for head in heads]),
            weights=np.array([head.weights for head in heads]),
            bias=np.array([head.bias for head in heads]),
            scores=curve.scores,
            probabilities=curve.probabilities,
        )
    _write(out / _WORDS, {"texts": count, "frequencies": frequencies})
    _write(out / _SEEN, {one.id: int(k) for one, k in zip(documents, folds, strict=True)})
    trained = TrainedHead(
        kind=kind,
        positives=len(good),
        negatives=len(other),
        auc=round(area_under_curve(scores[labels], scores[~labels]), 6),
        calibration_error=round(_unseen_error(scores, labels, folds), 6),
        quantiles=[round(float(value), 6) for value in quantiles_of(_probability(scores[~labels]))],
    )
    configs = {"embed": embed.model_dump(mode="json"), "head": config.model_dump(mode="json")}
    write_json(out / _FACTS, {**asdict(trained), **configs})
    return trained


def _write(path: Path, value: object) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(documents: Iterable[Document], count: int) -> list[Document]:
    """Return up to `count` documents, those with the smallest hash of their ids, in that order."""
    ranked = (
        (xxhash.xxh3_64_intdigest(one.id.encode(), seed=11), one.id, one) for one in documents
    )
    return [one for _, _, one in sorted(ranked, key=lambda item: item[:2])[:count]]


def fold_of(documents: Sequence[Document], folds: int) -> NDArray[np.int64]:
    """Return the fold of each document: by turns, the parts of one text together."""
    groups: dict[str, int] = {}
    wholes = [str(one.meta.get("part_of", one.id)) for one in documents]
    return np.array([groups.setdefault(whole, len(groups)) % folds for whole in wholes])


class _Features:
    """Texts to the features of a head: the vector, and fact densities where facts are asked for."""

    def __init__(
        self, kind: Kind, embed: EmbedConfig, frequencies: dict[str, int], count: int
    ) -> None:
        self._with_facts = kind == "world_knowledge"
        self._embed, self._frequencies, self._count = embed, frequencies, count
        self._embedder = open_embedder(embed, frequencies, count)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return self.of(texts, self.vectors(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return embed_documents(texts, self._embedder, self._embed)

    def of(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        if not self._with_facts:
            return vectors.astype(np.float64)
        facts = [fact_density(text, self._frequencies, self._count) for text in texts]
        return np.column_stack(
            [vectors.astype(np.float64), np.reshape(facts, (len(texts), len(FEATURES)))]
        )

    def blocks(self, features: NDArray[np.float64]) -> list[int]:
        extra = len(FEATURES) if self._with_facts else 0
        return [features.shape[1] - extra, *([1] * extra)]


def _unseen_error(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], folds: NDArray[np.int64]
) -> float:
    probabilities = np.empty(len(scores))
    for fold in np.unique(folds):
        seen = folds != fold
        probabilities[~seen] = calibrate(scores[seen], labels[seen])(scores[~seen])
    return calibration_error(probabilities, labels)


def _probability(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * logits))


class VectorClassifier:
    """A trained classifier, opened."""

    def __init__(self, directory: str, kind: Kind) -> None:
        """Open the directory of a classifier of this kind.

        Raises:
            MissingFileError: no such directory.
            CorruptFileError: it holds no classifier, or one of another kind.
        """
        folder = Path(directory).expanduser()
        if not folder.is_dir():
            raise MissingFileError(
                expected=f"the directory of a classifier at `{directory}`",
                found="nothing",
                fix=f"Make one with `fivefold data train-classifier --kind {kind}`",
            )
        facts, words, seen = (read_json(folder / name) for name in (_FACTS, _WORDS, _SEEN))
        if facts is None or words is None or seen is None or facts.get("kind") != kind:
            raise CorruptFileError(
                expected=f"a classifier of kind {kind} in `{directory}`",
                found=f"kind {facts['kind']}" if facts and "kind" in facts else "none",
                fix=f"Make it with `fivefold data train-classifier --kind {kind}`",
            )
        embed = validate(EmbedConfig, facts["embed"], where="embed")
        self._embed = embed
        self._features = _Features(kind, embed, words["frequencies"], words["texts"])
        self._seen: dict[str, int] = seen
        with np.load(folder / _HEADS) as arrays:
            columns = zip(*(arrays[name] for name in _PARTS), strict=True)
            self._heads = [Head(*parts) for parts in columns]
            self._curve = Calibration(arrays["scores"], arrays["probabilities"])

    def shares_vectors(self, other: "VectorClassifier") -> bool:
        """Return whether the vectors of both are the same; those of TF-IDF hang on its words."""
        return self._embed == other._embed and bool(self._embed.factory or self._embed.url)

    def vectors(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        """Return the vectors [documents, dimensions] by which documents are scored."""
        return self._features.vectors([one.text for one in documents])

    def score(
        self, documents: Sequence[Document], vectors: NDArray[np.float32] | None = None
    ) -> VectorScores:
        """Score documents, each by itself, by a head that did not see it.

        `vectors` are those of `vectors`, if they are known already.
        """
        known = self.vectors(documents) if vectors is None else vectors
        x = self._features.of([one.text for one in documents], known)
        numbers = [self._seen.get(one.id, len(self._heads) - 1) for one in documents]
        logits = np.array(
            [self._heads[k].logits(row) for k, row in zip(numbers, x, strict=True)], np.float64
        )
        return VectorScores(_probability(logits), self._curve(logits))


def digest_classifier(directory: str) -> list[str]:
    """Return what stands for the content of a classifier's directory; nothing for an empty path.

    Raises:
        MissingFileError: a file of it does not exist.
    """
    names = (_FACTS, _HEADS, _WORDS, _SEEN)
    return [digest_file(str(Path(directory) / name)) for name in names] if directory else []
