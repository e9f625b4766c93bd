"""Scores of a run by fastText, and what they are as percentiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fivefold.artifact import read_json
from fivefold.data.curate.classify_step import read_scores, read_traces, score_file
from fivefold.data.web.calibrate import QUANTILES, percentiles_by_group, quantiles_of
from fivefold.data.web.config import WebConfig
from fivefold.data.web.sample import half_of
from fivefold.errors import CorruptFileError


@dataclass(frozen=True)
class Quality:
    """What the fastText classifier says of all documents, in their order."""

    ids: list[str]
    traces: list[str]
    """Where it failed on a document; empty where it did not."""
    scores: NDArray[np.float64]
    """Below 0: the classifier failed on this document."""
    percentiles: NDArray[np.float64]
    """NaN where it failed."""
    quantiles: list[NDArray[np.float64]]
    """Of each model's own documents: one model that the config names, or one for each half."""


def read_quality(documents: Sequence[Path], scores: Path, config: WebConfig) -> Quality:
    """Read the scores of all files and rank them.

    Raises:
        CorruptFileError: `config.quantiles` holds none.
    """
    ids: list[str] = []
    traces: list[str] = []
    parts = []
    for file in documents:
        names, values = read_scores(score_file(scores, file))
        ids += names
        traces += read_traces(score_file(scores, file))
        parts.append(values.astype(np.float64))
    values = np.concatenate(parts) if parts else np.zeros(0)
    known = np.where(values >= 0, values, np.nan)
    halves = np.array([0 if config.classifier else half_of(name) for name in ids], dtype=np.int64)
    if config.quantiles:
        quantiles = read_quantiles(config.quantiles, "quality")
    else:
        count = 1 if config.classifier else int(halves.max(initial=0)) + 1
        quantiles = [quantiles_of(known[halves == group]) for group in range(count)]
    ranks = percentiles_by_group(known, halves, quantiles)
    return Quality(ids, traces, values, ranks, quantiles)


def read_quantiles(path: str, name: str) -> list[NDArray[np.float64]]:
    """Return the quantiles of a classifier that an earlier run left in its `plan.json`.

    Raises:
        CorruptFileError: there are none.
    """
    plan = read_json(Path(path).expanduser())
    found = plan and plan.get("quantiles", {}).get(name)
    if not found or any(len(one) != QUANTILES + 1 or np.isnan(one).any() for one in found):
        raise CorruptFileError(
            expected=f"the quantiles of `{name}` in `{path}`",
            found="none",
            fix="Name the `plan.json` of a finished run of glm5_web, or leave `quantiles` empty",
        )
    return [np.array(one) for one in found]
