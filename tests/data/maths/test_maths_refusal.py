"""Machine text and templates: bounds of false positives, what falls and what stays."""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy.stats import beta, binom

from fivefold.data.document import read_documents
from fivefold.data.extract import cut_text
from fivefold.data.long.scorer import TokenScores
from fivefold.data.maths.calibration import binomial_at_most, calibrate, upper_bound
from fivefold.data.maths.config import MachineTextConfig, TemplateConfig
from fivefold.data.maths.machine_text import (
    curvature,
    find_tell,
    fit_detector,
    fit_logistic,
    read_detector,
    signs,
    write_detector,
)
from fivefold.data.maths.template import find_templates, outline, skeleton, template_share
from fivefold.errors import ConfigError
from fivefold.text.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
CONFIG = MachineTextConfig(window_characters=400, false_positives=0.05, windows_per_source=50)
_ANSWERS = (
    "Certainly! Here is a step-by-step solution.\n\n**Step 1:** Let's break it down. Furthermore, "
    "it is important to note that the {} is crucial.\n\n## Overview\n\nIn conclusion, the {} plays "
    "a crucial role. Overall, I hope this helps! Feel free to ask about the {}."
)


def human() -> list[str]:
    """Plays and a guide, written by people."""
    texts = [one.text for one in read_documents(FIXTURES / "plays.jsonl")]
    texts.append((FIXTURES / "guide.md").read_text())
    return [piece for text in texts for piece in cut_text(text, 400)][:400]


def machine(count: int) -> list[str]:
    words = ["river", "mill", "prime", "theorem", "market", "vector", "garden", "integral"]
    return [
        _ANSWERS.format(*Random(number).choices(words, k=3)) + f" {number}"
        for number in range(count)
    ]


@pytest.mark.parametrize(("flagged", "count"), [(0, 299), (3, 1000), (17, 400), (5, 5), (0, 1)])
def test_bound_is_clopper_and_pearsons(flagged: int, count: int):
    expected = beta.ppf(0.95, flagged + 1, count - flagged) if flagged < count else 1.0
    assert upper_bound(flagged, count, 0.95) == pytest.approx(expected, abs=1e-9)
    assert binomial_at_most(flagged, count, 0.013) == pytest.approx(
        binom.cdf(flagged, count, 0.013)
    )


def test_threshold_is_the_lowest_whose_bound_is_within_the_rate():
    scores = np.random.default_rng(0).permutation(1000).astype(float)
    found = calibrate({"one": scores}, 0.01, 0.95)
    # Of 1,000, at most 4 may be flagged: the bound is 0.91% then, and 1.05% with 5.
    assert (found.pooled.flagged, found.threshold) == (4, 995.0)
    assert found.sources == {"one": found.pooled}
    assert found.pooled.bound <= 0.01 < upper_bound(5, 1000, 0.95)
    assert calibrate({"one": np.zeros(299)}, 0.01, 0.95).pooled.flagged == 0
    with pytest.raises(ConfigError, match="299 pieces"):
        calibrate({"one": np.zeros(200), "other": np.zeros(98)}, 0.01, 0.95)
    assert calibrate({"one": scores}, 0.01, 0.95, floor=2000.0).threshold == 2000.0


def test_the_rate_holds_on_new_texts_of_each_source():
    random, count = np.random.default_rng(7), 60
    means = {"large": 0.0, "small": 1.5}
    above: dict[str, list[float]] = {name: [] for name in means}
    together = []
    for _ in range(count):
        scores = {
            name: random.normal(mean, size=4000 if name == "large" else 200)
            for name, mean in means.items()
        }
        found = calibrate(scores, 0.02, 0.95)
        assert max(rate.bound for rate in (found.pooled, *found.sources.values())) <= 0.02
        for name, mean in means.items():
            above[name].append(_share_above(found.threshold - mean))
        pooled = calibrate({"all": np.concatenate(list(scores.values()))}, 0.02, 0.95)
        together.append(_share_above(pooled.threshold - means["small"]))
    # In 95 of 100 calibrations the true rate is within what was promised.
    least = 0.95 - 3 * math.sqrt(0.05 * 0.95 / count)
    for rates in above.values():
        assert np.mean(np.array(rates) <= 0.02) >= least
    # Calibrated over all texts at once, a source of another kind is flagged five times as often.
    assert np.median(together) > 0.1


