"""`fivefold rl`: a checkpoint and a task in, a better checkpoint and a report out."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


def rl(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STAGE.KEY=VALUE")
    ] = (),
    *,
    task: str,
    verifier: str = "",
    levels: tuple[int, ...] = (),
    sft: int = 0,
    thinking: Literal["auto", "on", "off"] = "auto",
    run_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    fresh: bool = False,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> None:
    """Train a checkpoint on a task by its rewards; the same command goes on after a kill.

    Example: `fivefold rl runs/nano/adapt_dsa/checkpoint --task my_task.py --sft 400`

    Args:
        checkpoint: A Hugging Face directory to start from.
        overrides: Changes of single values of the stages, as `rl.batches=200`.
        task: A skill (copy, reverse, last_letters, count_letter, add, sort, compare, largest),
            `gym:NAME` of reasoning-gym, a `.jsonl` of problems, or a `.py` with `problem(index,
            seed)`; docs/rl.md describes both files.
        verifier: Judges rows that name none: exact, number, maths, format, a spec in JSON, or
            FILE.py:FUNCTION. A function `reward` in the task's own file needs no mention.
        levels: Levels of a skill; its first three if not given.
        sft: Solved problems to learn first; a base model needs a few hundred.
        thinking: Do prompts open a thinking block? auto does as the task's solutions do.
        run_dir: Where the run lives; `runs/rl-TASK` if not given.
        fresh: Delete what an earlier run made there, and start anew.
        seed: Seed of everything random.
        device: Where to compute; auto takes the first CUDA device, else the CPU.
        threads: CPU threads; all cores if not given.
    """
    from fivefold.recipes.launch import Launch, run_pipeline
    from fivefold.recipes.rl_run import rl_stages
    from fivefold.recipes.task_argument import read_task
    from fivefold.rl.loop_config import RlConfig
    from fivefold.serve.dialogue import is_base_model
    from fivefold.stage import Selection
    from fivefold.train.sft import check_template

    console = Console(stderr=True)
    named = read_task(task, verifier=verifier, levels=levels)
    run = run_dir or Path("runs") / f"rl-{named.name}"
    stages = rl_stages(checkpoint, named, run, sft=sft, thinking=thinking, overrides=overrides)
    check_template(checkpoint)
    if not sft and is_base_model(checkpoint):
        console.print(
            "This is a base model, which has seen no conversation: unless it answers something "
            "right by chance, nothing can be learned. `--sft 400` teaches it the task's own "
            "solutions first.",
            highlight=False,
        )
    launch = Launch(run, Selection(fresh=fresh), seed, device, threads, console)
    run_pipeline(f"rl {named.name}", stages, launch)
    trained = run / "rl" / "checkpoint"
    config = stages[-1].config
    assert isinstance(config, RlConfig), "the last stage is `rl`"
    # A model that was trained to answer at once has no use for a thinking block.
    talk = [
        "fivefold",
        "chat",
        str(trained),
        *([] if config.sampling.thinks else ["--no-thinking"]),
    ]
    console.out(f"checkpoint: {trained}\nnext: {shlex.join(talk)}", highlight=False)
