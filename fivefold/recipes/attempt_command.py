"""`fivefold attempts`: how often a checkpoint solves each problem, and what follows from that."""

import shlex
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
    from_run: Path | None = None,
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
        from_run: A run of `fivefold rl` on this task: its rollouts count too.
        thinking: Do prompts open a thinking block? auto does as the task's solutions do.
        run_dir: Where the run lives; `runs/attempts-TASK` if not given.
        fresh: Delete what an earlier run made there, and start anew.
        seed: Seed of the sampling.
        device: Where to compute; auto takes the first CUDA device, else the CPU.
        threads: CPU threads; all cores if not given.
    """
    from fivefold.recipes.attempt_learn import TooFewAnswersError
    from fivefold.recipes.attempt_run import attempt_stages
    from fivefold.recipes.launch import Launch, run_pipeline
    from fivefold.recipes.task_argument import read_task
    from fivefold.rl.attempt_config import AttemptsConfig
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
        counted=from_run,
        overrides=overrides,
    )
    check_template(checkpoint)
    (tried,) = (stage.config for stage in stages if isinstance(stage.config, AttemptsConfig))

    def tell(*, learned: bool) -> None:
        better = run / "sft" / "checkpoint" if learned else checkpoint
        for line in _next_steps(run, named.name, better, learned=learned, thinks=tried.thinks):
            console.out(line, highlight=False)

    try:
        launch = Launch(run, Selection(fresh=fresh), seed, device, threads, console)
        run_pipeline(f"attempts {named.name}", stages, launch)
    except TooFewAnswersError:
        tell(learned=False)
        raise
    tell(learned=learn)


def _next_steps(
    run: Path, name: str, checkpoint: Path, *, learned: bool, thinks: bool
) -> list[str]:
    """Return where the outcome lies, and what to do with it and the checkpoint."""
    chosen = run / "choose"
    lines = [f"(k, n) of each problem: {chosen / 'counts' / f'{name}.jsonl'}"]
    if (answers := chosen / f"{name}.jsonl").is_file():
        lines.append(f"answers to learn from: {answers}")
    if learned:
        lines.append(f"checkpoint: {checkpoint}")
    if (task := chosen / "task" / f"{name}.jsonl").is_file():
        # Of its own: the directory that RL would choose may be that of a run on the whole task.
        place = run.with_name(f"{run.name}-rl")
        said = ["--thinking", "on" if thinks else "off", "-o", str(place)]
        command = ["fivefold", "rl", str(checkpoint), "--task", str(task), *said]
        lines.append(f"next: {shlex.join(command)}")
    else:
        lines.append(
            "no problem is solved sometimes and sometimes not, as RL needs: try more of them "
            "(`--problems`, `-n`), others (`--levels`), or `fivefold rl ... --sft 400` first"
        )
    return lines