def _share_above(threshold: float) -> float:
    return 0.5 * math.erfc(threshold / math.sqrt(2))


def test_of_a_source_too_small_for_a_bound_none_is_flagged_and_it_is_named():
    random = np.random.default_rng(3)
    large, few = random.normal(size=2000), random.normal(4.0, size=20)
    found = calibrate({"large": large, "few": few, "none": np.zeros(0)}, 0.01, 0.95)
    assert found.threshold == few.max()
    assert found.small_sources() == ["few", "none"]
    assert found.needed == 299
    assert found.sources["few"].flagged == 0
    assert found.sources["few"].bound == pytest.approx(1 - 0.05 ** (1 / 20))
    assert str(found.sources["few"]) == "0 of 20 (at most 13.91%)"
    assert found.sources["none"].bound == 1.0
    # Where it scores as others do, the small source costs nothing.
    alike = calibrate({"large": large, "few": random.normal(-2.0, size=20)}, 0.01, 0.95)
    assert alike.threshold == calibrate({"large": large}, 0.01, 0.95).threshold


def test_rule_flags_answers_of_assistants_and_no_human_text():
    people = human()
    detector = fit_detector({"people": people}, [], CONFIG)
    assert detector.auc is None
    assert all(map(detector.is_machine, machine(20)))
    flagged = sum(map(detector.is_machine, people))
    assert flagged == detector.calibration.pooled.flagged
    assert detector.calibration.pooled.bound <= 0.05
    turns = "To solve this problem, let\u2019s denote the sum by s. Let's consider s mod 7."
    assert signs(turns)[1] == 3
    assert signs("Let us look at the sum, and find what is left of it mod 7.")[1] == 0
    assert find_tell("So, as an AI language model, I") == (4, 27)
    assert find_tell("The model of language is theirs.") is None


def test_learned_detector_tells_held_out_texts_apart_and_survives_its_file(tmp_path: Path):
    # Without tells: only the words differ.
    words = {0: "river mill ferry orchard bridge", 1: "leverage crucial robust landscape delve"}
    random = Random(3)

    def write(kind: int) -> str:
        return " ".join(random.choice((words[kind] + " the of and to").split()) for _ in range(50))

    people, models = [write(0) for _ in range(240)], [write(1) for _ in range(240)]
    sources = {"two": people[:200], "one": people[200:]}
    detector = fit_detector(sources, models, CONFIG)
    assert detector.auc
    assert detector.auc > 0.99
    assert detector.calibration.pooled.texts < 240
    assert detector.calibration.small_sources() == ["one"]
    write_detector(detector, tmp_path)
    again = read_detector(tmp_path, CONFIG)
    assert again.calibration == detector.calibration
    texts = [write(kind) for kind in (0, 1) for _ in range(30)]
    assert [again.score(text) for text in texts] == [detector.score(text) for text in texts]
    assert sum(map(again.is_machine, texts[30:])) >= 28
    with pytest.raises(ConfigError, match="each third"):
        fit_detector(sources, models[:20], CONFIG)


def test_logistic_weights_have_no_gradient():
    random = np.random.default_rng(2)
    rows = np.c_[random.normal(size=(200, 2)), np.ones(200)]
    labels = (rows @ [2.0, -1.0, 0.3] + random.logistic(size=200) > 0).astype(float)
    weights = fit_logistic(rows, labels)
    chance = 1 / (1 + np.exp(-rows @ weights))
    assert np.abs(rows.T @ (labels - chance) - 1e-2 * weights).max() < 1e-8
    assert np.abs(weights - [2.0, -1.0, 0.3]).max() < 0.8


