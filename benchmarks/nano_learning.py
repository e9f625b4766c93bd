"""Does the post-training of `nano` learn? Several seeds of sft -> rl_a -> rl_b -> distill.

Usage: `python benchmarks/nano_learning.py RUN_DIR`, a finished run of `nano`, of which the base
model (`adapt_dsa`) is taken; the stages after it run anew for each seed, with the recipe's configs.
Prints one JSON object a seed: after each stage the pass rate of both skills on the same held-out
problems with its standard error, sampled as RL samples and greedily, and the stage's seconds of
wall and CPU. The last line sums up, and says of each claim (`CLAIMS`) what every seed found; with
the seeds, commit, versions and machine it is also the record, `benchmarks/results/NAME.json`,
rewritten after each seed. A claim that fails is a result, not an error.

Distillation's generated tokens stand beside those of the two RL stages. The published 9-30 is
compute saved against fine-tuning on a teacher's samples (Thinking Machines Lab, "On-Policy
Distillation", 2025); against RL, Qwen3's report saves 10 in GPU hours.
"""

import argparse
import asyncio
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS

from fivefold.artifact import write_json
from fivefold.config import apply_overrides
from fivefold.manifest import describe_run
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.models.convert import read_checkpoint
from fivefold.recipes.nano_post import SKILL_A, SKILL_B, post_training
from fivefold.rl.examine import Examiner
from fivefold.rl.loop_config import RlConfig
from fivefold.rl.reinforce import open_supply
from fivefold.rl.rollout import EngineCompleter
from fivefold.serve.engine import Engine
from fivefold.stage import ProgressTask, Stage, StageContext
from fivefold.text.tokenizer import load_tokenizer
from fivefold.verify.verifier import Verifier

PUBLISHED_RATIO = "9-30"
EXAMINED_PROMPTS = 400
CLAIMS: dict[str, tuple[float, float]] = {
    "start_a_percent": (30, 60),
    "gain_a_points": (25, math.inf),
    "rl_a_cpu_seconds": (0, 120),
    "forgotten_a_points": (5, math.inf),
    "below_teacher_a_points": (-math.inf, 5),
    "below_teacher_b_points": (-math.inf, 5),
    "tokens_ratio": (1, math.inf),
}
"""Least and largest value of what is claimed of every seed; skill A is the first that RL learns."""
GREEDY, SAMPLED = 0.0, 1.0


class Silent:
    """A line of progress that nobody sees."""

    def advance(self, amount: float = 1, **shown: str) -> None:
        """Do nothing."""


@contextmanager
def track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    """Show nothing."""
    yield Silent()


def main() -> None:
    """Run all seeds and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--keep", type=Path, help="directory in which the stages stay")
    parser.add_argument("--set", nargs="*", default=[], help="overrides, `stage.key=value`")
    parser.add_argument("--examined", type=int, default=EXAMINED_PROMPTS, help="problems a skill")
    parser.add_argument("--name", default="nano_learning", help="of the record")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for seed in options.seeds:
        directory = (options.keep or Path(tempfile.mkdtemp())) / f"seed_{seed}"
        found.append(
            learn(options.run, directory, seed, options.threads, options.set, options.examined)
        )
        print(json.dumps(found[-1]), flush=True)
        if options.keep is None:
            shutil.rmtree(directory.parent)
        record(options, found)
    print(json.dumps(summarise(found, options.name)))


def record(options: argparse.Namespace, found: Sequence[Mapping[str, Any]]) -> None:
    """Write what is known so far."""
    manifest = describe_run(
        options.name,
        seed=found[0]["seed"],
        device="cpu",
        threads=options.threads,
        config_hash="",
        command=sys.argv,
    )
    settings = {"examined": options.examined, "overrides": options.set, "run": str(options.run)}
    summary = summarise(found, options.name)
    content = {**summary, "settings": settings, "seeds": list(found), "manifest": manifest}
    write_json(RESULTS / f"{options.name}.json", content)


def learn(
    run: Path, directory: Path, seed: int, threads: int, overrides: Sequence[str], examined: int
) -> dict[str, Any]:
    """Run the stages of one seed and examine what each leaves."""
    stages = post_training()
    configs = apply_overrides({stage.name: stage.config for stage in stages}, overrides)
    places = {name: run / name for name in ("adapt_dsa", "tokenizer")}
    result: dict[str, Any] = {"seed": seed, "threads": threads, "stages": {}}
    for stage in (stage.with_config(configs[stage.name]) for stage in stages):
        places[stage.name] = directory / stage.name
        seconds = execute(stage, places, seed, threads)
        if (places[stage.name] / "checkpoint").is_dir():
            checkpoint = places[stage.name] / "checkpoint"
            rates = {
                name: examine(checkpoint, temperature, examined)
                for name, temperature in (("sampled", SAMPLED), ("greedy", GREEDY))
            }
            result["stages"][stage.name] = {**rates, **seconds}
            tokens = sampled_tokens(directory / "metrics.jsonl", stage.name)
            if tokens:
                result["stages"][stage.name]["generated_tokens"] = tokens
    return {**result, **judge(result["stages"])}


def execute(stage: Stage, places: Mapping[str, Path], seed: int, threads: int) -> dict[str, float]:
    """Run a stage; return its seconds."""
    out = places[stage.name]
    out.mkdir(parents=True)
    metrics = StageMetrics(out.parent / "metrics.jsonl", stage.name)
    context = StageContext(seed, "cpu", threads, metrics, track)
    wall, cpu = time.perf_counter(), time.process_time()
    stage.execute({name: places[need] for name, need in stage.needs.items()}, out, context)
    return {
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def examine(checkpoint: Path, temperature: float, prompts: int) -> dict[str, list[float]]:
    """Return each skill's pass rate on held-out problems and its standard error."""
    config = examination(temperature, prompts)
    model = read_checkpoint(checkpoint, dtype=torch.float32, device="cpu")
    tokenizer = load_tokenizer(checkpoint)

    async def run() -> dict[str, float]:
        completer = EngineCompleter(Engine(model, config.engine))
        with Verifier(config.verifier) as verifier:
            supply = open_supply(config.sources, config, tokenizer, verifier)
            return (await Examiner(completer, supply.heldout, config, 0).examine()).metrics

    metrics = asyncio.run(run())
    return {
        skill: [metrics[f"rl/eval_pass_rate_{skill}"], metrics[f"rl/eval_pass_error_{skill}"]]
        for skill in (SKILL_A, SKILL_B)
    }


