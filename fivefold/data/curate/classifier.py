"""The fastText quality classifier: trained on good and other documents, asked for a score each.

DCLM-Baseline (arXiv:2406.11794, section 4.4): a bag of words and bigrams, positives against random
pages of the crawl, and the best tenth stays. The score is the probability of the label `high`.
Thresholds belong to one model, so training notes the quantiles of the scores on documents that it
did not see.

Surprises: fastText is reproducible with one thread only; and a build of it ends in NaN on some
small sets of documents, whereupon training begins again with the next seed.
"""

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fivefold.artifact import atomic_write, write_json
from fivefold.data.curate.config import ClassifierTrainingConfig
from fivefold.data.document import Document
from fivefold.errors import ConfigError, CorruptFileError, DivergenceError, MissingFileError

logger = logging.getLogger(__name__)

_PREFIX = "__label__"
_QUANTILES = 100
_ATTEMPTS = 10
Score = Callable[[str], float]
"""Text to the probability of being good."""


@dataclass(frozen=True)
class TrainedClassifier:
    """What training found out; lies beside the model as `classifier.json`."""

    positives: int
    """Documents trained on."""
    negatives: int
    heldout: int
    """Documents measured on."""
    attempts: int
    """Seeds that were tried: more than one where fastText ended in NaN."""
    auc: float
    """Probability that a good document scores above another one, on those."""
    quantiles: list[float]
    """Scores below which 0%, 1%, ... 100% of the held-out negatives lie."""


def train_classifier(
    positives: Iterable[Document],
    negatives: Iterable[Document],
    out: Path,
    config: ClassifierTrainingConfig,
) -> TrainedClassifier:
    """Train a model, measure it on held-out documents, write `model.bin` and `classifier.json`.

    Raises:
        ConfigError: too few documents of one kind.
        DivergenceError: fastText ends in NaN with every seed.
        StorageError: the disk is full.
    """
    train: list[str] = []
    heldout: dict[str, list[str]] = {"high": [], "low": []}
    counts = {"high": 0, "low": 0}
    for label, documents in (("high", positives), ("low", negatives)):
        for document in documents:
            line = to_line(document.text, config.max_characters)
            if is_heldout(document.id, config.heldout_share):
                heldout[label].append(line)
            else:
                counts[label] += 1
                train.append(f"{_PREFIX}{label} {line}")
        if not counts[label] or not heldout[label]:
            kind = "positive" if label == "high" else "negative"
            raise ConfigError(
                expected=f"at least some tens of {kind} documents, to train and to measure on",
                found=f"{counts[label]} and {len(heldout[label])}",
                fix=f"Give more {kind} documents, or raise `heldout_share`",
            )
    attempts = _train(train, out / "model.bin", config)
    score = load_classifier(str(out / "model.bin"), "high")
    good, other = (np.array([score(line) for line in heldout[label]]) for label in heldout)
    quantiles = np.quantile(other, np.linspace(0, 1, _QUANTILES + 1))
    trained = TrainedClassifier(
        positives=counts["high"],
        negatives=counts["low"],
        heldout=len(good) + len(other),
        attempts=attempts,
        auc=round(area_under_curve(good, other), 6),
        quantiles=[round(float(value), 6) for value in quantiles],
    )
    write_json(out / "classifier.json", {**asdict(trained), "config": config.model_dump()})
    return trained


def _train(lines: list[str], model: Path, config: ClassifierTrainingConfig) -> int:
    """Train on labelled lines, in the order of their hashes; return how many seeds it took."""
    import fasttext

    lines.sort(key=lambda line: (xxhash.xxh3_64_intdigest(line.encode(), seed=config.seed), line))
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "train.txt"
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for attempt in range(_ATTEMPTS):
            try:
                trained = fasttext.train_supervised(
                    input=str(text),
                    lr=config.learning_rate,
                    dim=config.dim,
                    epoch=config.epochs,
                    wordNgrams=config.word_ngrams,
                    bucket=config.buckets if config.word_ngrams > 1 else 0,
                    minCount=1,
                    thread=1,
                    seed=config.seed + attempt,
                    verbose=0,
                )
            except RuntimeError as error:
                if "NaN" not in str(error):
                    raise
                logger.warning("fastText ended in NaN with seed %d", config.seed + attempt)
                continue
            with atomic_write(model) as partial:
                trained.save_model(str(partial))
            return attempt + 1
    raise DivergenceError(
        expected="fastText to train without NaN",
        found=f"NaN with {_ATTEMPTS} seeds",
        fix="Lower `learning_rate`, raise `word_ngrams`, give more documents, or install another "
        "build of fastText (fasttext-community)",
    )


def to_line(text: str, max_characters: int) -> str:
    """Return the line of fastText's input for a text: its words, joined by one space."""
    return " ".join(text[:max_characters].split())


def is_heldout(document_id: str, share: float) -> bool:
    """Return whether a document is kept for measuring, by the hash of its id."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=7) < share * 2**64


def area_under_curve(good: NDArray, other: NDArray) -> float:
    """Return the probability that a good one scores above another one; ties count half."""
    below = np.searchsorted(np.sort(other), good, side="left")
    not_above = np.searchsorted(np.sort(other), good, side="right")
    return float((below + not_above).sum() / (2 * len(good) * len(other)))


def load_classifier(model: str, label: str, max_characters: int = 20_000) -> Score:
    """Return the function that scores a text.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: no fastText model, or one without this label.
    """
    import fasttext

    path = Path(model).expanduser()
    if not path.is_file():
        raise MissingFileError(
            expected=f"a fastText model at `{model}`",
            found="nothing",
            fix="Make one with `fivefold data train-classifier`, or correct `classifier.model`",
        )
    try:
        # fastText speaks to the terminal when it loads.
        with contextlib.redirect_stderr(None):
            loaded = fasttext.load_model(str(path))
    except (ValueError, RuntimeError) as error:
        raise CorruptFileError(
            expected=f"a fastText model at `{model}`",
            found=str(error)[:200],
            fix="Make it again with `fivefold data train-classifier`",
        ) from error
    labels = [str(name).removeprefix(_PREFIX) for name in loaded.get_labels()]
    if label not in labels:
        raise CorruptFileError(
            expected=f"the label `{label}` in the model `{model}`",
            found=", ".join(labels) or "none: a model without labels",
            fix="Correct `classifier.label`",
        )

    wanted = _PREFIX + label

    def score(text: str) -> float:
        names, values = loaded.predict(to_line(text, max_characters), k=-1)
        found = next((p for n, p in zip(names, values, strict=True) if n == wanted), 0.0)
        # Rounding inside the model may take it a little above 1.
        return min(1.0, float(found))

    return score


def score_threshold(
    scores: Sequence[float] | NDArray, keep_share: float | None, min_score: float | None
) -> float:
    """Return the least score that stays: the given one, or that of the best share.

    Documents that tie with the last one that stays do so too.
    """
    if min_score is not None:
        return min_score
    assert keep_share is not None, "the config holds one of the two"
    count = round(keep_share * len(scores))
    return float(np.sort(np.asarray(scores))[len(scores) - count]) if count else math.inf
