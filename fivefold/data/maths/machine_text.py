"""Text that a language model wrote: what gives it away, and a detector over that.

Signs of a text: phrases in which a model speaks of itself, offers help or refuses (*tells*); words
and turns that models like far more than people do; the shape of an answer (numbered steps, bold
lead-ins, a heading every few lines); and, where there is a model, the curvature of Fast-DetectGPT
(arXiv:2310.05130): over its tokens, the sum of (log p + H) over the root of the sum of squares, 0
on average for text that the model itself would draw and lower for people's.

Without examples the signs are added up with fixed weights, ours. With examples of machine text a
head over words (`head`) is learned on one third of them, a logistic over head and signs on the
second; the threshold is calibrated, by source, on the rest of the human text, which neither has
seen.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fivefold.artifact import read_json, write_json
from fivefold.data.curate.classifier import area_under_curve
from fivefold.data.curate.words import unicode_words
from fivefold.data.extract import cut_text
from fivefold.data.long.scorer import TokenModel, open_model
from fivefold.data.maths.calibration import (
    Calibration,
    Rate,
    calibrate,
    calibration_from_json,
)
from fivefold.data.maths.config import MachineTextConfig
from fivefold.data.maths.head import HeadScorer, fit_head, read_head, write_head
from fivefold.errors import ConfigError

_TELLS = re.compile(
    r"\bas an? (?:(?:AI|large|artificial intelligence) )*(?:language model|AI|assistant)\b"
    r"|\bI(?:'m| am) (?:just )?an AI\b|\bmy (?:knowledge|training) (?:cut-?off|data)\b"
    r"|\bI(?:'m| am) (?:sorry|afraid), (?:but )?(?:I|as)\b"
    r"|\bI (?:cannot|can't) (?:fulfil|assist|help with)"
    r"|\b(?:certainly|sure|of course|absolutely|great question)[!,.:] "
    r"(?:here(?:'s| is| are)|let(?:'s| me)|I)\b"
    r"|\bI hope (?:this|that) (?:helps|explanation)\b"
    r"|\b(?:feel free|don't hesitate) to (?:ask|reach)"
    r"|\blet me know if you (?:have|need|would like)\b|\bis there anything else I can\b"
    r"|\blet(?:'s| us) (?:break (?:it|this) down|think (?:step by step|through this))"
    r"|作为(?:一个|一名)?(?:AI|人工智能|语言模型)|希望(?:这|以上).{0,8}(?:帮助|有用)",
    re.IGNORECASE,
)
_STYLE = re.compile(
    r"\b(?:delv(?:e|es|ing)|tapestry|testament to|multifaceted|ever-(?:evolving|changing)"
    r"|it(?:'s| is) (?:important|worth|crucial|essential) (?:to note|noting|to remember)"
    r"|plays? a (?:crucial|vital|pivotal|significant) role|in (?:conclusion|summary)|overall,"
    r"|comprehensive (?:guide|overview|understanding)|in today's|navigat(?:e|ing) the|realm of"
    r"|by (?:following|understanding|leveraging) (?:these|this|the)|ensur(?:e|es|ing) that"
    r"|(?:furthermore|moreover|additionally),|whether you(?:'re| are) a|unlock(?:ing)? the"
    r"|therefore, the (?:final )?answer is"
    # Of the authors of CHAMP's problems one in 140 writes one of these, of the models' answers more
    # than half.
    r"|let['\u2019]s (?:denote|define|consider|assume|analy[sz]e|calculate|use|call|suppose|prove"
    r"|find)"
    r"|to (?:solve|answer|determine|prove) this (?:problem|question|equation))\b",
    re.IGNORECASE,
)
_SKELETON = re.compile(
    r"^\s*(?:#{2,6} |(?:[-*•]|\d+[.)]) +\*\*|\*\*[^*\n]+\*\*:?\s*$|(?:\*\*)?step \d+\b)",
    re.IGNORECASE | re.MULTILINE,
)
_MIN_WORDS = 100
"""Words below which a text counts as so long: one phrase in ten words is no rate."""
_WEIGHTS = (10.0, 1.0, 1.0, 0.0)
"""Of tells, style, skeleton and curvature, where there are no examples."""
_FLOOR = 1.0
"""Least threshold of these weights: one tell in a thousand words, or a turn in a hundred; so that
one sign does not condemn a text where the human text, of another field, has none at all."""
_SIGNS = ("tells", "style", "skeleton", "curvature")
_MIN_EXAMPLES = 30
_STEPS, _RIDGE = 30, 1e-2


def find_tell(text: str) -> tuple[int, int] | None:
    """Return where a model speaks of itself, offers help or refuses; None if nowhere."""
    found = _TELLS.search(text)
    return found and found.span()


def signs(text: str, model: TokenModel | None = None) -> NDArray[np.float64]:
    """Return the signs of a text: tells, turns and shapes for each hundred words; curvature."""
    hundreds = max(_MIN_WORDS, len(unicode_words(text))) / 100
    counts = [len(pattern.findall(text)) / hundreds for pattern in (_TELLS, _STYLE, _SKELETON)]
    return np.array([*counts, curvature(text, model) if model else 0.0])


def curvature(text: str, model: TokenModel) -> float:
    """Return the standardised sum of log p + H over a text's first tokens; 0 for a single one."""
    ids = model.tokenizer.encode(text)[: model.context_tokens]
    if len(ids) < 2:
        return 0.0
    scores = model.score_tokens([ids])[0]
    gaps = (scores.logprob + scores.entropy)[1:].astype(np.float64)
    norm = math.sqrt(float((gaps**2).sum()))
    return float(gaps.sum()) / norm if norm else 0.0