def examination(temperature: float, prompts: int) -> RlConfig:
    """Return the recipe's own RL of both skills, with more held-out problems."""
    configs = {stage.name: stage.config for stage in post_training()}
    first, second = configs["rl_a"], configs["rl_b"]
    assert isinstance(first, RlConfig)
    assert isinstance(second, RlConfig)
    evaluation = first.evaluation.model_copy(
        update={
            "prompts": prompts,
            "rollouts": 1,
            "temperature": temperature,
            "also": (),
        }
    )
    sources = (*first.sources, *second.sources)
    return first.model_copy(update={"sources": sources, "evaluation": evaluation})


def sampled_tokens(metrics: Path, stage: str) -> int:
    """Return how many tokens a stage sampled to train on."""
    records = read_metrics(metrics) if metrics.exists() else []
    return sum(int(r.get("rl/sampled_tokens", 0)) for r in records if r["stage"] == stage)


def judge(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the stages gained, lost and brought back, in points of sampled pass rate."""

    def rate(stage: str, skill: str) -> float:
        return 100 * stages[stage]["sampled"][skill][0]

    tokens = {stage: stages[stage]["generated_tokens"] for stage in ("rl_a", "rl_b", "distill")}
    return {
        "start_a_percent": round(rate("sft", SKILL_A), 1),
        "rl_a_cpu_seconds": stages["rl_a"]["cpu_seconds"],
        "rl_a_wall_seconds": stages["rl_a"]["wall_seconds"],
        "gain_a_points": round(rate("rl_a", SKILL_A) - rate("sft", SKILL_A), 1),
        "gain_b_points": round(rate("rl_b", SKILL_B) - rate("rl_a", SKILL_B), 1),
        "forgotten_a_points": round(rate("rl_a", SKILL_A) - rate("rl_b", SKILL_A), 1),
        "below_teacher_a_points": round(rate("rl_a", SKILL_A) - rate("distill", SKILL_A), 1),
        "below_teacher_b_points": round(rate("rl_b", SKILL_B) - rate("distill", SKILL_B), 1),
        "tokens_ratio": round((tokens["rl_a"] + tokens["rl_b"]) / tokens["distill"], 2),
    }


def check(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each claim with what every seed found, and whether it holds for all of them."""
    claims = {}
    for name, (least, most) in CLAIMS.items():
        values = [one[name] for one in found]
        limits = {"least": least, "largest": most}
        claims[name] = {
            **{side: limit for side, limit in limits.items() if math.isfinite(limit)},
            "found": values,
            "holds": all(least <= value <= most for value in values),
        }
    return claims


def summarise(found: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Return mean, least and largest of every judgement, in the shape of the other benchmarks."""
    names = [n for n in found[0] if n.endswith(("_points", "_ratio", "_percent", "_seconds"))]
    spread = {
        name: {
            "mean": round(statistics.fmean(one[name] for one in found), 1),
            "least": min(one[name] for one in found),
            "largest": max(one[name] for one in found),
        }
        for name in names
    }
    tokens = {
        side: statistics.median(
            sum(one["stages"][stage]["generated_tokens"] for stage in stages) for one in found
        )
        for side, stages in (("ours", ("distill",)), ("peer", ("rl_a", "rl_b")))
    }
    return {
        "name": title,
        "ratio": statistics.median(one["tokens_ratio"] for one in found),
        **tokens,
        "unit": "generated tokens: RL of both skills over their distillation",
        "pairs": len(found),
        "published_ratio": PUBLISHED_RATIO,
        "claims": check(found),
        **spread,
    }


if __name__ == "__main__":
    main()
