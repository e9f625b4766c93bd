"""Which rollouts are shown, and that the histogram of rho names its bins rightly."""

import dataclasses
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from toy import toy_config

from fivefold.rl.config import AdvantageConfig, AlgorithmConfig, DistillationConfig
from fivefold.rl.distillation import with_teacher
from fivefold.rl.loop_config import RlConfig, SourceConfig
from fivefold.rl.mismatch import EDGES
from fivefold.rl.pack import pack_samples
from fivefold.rl.page import bin_name, write_page
from fivefold.rl.progress import Progress, batch_line, examination_line
from fivefold.rl.sample import Sample
from fivefold.rl.shown import choose_shown, describe_shown, token_worth


def sample_of(group: str, advantage: float, length: int = 4, **fields) -> Sample:
    mask = np.arange(length) > 0
    return Sample(
        ids=np.arange(length),
        loss_mask=mask,
        rollout_logprobs=np.full(length, -1.0),
        versions=np.where(mask, 0, -1),
        group=group,
        reward=float(advantage > 0),
        advantages=np.full(length, advantage),
        **fields,
    )


def test_worst_and_best_are_shown_of_different_groups() -> None:
    samples = [
        sample_of(f"g{n // 4}", value) for n, value in enumerate([-2, -2, 1, 3, -1, 0, 1, 2])
    ]
    shown = choose_shown(samples, 4)
    assert [(s.group, float(token_worth(s)[1])) for s in shown] == [
        ("g0", -2.0),
        ("g1", -1.0),
        ("g1", 2.0),
        ("g0", 3.0),
    ]
    assert len({id(s) for s in shown}) == 4
    assert choose_shown(samples, 0) == []
    assert len(choose_shown(samples, 100)) == 8


def test_teacher_judges_each_token() -> None:
    teacher = np.array([0.0, -0.5, -1.0, -4.0])
    (row,) = describe_shown(
        [sample_of("g", 0.0, teacher_logprobs=teacher)],
        [np.full(4, -1.0)],
        [np.full(4, -2.0)],
        lambda ids: f"<{ids[0]}>",
    )
    assert row["tokens"] == ["<1>", "<2>", "<3>"]
    assert row["advantages"] == [0.5, 0.0, -3.0]
    assert row["engine_logprobs"] == row["trainer_logprobs"] == [-1.0] * 3
    assert row["learned_logprobs"] == [-2.0] * 3


@pytest.mark.parametrize(("discount", "weight"), [(0.0, 1.0), (1.0, 1.0), (0.5, 3.0)])
def test_colours_are_the_advantages_of_the_loss(discount: float, weight: float) -> None:
    config = DistillationConfig(discount=discount, weight=weight)
    rng = np.random.default_rng(3)
    samples = []
    for number in range(3):
        teacher = -rng.random(9)
        sample = sample_of(f"g{number}", 0.25 * number, 9, teacher_logprobs=teacher)
        mask = sample.loss_mask & (rng.random(9) < 0.7) | (np.arange(9) == 8)
        samples.append(dataclasses.replace(sample, loss_mask=mask))
    (packed,) = pack_samples(samples, 99, 9, dtype=torch.float64)
    trainer = [np.where(s.loss_mask, -rng.random(9), 0.0) for s in samples]
    flat = torch.zeros(packed.streams.mask_N.shape, dtype=torch.float64)
    for member, begin, length in zip(packed.members, packed.begins, packed.lengths, strict=True):
        flat[begin : begin + length] = torch.from_numpy(trainer[member][1:])
    seen = packed.unpack(with_teacher(flat, packed.streams, config).advantages_N)
    for number, sample in enumerate(samples):
        worth = token_worth(sample, config, trainer[number])
        np.testing.assert_allclose(worth[sample.loss_mask], seen[number][sample.loss_mask])
    shown = describe_shown(samples, trainer, trainer, str, config)
    kept = [value for value in shown[1]["advantages"] if value is not None]
    assert kept == pytest.approx(seen[1][samples[1].loss_mask], rel=1e-5)


def test_samples_are_chosen_by_what_they_are_worth_to_the_loss() -> None:
    # The engine gave every token -1: gaps (0, 0, 0.9) against (1, 0, 0.2).
    late = sample_of("late", 0.0, teacher_logprobs=np.array([0.0, -1.0, -1.0, -0.1]))
    early = sample_of("early", 0.0, teacher_logprobs=np.array([0.0, 0.0, -1.0, -0.8]))
    for discount, best in ((0.0, "early"), (1.0, "late")):
        config = DistillationConfig(discount=discount)
        assert choose_shown([late, early], 1, config)[0].group == best