@dataclass(frozen=True)
class Detector:
    """What scores texts, and the score above which one counts as a model's."""

    weights: tuple[float, ...]
    """Of the signs, of the head's mark, and what is added."""
    calibration: Calibration
    auc: float | None
    """Probability that machine text scores above human text, on what was not learned from."""
    window_characters: int
    head: HeadScorer | None = None
    model: TokenModel | None = None

    def score(self, text: str) -> float:
        """Return the mean score of a text's windows; higher is more like a model's."""
        windows = cut_text(text, self.window_characters)
        return float(np.mean([_raw_score(one, self) for one in windows])) if windows else 0.0

    def is_machine(self, text: str) -> bool:
        """Return whether a text counts as a model's."""
        return self.score(text) > self.calibration.threshold


def _raw_score(text: str, detector: Detector) -> float:
    return round(float(_features(text, detector.head, detector.model) @ detector.weights), 6)


def _features(text: str, head: HeadScorer | None, model: TokenModel | None) -> NDArray[np.float64]:
    mark = float(head.score([text])[0]) if head else 0.0
    return np.array([*signs(text, model), mark, 1.0])


def fit_detector(
    human: Mapping[str, Sequence[str]], machine: Sequence[str], config: MachineTextConfig
) -> Detector:
    """Make a detector from pieces of human text, by source, and of machine text if there are any.

    Raises:
        ConfigError: too few pieces.
    """
    model = open_model(config.model) if config.model.checkpoint else None
    if not machine:
        weights = (*_WEIGHTS, 0.0, 0.0)
        return _calibrated(weights, human, [], None, model, config, _FLOOR)
    thirds = {name: _third(pieces) for name, pieces in human.items()}
    people, people_too = ([one for parts in thirds.values() for one in parts[k]] for k in (0, 1))
    people_left = {name: parts[2] for name, parts in thirds.items()}
    models, models_too, models_left = _third(machine)
    least = min(*map(len, (people, people_too, models, models_too, models_left)))
    if min(least, sum(map(len, people_left.values()))) < _MIN_EXAMPLES:
        raise ConfigError(
            expected=f"{_MIN_EXAMPLES} pieces of human and of machine text in each third",
            found=f"{sum(map(len, human.values())):,} pieces of human and {len(machine):,} of "
            "machine text",
            fix="Give more with `machine_text.human` and `machine_text.machine`",
        )
    marks = np.array([0.0] * len(people) + [1.0] * len(models))
    head = fit_head([*people, *models], marks, 1024, 1.0)
    rows = np.array([_features(text, head, model) for text in (*people_too, *models_too)])
    labels = np.array([0.0] * len(people_too) + [1.0] * len(models_too))
    weights = tuple(np.round(fit_logistic(rows, labels), 6).tolist())
    return _calibrated(weights, people_left, models_left, head, model, config)


def _third(texts: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[], [], []]
    for text in texts:
        parts[xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace"), seed=11) % 3].append(text)
    return parts


def _calibrated(
    weights: tuple[float, ...],
    human: Mapping[str, Sequence[str]],
    machine: Sequence[str],
    head: HeadScorer | None,
    model: TokenModel | None,
    config: MachineTextConfig,
    floor: float = -math.inf,
) -> Detector:
    unknown = Calibration(math.inf, Rate(0, 0, 1.0), {}, 0)
    draft = Detector(weights, unknown, None, config.window_characters, head, model)

    def scores_of(texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([_raw_score(text, draft) for text in texts], dtype=np.float64)

    scores = {name: scores_of(pieces) for name, pieces in human.items()}
    found = calibrate(scores, config.false_positives, config.confidence, floor)
    auc = None
    if machine:
        people = np.concatenate(list(scores.values()))
        auc = round(area_under_curve(scores_of(machine), people), 4)
    return Detector(weights, found, auc, config.window_characters, head, model)


def fit_logistic(rows: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of a logistic regression with a small ridge, by Newton's method."""
    weights = np.zeros(rows.shape[1])
    penalty = _RIDGE * np.eye(len(weights))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        gradient = rows.T @ (labels - chance) - penalty @ weights
        curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + penalty
        weights += np.linalg.solve(curve, gradient)
    return weights


def write_detector(detector: Detector, folder: Path) -> None:
    """Write a detector as `detector.json`, its head beside it."""
    if detector.head:
        write_head(detector.head, folder / "detector_head.npz")
    facts: dict[str, Any] = {
        "signs": [*_SIGNS, "head", "constant"],
        "weights": list(detector.weights),
        "calibration": asdict(detector.calibration),
        "auc": detector.auc,
        "window_characters": detector.window_characters,
        "has_head": detector.head is not None,
    }
    write_json(folder / "detector.json", facts)


def read_detector(folder: Path, config: MachineTextConfig) -> Detector:
    """Read what `write_detector` wrote; the model is opened anew."""
    facts = read_json(folder / "detector.json")
    assert facts, "the stage before wrote it"
    return Detector(
        tuple(facts["weights"]),
        calibration_from_json(facts["calibration"]),
        facts["auc"],
        facts["window_characters"],
        read_head(folder / "detector_head.npz") if facts["has_head"] else None,
        open_model(config.model) if config.model.checkpoint else None,
    )
