"""Quality classifiers for languages, with back-off to the family and to all of them.

GLM-5 (section 2.2) gives low-resource languages dedicated classifiers. A language of a hundred
labels learns little alone, so each score is shrunk towards what its family's classifier says, which
itself is shrunk towards that of all languages: score = w * own + (1 - w) * above with
w = n / (n + k), n labels. A language without a model of its own (too few labels) takes its
family's score whole, an unknown one that of all.

The models are those of `curate.classifier`, over names, numbers and marks as words. Labels are
weak: the best and the worst of each language by rule, or a user's own.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from fivefold.artifact import read_json, write_json
from fivefold.data.code.config import CodeClassifierConfig
from fivefold.data.code.language import LANGUAGES
from fivefold.data.curate.classifier import Score, is_heldout, load_classifier, train_classifier
from fivefold.data.document import Document
from fivefold.errors import ConfigError, CorruptFileError

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_ALL = "all"
_FILE = "backoff.json"
CodeScore = Callable[[str, str], float]
"""(text, language) to the probability of being good."""


@dataclass(frozen=True)
class Labelled:
    """A file that is known, or taken, to be good or not."""

    id: str
    text: str
    language: str
    is_good: bool


def nodes_of(language: str) -> tuple[str, ...]:
    """Return the models that have a say for a language, the most general first."""
    known = LANGUAGES.get(language)
    return (_ALL,) if known is None else (_ALL, f"family-{known.family}", language)


def shrink(scores: Sequence[float | None], counts: Sequence[int], k: float) -> float:
    """Combine scores from the most general to the most special; None is no model."""
    first, *others = scores
    assert first is not None, "the model of all languages"
    score = first
    for own, count in zip(others, counts[1:], strict=True):
        if own is not None:
            weight = count / (count + k)
            score = weight * own + (1 - weight) * score
    return score


def to_words(text: str, max_characters: int) -> str:
    """Return a file as words for the classifier: names cut at underscores, digits, each mark."""
    return " ".join(_WORD.findall(text[:max_characters]))


def train_backoff(
    labelled: Iterable[Labelled], out: Path, config: CodeClassifierConfig
) -> dict[str, dict[str, float]]:
    """Train a model for all languages, and for each family and language with enough labels.

    Returns, and writes beside the models, each one's labels and its area under the curve on files
    that it did not see.

    Raises:
        ConfigError: too few labels of all languages together.
    """
    size = config.training.max_characters
    groups: defaultdict[str, tuple[list[Document], list[Document]]] = defaultdict(lambda: ([], []))
    for one in labelled:
        document = Document(one.id, to_words(one.text, size), "labels", lang=one.language)
        for node in nodes_of(one.language):
            groups[node][not one.is_good].append(document)
    good, other = groups[_ALL]
    if not _suffices(good, other, config):
        raise ConfigError(
            expected=f"at least {config.min_labels} good and as many other files to learn from",
            found=f"{len(good)} and {len(other)}",
            fix="Give more sources, lower `classifier.min_labels`, or take the rule alone with "
            "`classifier=null`",
        )
    facts: dict[str, dict[str, float]] = {}
    for node, (good, other) in sorted(groups.items()):
        if _suffices(good, other, config):
            trained = train_classifier(good, other, out / node, config.training)
            labels = trained.positives + trained.negatives
            facts[node] = {"labels": labels, "auc": trained.auc}
    write_json(out / _FILE, {"nodes": facts, "shrinkage": config.shrinkage})
    return facts


def _suffices(
    good: Sequence[Document], other: Sequence[Document], config: CodeClassifierConfig
) -> bool:
    share = config.training.heldout_share
    measured = [sum(is_heldout(one.id, share) for one in some) for some in (good, other)]
    return min(len(good), len(other)) >= config.min_labels and min(measured) > 0


def load_backoff(folder: Path, max_characters: int = 6_000) -> CodeScore:
    """Return the function that scores a file.

    Raises:
        CorruptFileError: the folder holds no such classifiers.
    """
    saved = read_json(folder / _FILE)
    if saved is None or _ALL not in saved.get("nodes", {}):
        raise CorruptFileError(
            expected=f"classifiers in `{folder}`",
            found=f"no readable {_FILE}",
            fix="Remove the folder and run again",
        )
    counts: dict[str, int] = {name: int(node["labels"]) for name, node in saved["nodes"].items()}
    models: dict[str, Score] = {}

    def score(text: str, language: str) -> float:
        line, nodes = to_words(text, max_characters), nodes_of(language)
        for node in nodes:
            if node in counts and node not in models:
                models[node] = load_classifier(str(folder / node / "model.bin"), "high")
        scores = [models[node](line) if node in counts else None for node in nodes]
        return shrink(scores, [counts.get(node, 0) for node in nodes], saved["shrinkage"])

    return score


def choose_labels(
    ranked: Mapping[str, Sequence[tuple[float, str]]], config: CodeClassifierConfig
) -> dict[str, bool]:
    """Return ids of files to learn from and whether they are good.

    `ranked` holds (rule score, id) for each language, in any order. The best and the worst share
    are labels, of them at most `max_labels` each, by the hash of their ids.
    """
    labels: dict[str, bool] = {}
    for scored in ranked.values():
        ascending = sorted(scored)
        count = int(config.labelled_share * len(ascending))
        for some, is_good in ((ascending[:count], False), (ascending[len(scored) - count :], True)):
            drawn = sorted(
                (xxhash.xxh3_64_intdigest(name.encode(), seed=3), name) for _, name in some
            )
            labels.update({name: is_good for _, name in drawn[: config.max_labels]})
    return labels


def mean_score(rule: float, learned: float) -> float:
    """Return the score of a file: what the rule sees and what was learned count the same."""
    return min(1.0, (rule + learned) / 2)
