"""The verdict follows from the numbers; tokens are counted once; curves stand on tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.report.record import Curve, RunRecord, StageRecord, State, read_run
from fivefold.report.story import count_tokens, describe_verdict


def stage(name: str, state: State = "finished", **metrics: list[float]) -> StageRecord:
    curves = {
        key.replace("__", "/"): Curve([*range(len(values))], values, [*range(len(values))])
        for key, values in metrics.items()
    }
    return StageRecord(name, state, 1.0, {}, curves)


def run_of(*stages: StageRecord) -> RunRecord:
    return RunRecord(Path("runs/nano"), {}, list(stages), [])


@pytest.mark.parametrize(
    ("bits", "gzip", "phrase"),
    [
        (1.84, 2.09, "1.84 bits a byte, 12% less than gzip -9, which spends 2.09"),
        (2.05, 2.09, "a little less than gzip -9"),
        (2.15, 2.09, "about as much as gzip -9"),
        (3.00, 2.00, "50% more than gzip -9"),
        (1.84, None, "no gzip figure"),
        (None, 2.09, "not been measured"),
    ],
)
def test_verdict_compares_with_gzip(bits: float | None, gzip: float | None, phrase: str):
    stages = []
    if gzip is not None:
        stages.append(stage("tokens", data__heldout_gzip_bits_per_byte=[gzip]))
    if bits is not None:
        stages.append(stage("pretrain", validation__bits_per_byte=[5.0, bits]))
    assert phrase in describe_verdict(run_of(*stages))


def test_verdict_prefers_all_held_out_documents_to_the_sample():
    pretrain = stage(
        "pretrain", validation__bits_per_byte=[3.0, 1.9], validation__final_bits_per_byte=[1.8]
    )
    assert "predicts the held-out text at 1.80 bits a byte" in describe_verdict(run_of(pretrain))
    later = stage("midtrain", "unfinished", validation__bits_per_byte=[1.7])
    assert "a sample of the held-out text at 1.70" in describe_verdict(run_of(pretrain, later))


def test_verdict_names_unfinished_and_waiting_stages():
    assert "All stages finished." in describe_verdict(run_of(stage("a")))
    stages = [stage("a"), stage("b", "unfinished"), stage("c", "not started")]
    assert "Stage b has not finished" in describe_verdict(run_of(*stages))
    assert "c did not start" in describe_verdict(run_of(stages[0], stages[2]))


def test_tokens_are_counted_once_whether_stages_count_on_or_anew():
    anew = run_of(stage("a", train__tokens=[10, 100]), stage("b", train__tokens=[10, 50]))
    counted_on = run_of(stage("a", train__tokens=[10, 100]), stage("b", train__tokens=[110, 150]))
    assert count_tokens(anew) == count_tokens(counted_on) == 150
    assert count_tokens(run_of(stage("a"))) == 0


def test_curves_stand_on_training_tokens_where_a_stage_logs_them(tmp_path: Path):
    records = [
        {"stage": "pretrain", "step": 1, "train/tokens": 100, "train/lr": 0.1},
        {"stage": "pretrain", "step": 3, "train/tokens": 300, "train/lr": 0.2},
        {"stage": "pretrain", "step": 2, "validation/loss_nats": 4.0},
        {"stage": "rollout", "step": 7, "reward/mean": 1.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    pretrain, rollout = read_run(tmp_path).stages
    assert pretrain.curves["train/lr"].x == [100, 300]
    assert pretrain.curves["validation/loss_nats"].x == [200]
    assert pretrain.curves["train/tokens"].x == [1, 3]
    assert (rollout.x_label, rollout.curves["reward/mean"].x) == ("step", [7])


def test_stages_keep_the_order_of_the_recipe_and_find_the_checkpoint(
    make_run: Callable[..., Path],
):
    run = make_run(steps=20)
    (run / "previous" / "pretrain-1").mkdir(parents=True)
    (run / "previous" / "pretrain-1" / "finished.json").write_text("{}", encoding="utf-8")
    record = read_run(run)
    assert [s.name for s in record.stages] == [
        "corpus",
        "tokenizer",
        "tokens",
        "pretrain",
        "midtrain",
        "evaluate",
    ]
    assert [s.state for s in record.stages[3:]] == ["finished", "unfinished", "not started"]
    assert record.stages[3].checkpoint == "pretrain/checkpoint"
    assert record.last_value("data/documents") == 9822
