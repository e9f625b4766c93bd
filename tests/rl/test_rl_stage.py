"""The stages as a recipe runs them: from checkpoint directories to checkpoint directories."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import KilledError, context_of, run_toy, toy_config, toy_model

from fivefold.envs.config import FunctionTaskConfig, ProceduralConfig
from fivefold.errors import ConfigError, MismatchError, MissingFileError
from fivefold.metrics import read_metrics
from fivefold.models.convert import read_checkpoint, write_checkpoint
from fivefold.report.block import draw_block
from fivefold.rl import preset
from fivefold.rl.config import AdvantageConfig
from fivefold.rl.loop_config import (
    DistillConfig,
    EvaluationConfig,
    RecordConfig,
    RlConfig,
    SamplingConfig,
    SourceConfig,
    TeacherConfig,
)
from fivefold.rl.reinforce import open_supply
from fivefold.rl.stages import DistillStage, RlStage
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer, load_tokenizer
from fivefold.verify.verifier import Verifier

VOCABULARY = 460
TASK = """
def problem(index, seed):
    letter = "aeiou"[(index + seed) % 5]
    return {"prompt": f"Say {letter}.", "verifier": {"kind": "function", "target": REWARD}}


def reward(answer, arguments):
    return float("e" in answer)


REWARD = __file__ + ":reward"
"""


def tokenizer_of(text: str) -> Tokenizer:
    return Tokenizer(train_tokenizer([text] * 9, TokenizerConfig(vocab_size=VOCABULARY)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    tokenizer = tokenizer_of(
        "The keeper counted 1234 waves, then slept. What did the keeper do on the hill? "
    )
    write_start(root / "start" / "checkpoint", tokenizer, 0)
    for name, sharper in (("teacher_a", 4.0), ("teacher_b", 6.0)):
        write_start(root / name / "checkpoint", tokenizer, 0, sharper)
    tokenizer.save_pretrained(root / "tokenizer")
    (root / "task.py").write_text(TASK)
    names = ("start", "tokenizer", "teacher_a", "teacher_b")
    return {name: root / name for name in names}


def write_start(
    checkpoint: Path, tokenizer: Tokenizer, seed: int, sharper: float = 1.0, **fields: Any
) -> None:
    model = toy_model(seed, vocab_size=VOCABULARY, eos_token_id=tokenizer.stop_ids, **fields)
    with torch.no_grad():
        model.norm.weight.mul_(sharper)
    write_checkpoint(model, checkpoint)
    tokenizer.save_pretrained(checkpoint)


def settings_of(batches: int) -> dict[str, Any]:
    toy = toy_config(batches)
    return {
        "batches": batches,
        "engine": toy.engine,
        "update": toy.update.model_copy(update={"row_tokens": 64, "lr": 6e-3}),
        "evaluation": EvaluationConfig(prompts=4, every_batches=5, temperature=1.0),
        "record": RecordConfig(checkpoint_batches=2),
    }


def rl_config(inputs: dict[str, Path], batches: int = 14) -> RlConfig:
    task = FunctionTaskConfig(target=f"{inputs['start'].parent}/task.py:problem")
    algorithm = preset.icepop(4).model_copy(
        update={"advantage": AdvantageConfig(group_size=4, method="mean")}
    )
    return RlConfig(
        sources=(SourceConfig(task=task),),
        algorithm=algorithm,
        sampling=SamplingConfig(batch_prompts=8, max_new_tokens=4, thinks=False),
        **settings_of(batches),
    )


def distil_config(batches: int = 2, teacher: str = "") -> DistillConfig:
    copy = ProceduralConfig(skill="copy", levels=(1,))
    reverse = ProceduralConfig(skill="reverse", levels=(1,))
    sources = [
        TeacherConfig(task=copy, teacher=teacher or "teacher_a"),
        TeacherConfig(task=reverse, teacher=teacher or "teacher_b"),
    ]
    return DistillConfig(
        sources=tuple(sources),
        sampling=SamplingConfig(batch_prompts=48, max_new_tokens=4),
        **settings_of(batches),
    )


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained")
    RlStage("rl", rl_config(inputs)).execute(inputs, run / "rl", context_of(run))
    return run


def test_task_of_one_s_own_is_learned(trained: Path) -> None:
    records = read_metrics(trained / "metrics.jsonl")
    rewards = [record["rl/reward_mean"] for record in records if "rl/reward_mean" in record]
    assert len(rewards) == 14
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.9
    evaluated = [record for record in records if "rl/eval_pass_rate" in record]
    assert [record["step"] for record in evaluated] == [0, 5, 10, 14]


def test_outcome_is_a_checkpoint_with_everything(trained: Path, inputs: dict[str, Path]) -> None:
    before = read_checkpoint(inputs["start"] / "checkpoint").state_dict()
    after = read_checkpoint(trained / "rl" / "checkpoint").state_dict()
    stays = {n for n in before if ".indexer." in n or n.startswith("mtp.")}
    assert all(torch.equal(before[name], after[name]) for name in stays)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    tokenizer = load_tokenizer(trained / "rl" / "checkpoint")
    assert tokenizer.content_hash == load_tokenizer(inputs["tokenizer"]).content_hash


def test_page_tells_the_training(trained: Path) -> None:
    page = trained / "rl" / "page"
    blocks = {path.stem: json.loads(path.read_text()) for path in page.iterdir()}
    assert {*blocks} == {"20_tokens", "30_rollouts", "40_rho", "50_counts"}
    for block in page.iterdir():
        assert "cannot be drawn" not in draw_block(block), block
    columns = blocks["40_rho"]["columns"]
    records = read_metrics(trained / "metrics.jsonl")
    sampled = sum(record.get("rl/sampled_tokens", 0) for record in records)
    assert 0 < sum(column["value"] for column in columns) <= sampled
    assert [column["name"] for column in columns if column.get("is_marked")] == ["exactly 1"]
    assert "Say" in blocks["30_rollouts"]["samples"][0]["prompt"]


def test_shown_tokens_carry_what_training_made_of_them(trained: Path) -> None:
    block = json.loads((trained / "rl" / "page" / "20_tokens.json").read_text())
    worst, best = block["rollouts"]
    for rollout in (worst, best):
        length = len(rollout["tokens"])
        assert 0 < length <= 4
        streams = [rollout[f"{name}_logprobs"] for name in ("engine", "trainer", "learned")]
        assert all(len(stream) == length for stream in (rollout["advantages"], *streams))
        engine, trainer, learned = streams
        assert engine == pytest.approx(trainer, abs=1e-4)
        assert learned != pytest.approx(trainer, abs=1e-4)
    assert sum(worst["advantages"]) < 0 < sum(best["advantages"])
    gain = [
        sum(rollout["learned_logprobs"]) - sum(rollout["trainer_logprobs"])
        for rollout in (worst, best)
    ]
    assert gain[0] < gain[1]


def test_killed_stage_goes_on(trained: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    stage = RlStage("rl", rl_config(inputs))
    with pytest.raises(KilledError):
        stage.execute(inputs, tmp_path / "rl", context_of(tmp_path, dies_after=5))
    stage.execute(inputs, tmp_path / "rl", context_of(tmp_path))
    ours = read_checkpoint(tmp_path / "rl" / "checkpoint").state_dict()
    theirs = read_checkpoint(trained / "rl" / "checkpoint").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert list((tmp_path / "rl" / "page").iterdir())


def test_finite_task_needs_held_out_problems(inputs: dict[str, Path]) -> None:
    config = rl_config(inputs, 1)
    task = config.sources[0].task.model_copy(update={"size": 9})
    tokenizer = load_tokenizer(inputs["tokenizer"])
    with Verifier(config.verifier) as verifier:
        with pytest.raises(ConfigError, match="a task of 9 problems"):
            open_supply([SourceConfig(task=task)], config, tokenizer, verifier)
        twice = [SourceConfig(task=ProceduralConfig(skill="copy"))] * 2
        supply = open_supply(twice, config, tokenizer, verifier)
    assert [source.name for source in supply.sources] == ["copy", "copy_2"]
    trained = {supply.sources[0].prompt(n).ids for n in range(200)}
    assert not trained & {prompt.ids for prompt in supply.heldout}
    assert len({prompt.group for prompt in supply.heldout}) == 8


def test_distillation_stage_asks_each_source_s_teacher(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    config = distil_config(3)
    DistillStage("distill", config).execute(inputs, tmp_path / "d", context_of(tmp_path))
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "rl/loss" in r]
    assert len(records) == 3
    for record in records:
        # Both teachers are the student with larger logits, the second one's the largest.
        assert 0 < record["rl/teacher_kl_nats_copy"] < record["rl/teacher_kl_nats_reverse"]
        assert record["rl/groups_kept"] == 48
        assert record["rl/rollouts_infra"] == 0
        assert record["rl/reward_mean"] == 0
    page = tmp_path / "d" / "page"
    for block in page.iterdir():
        assert "cannot be drawn" not in draw_block(block), block
    worth = json.loads((page / "20_tokens.json").read_text())["rollouts"][0]["advantages"]
    assert len({*worth}) > 1  # a teacher judges each token by itself
    assert (tmp_path / "d" / "checkpoint" / "config.json").is_file()


def test_teacher_with_another_tokenizer_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    other = tokenizer_of(
        "Entirely different sentences about mountains, valleys and 98765 rivers below them. "
    )
    write_start(tmp_path / "t" / "checkpoint", other, 3)
    given = {**inputs, "teacher_a": tmp_path / "t"}
    with pytest.raises(MismatchError, match="a teacher with the student's tokenizer"):
        DistillStage("d", distil_config()).execute(given, tmp_path / "d", context_of(tmp_path))


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", None], ids=["other", "none"])
def test_teacher_with_another_template_is_refused(
    template: str | None, inputs: dict[str, Path], tmp_path: Path
) -> None:
    write_start(tmp_path / "t" / "checkpoint", load_tokenizer(inputs["tokenizer"]), 3)
    path = tmp_path / "t" / "checkpoint" / "chat_template.jinja"
    if template is None:
        path.unlink()
    else:
        path.write_text(template)
    given = {**inputs, "teacher_a": tmp_path / "t"}
    expected = MissingFileError if template is None else MismatchError
    with pytest.raises(expected, match=r"chat.template"):
        DistillStage("d", distil_config()).execute(given, tmp_path / "d", context_of(tmp_path))


def test_teacher_that_reads_less_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(inputs["tokenizer"])
    write_start(tmp_path / "t" / "checkpoint", tokenizer, 3, max_position_embeddings=64)
    given = {**inputs, "teacher_a": tmp_path / "t"}
    with pytest.raises(MismatchError, match="max_position_embeddings"):
        DistillStage("d", distil_config()).execute(given, tmp_path / "d", context_of(tmp_path))


def test_teacher_that_is_no_input_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = distil_config(teacher="nobody")
    with pytest.raises(ConfigError, match="an input `nobody`"):
        DistillStage("d", config).execute(inputs, tmp_path / "d", context_of(tmp_path))


def test_configs_do_not_import_torch() -> None:
    script = "import sys, fivefold.rl.stages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_run_killed_by_a_signal_goes_on_bit_for_bit(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import toy
class Killer(toy.Bar):
    def advance(self, amount=1, **shown):
        self.left -= bool(shown)
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
toy.Bar = Killer
from pathlib import Path
toy.run_toy(Path({str(tmp_path / "cut")!r}), toy.toy_config(6), dies_after=4)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    assert ended.returncode == -signal.SIGKILL
    resumed, progress = run_toy(tmp_path / "cut", toy_config(6))
    whole, expected = run_toy(tmp_path / "whole", toy_config(6))
    assert progress == expected
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
