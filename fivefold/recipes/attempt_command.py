"""`fivefold attempts`: how often does a checkpoint solve each problem, and what is that good for?"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


def attempts(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STAGE.KEY=VALUE")
    ] = (),
    *,
    task: str,
    verifier: str = "",
    levels: tuple[int, ...] = (),
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8,
    problems: int = 200,
    take: Literal["passing", "best"] = "passing",
    learn: bool = False,
    thinking: Literal["auto", "on", "off"] = "auto",
    run_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    fresh: bool = False,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> None:
    """Let a checkpoint try each problem n times; keep right answers, and problems worth RL.

    Example: `fivefold attempts runs/nano/sft/checkpoint --task sort -n 8`

    Args:
        checkpoint: A Hugging Face directory.
        overrides: Changes of single values of the stages, as `choose.trained.highest=0.5`.
        task: As for `fivefold rl`: a skill, `gym:NAME`, a `.jsonl` of problems, a `.py`.
        verifier: As for `fivefold rl`.
        levels: Levels of a skill; its first three if not given.
        n: Attempts at each problem.
        problems: Problems to try; of a finite task none comes twice.
        take: Learn from each passing answer of a problem (rejection sampling), or its best.
        learn: Fine-tune the checkpoint on the answers that are kept.
        thinking: Do prompts open a thinking block? auto does as the task's solutions do.
        run_dir: Where the run lives; `runs/attempts-TASK` if not given.
        fresh: Delete what an earlier run made there, and start anew.
        seed: Seed of the sampling.
        device: Where to compute; auto takes the first CUDA device, else the CPU.
        threads: CPU threads; all cores if not given.
    """
    from fivefold.config import apply_overrides
    from fivefold.recipes.attempt_run import attempt_stages
    from fivefold.recipes.launch import run_pipeline
    from fivefold.recipes.task_argument import read_task
    from fivefold.report.page import write_report
    from fivefold.stage import Selection
    from fivefold.train.sft import check_template

    console = Console(stderr=True)
    named = read_task(task, verifier=verifier, levels=levels)
    run = run_dir or Path("runs") / f"attempts-{named.name}"
    stages = attempt_stages(
        checkpoint,
        named,
        run,
        attempts=n,
        problems=problems,
        take=take,
        learns=learn,
        thinking=thinking,
    )
    check_template(checkpoint)
    configs = apply_overrides({stage.name: stage.config for stage in stages}, overrides)
    run_pipeline(
        f"attempts {named.name}",
        [stage.with_config(configs[stage.name]) for stage in stages],
        run=run,
        selection=Selection(fresh=fresh),
        seed=seed,
        device=device,
        threads=threads,
        console=console,
        command=sys.argv,
        conclude=lambda run: console.out(f"report: {write_report(run)}", highlight=False),
    )
    for line in _next_steps(run, named.name, checkpoint, learned=learn):
        console.out(line, highlight=False)


def _next_steps(run: Path, name: str, checkpoint: Path, *, learned: bool) -> list[str]:
    """Return where the outcome lies, and what to do with it."""
    chosen = run / "choose"
    better = run / "sft" / "checkpoint" if learned else checkpoint
    lines = [f"(k, n) of each problem: {chosen / 'counts' / f'{name}.jsonl'}"]
    if (answers := chosen / f"{name}.jsonl").is_file():
        lines.append(f"answers to learn from: {answers}")
    if learned:
        lines.append(f"checkpoint: {better}")
    if (task := chosen / "task" / f"{name}.jsonl").is_file():
        lines.append(f"next: fivefold rl {better} --task {task}")
    return lines
