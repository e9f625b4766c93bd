"""Which rollouts are shown, and that the histogram of rho names its bins rightly."""

import re
from itertools import pairwise

import numpy as np
import pytest

from fivefold.rl.loop_config import RlConfig, SourceConfig
from fivefold.rl.mismatch import EDGES
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
    progress = Progress(rho_histogram=counts, rho_exact_tokens=45, reasons={"infra: late": 3})
    task = {"kind": "procedural", "skill": "copy"}
    config = RlConfig(sources=(SourceConfig.model_validate({"task": task}),))
    write_page(progress, config, tmp_path)
    columns = re.findall(
        r'"name": "(.*?)",\s+"value": (\d+)', (tmp_path / "40_rho.json").read_text()
    )
    assert sum(int(count) for _, count in columns) == 61
    assert dict(columns)["exactly 1"] == "45"
    assert dict(columns)["1 to 1 + 1e-7"] == "5"
    assert "infra: late" in (tmp_path / "51_reasons.json").read_text()


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
    assert examination_line(Progress(), {"rl/eval_failed_rollouts": 4}) is None