class Sampler:
    """Says that each token has probability p, and that its distribution has entropy H."""

    def __init__(self, tokenizer: Tokenizer, gap: float) -> None:
        self.tokenizer, self.context_tokens, self._gap = tokenizer, 64, gap

    def score_tokens(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        size = len(rows[0])
        noise = np.random.default_rng(size).choice([-1.0, 1.0], size)
        entropy = np.full(size, 2.0, dtype=np.float32)
        logprob = (noise + self._gap - 2.0).astype(np.float32)
        entropy[0] = logprob[0] = math.nan
        return [TokenScores(entropy, logprob)]


def test_curvature_is_nil_for_drawn_text_and_lower_for_peoples(tokenizer: Tokenizer):
    text = "the words of a text that nobody has drawn from a model, one after the other " * 3
    drawn, peoples = (curvature(text, Sampler(tokenizer, gap)) for gap in (0.0, -1.0))
    assert abs(drawn) < 3
    assert peoples < -4
    assert curvature("", Sampler(tokenizer, 0.0)) == 0
    assert signs(text)[3] == 0


FILLED = (
    "{name} is a town in {land}.\nIt lies {n} km from {other} and has {m} inhabitants (as of "
    "{year}).\nThe postal code is {code}, and the area is {area} km2.\nSee also: {land}, {other}, "
    "list of towns."
)


def planted(count: int) -> list[tuple[str, str, str]]:
    random = Random(1)

    def word() -> str:
        return "".join(random.choices("aeioulnrst", k=7)).capitalize()

    return [
        (
            f"filled{number:03d}",
            "web",
            FILLED.format(name=word(), land=word(), other=word(), n=random.randint(2, 900),
                          m=f"{random.randint(2, 99)},{random.randint(100, 999)}",
                          year=1990 + number, code=random.randint(10000, 99999),
                          area=random.random()),
        )
        for number in range(count)
    ]  # fmt: skip


def dropped(documents: list[tuple[str, str, str]], config: TemplateConfig) -> dict[str, str]:
    found = find_templates(outline(documents, config), config)
    reasons = {}
    for name, source, text in documents:
        share, _ = template_share(text, source, found.lines, config.min_line_words)
        if share > config.max_characters:
            reasons[name] = "lines"
        elif name in found.dropped:
            reasons[name] = "skeleton"
    return reasons


def test_filled_pages_fall_and_prose_stays():
    prose = [(f"prose{number}", "web", text) for number, text in enumerate(human()[:60])]
    many = dropped([*planted(40), *prose], TemplateConfig())
    assert many == {f"filled{number:03d}": "lines" for number in range(40)}
    # A twentieth of a large source: no line is frequent, but their skeletons are one.
    rare = dropped([*planted(12), *prose * 4], TemplateConfig(line_share=0.2))
    assert rare == {f"filled{number:03d}": "skeleton" for number in range(2, 12)}
    assert dropped([*planted(6), *prose], TemplateConfig()) == {}


def test_plays_poems_and_tables_of_constants_are_no_templates():
    documents = [
        (f"{name}{number}", name, piece)
        for name in ("plays", "poems", "notes")
        for number, piece in enumerate(
            piece
            for one in read_documents(FIXTURES / f"{name}.jsonl")
            for piece in cut_text(one.text, 900)
        )
    ]
    tables = [
        (
            f"table{k}",
            "tables",
            f"Constants of part {k}\n" + "\n".join(f"{k * j} {j}" for j in range(9)),
        )
        for k in range(8)
    ]
    assert len(documents) > 60
    assert dropped([*documents, *tables], TemplateConfig()) == {}


def test_template_decision_does_not_depend_on_order():
    documents = [*planted(30), *[(f"p{n}", "web", text) for n, text in enumerate(human()[:90])]]
    shuffled = documents.copy()
    Random(5).shuffle(shuffled)
    config = TemplateConfig(line_share=0.5)
    assert dropped(documents, config) == dropped(shuffled, config)
    assert len(dropped(documents, config)) == 28


def test_skeleton_masks_values():
    text = 'On 12 May 2020 John Smith paid 1,200.50 for "a hat" at https://x.org/a.'
    assert skeleton(text) == "name 0 name 0 name paid 0 for quote at url"