def test_page_says_how_a_teacher_judges(tmp_path) -> None:
    def said(distillation: DistillationConfig, **fields) -> str:
        algorithm = AlgorithmConfig(advantage=None, distillation=distillation)
        config = toy_config(algorithm=algorithm.model_copy(update=fields))
        write_page(Progress(judged=[{}]), config, tmp_path)
        return json.loads((tmp_path / "20_tokens.json").read_text())["note"]

    assert "is log teacher - log student." in said(DistillationConfig())
    told = said(DistillationConfig(discount=1, weight=2), advantage=AdvantageConfig())
    assert "2 times log teacher - log student, summed from there to the end, added to" in told
    assert "with 0.5 a token" in said(DistillationConfig(discount=0.5))


def test_bins_narrow_by_decades_around_one() -> None:
    assert list(EDGES) == sorted(EDGES) == [-edge or 0.0 for edge in reversed(EDGES)]
    inner = [2**edge - 1 for edge in EDGES if 0 < edge < 0.2]
    assert [b / a for a, b in pairwise(inner)] == pytest.approx([10.0] * 6)
    names = [bin_name(place) for place in range(len(EDGES) + 1)]
    assert len(set(names)) == len(names)
    for (one, other), place in zip(pairwise(names), range(len(EDGES)), strict=True):
        edge = re.split(" to | and more", one)[-1].removeprefix("below ")
        assert edge in other
        assert value_of(edge) == pytest.approx(2 ** EDGES[place], rel=0.02)


def value_of(edge: str) -> float:
    if match := re.fullmatch(r"1 ([+-]) (\S+)", edge):
        return 1 + float(match[1] + match[2])
    return float(edge)


def test_histogram_on_the_page_has_every_token_once(tmp_path) -> None:
    counts = [0] * (len(EDGES) + 1)
    one = EDGES.index(0.0) + 1
    counts[one], counts[one - 3], counts[one + 2] = 50, 7, 4
    progress = Progress(
        rho_histogram=counts,
        rho_exact_tokens=45,
        rho_nan_tokens=6,
        reasons={"infra: late by _": 3, "other reasons": 2},
        reason_examples={"infra: late by _": "infra: late by 7"},
    )
    task = {"kind": "procedural", "skill": "copy"}
    config = RlConfig(sources=(SourceConfig.model_validate({"task": task}),))
    write_page(progress, config, tmp_path)
    block = (tmp_path / "40_rho.json").read_text()
    columns = re.findall(r'"name": "(.*?)",\s+"value": (\d+)', block)
    assert sum(int(count) for _, count in columns) == 61
    assert dict(columns)["exactly 1"] == "45"
    assert dict(columns)["1 to 1 + 1e-7"] == "5"
    assert "Not drawn: 6 tokens that have no rho" in block
    rows = json.loads((tmp_path / "51_reasons.json").read_text())["rows"]
    assert rows == [["infra: late by 7", 3], ["other reasons", 2]]


def test_lines_tell_errors_and_what_was_left_out() -> None:
    values = {
        "rl/reward_mean": 0.5,
        "rl/reward_error": 0.04,
        "rl/pass_rate": 0.5,
        "rl/pass_error": 0.04,
        "rl/rollouts_infra": 2,
        "rl/rollouts_invalid": 1,
        "rl/sample_seconds": 1.0,
        "rl/train_seconds": 0.5,
        "rl/no_signal": False,
    }
    task = {"kind": "procedural", "skill": "copy"}
    config = RlConfig(sources=(SourceConfig.model_validate({"task": task}),), batches=9)
    line = batch_line(Progress(batch=3), config, values)
    assert line == "batch 3/9  reward 0.50 ± 0.04  pass 50% ± 4%  3 rollouts left out  1.5 s"
    assert batch_line(Progress(), config, {**values, "rl/no_signal": True}).endswith("no signal")
    rates = {"rl/eval_pass_rate": 0.4, "rl/eval_pass_rate_a": 0.3, "rl/eval_pass_rate_b": 0.5}
    told = examination_line(Progress(batch=5), {**rates, "rl/eval_pass_error_a": 0.01})
    assert told == "batch 5  held-out problems solved: a 30.0% ± 1.0%, b 50.0%"
    failed = {"rl/eval_failed_rollouts": 4, "rl/eval_rollouts": 9}
    told = examination_line(Progress(batch=5), {**rates, **failed})
    solved, left_out = told.split("; ")
    assert solved == "batch 5  held-out problems solved: a 30.0%, b 50.0%"
    assert left_out == "4 of 9 held-out answers not judged"
    assert examination_line(Progress(), failed) == "batch 0  4 of 9 held-out answers not judged"
    none = {"rl/eval_failed_rollouts": 0, "rl/eval_rollouts": 0}
    assert examination_line(Progress(), none) == "batch 0  no held-out problem examined"
    assert "2 tokens without a rho" in batch_line(
        Progress(), config, {**values, "rl/rho_nan_tokens": 2}
    )
