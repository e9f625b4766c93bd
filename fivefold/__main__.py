"""The command line: `fivefold COMMAND ...`, each command with `--help`.

Commands import what they need when they run, so that `--help` and `plan` answer at once and without
torch. A user's mistake ends with one paragraph and exit code 2; a traceback is a defect of
Fivefold.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text

from fivefold.config import validate
from fivefold.errors import ConfigError, FivefoldError
from fivefold.recipes.attempt_command import attempts
from fivefold.recipes.rl_command import rl

Overrides = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STAGE.KEY=VALUE")
]
Device = Literal["auto", "cpu", "cuda"]


def run(
    recipe: Annotated[str, tyro.conf.Positional],
    overrides: Overrides = (),
    *,
    run_dir: Path | None = None,
    only: str | None = None,
    until: str | None = None,
    fresh: bool = False,
    seed: int = 0,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Run a recipe's stages; the same command goes on after a kill.

    Example: `fivefold run nano pretrain.total_tokens=2e6`

    Args:
        recipe: Name of a recipe: nano, mini, small or glm5.
        overrides: Changes of single config values.
        run_dir: Where the run lives; `runs/RECIPE` if not given.
        only: Run this stage alone.
        until: Run up to and including this stage.
        fresh: Delete what the selected stages made before, and start them anew.
        seed: Seed of everything random.
        device: Where to compute; auto takes the first CUDA device, else the CPU.
        threads: CPU threads; all cores if not given.
    """
    from fivefold.recipes.launch import Launch, run_recipe
    from fivefold.stage import Selection

    console = Console(stderr=True)
    launch = Launch(
        run_dir or Path("runs") / recipe,
        Selection(only=only, until=until, fresh=fresh),
        seed,
        device,
        threads,
        console,
    )
    run_recipe(recipe, overrides, launch)


def plan(
    recipe: Annotated[str, tyro.conf.Positional],
    overrides: Overrides = (),
    *,
    gpus: int | None = None,
    hardware: str = "h100",
) -> None:
    """Print shapes, parameters, FLOPs and bytes of a recipe's or preset's model, without training.

    With `--gpus`, print the best layouts for a cluster instead: memory a rank, bubble, MFU, days.

    Args:
        recipe: A recipe (nano, mini, small, glm5), or a preset (glm47_flash, glm45, deepseek_v3).
        overrides: Changes of single config values; for a preset `model.KEY=VALUE`.
        gpus: Accelerators to spread the model over.
        hardware: Their kind: a100, h800, h100, h200 or b200.
    """
    from fivefold.plan.describe import describe_model, render
    from fivefold.plan.hardware import find_hardware
    from fivefold.plan.layout_table import render_layouts
    from fivefold.plan.search import search_layouts
    from fivefold.recipes.paper import models_to_plan

    console = Console(width=max(Console().width, 100))
    for name, model, training in models_to_plan(recipe, overrides):
        if gpus is None:
            console.print(render(describe_model(model, name=name, run=training)))
            continue
        if training is None:
            raise ConfigError(
                expected="a recipe with `--gpus`: a layout is planned for a training run",
                found=f"the preset `{recipe}`",
                fix="Plan the recipe `glm5` or `small`, with overrides of its model",
            )
        kind = find_hardware(hardware)
        layouts = search_layouts(model, gpus, kind, training)
        console.print(render_layouts(layouts, kind, training, name=name))


def schedule(
    name: Annotated[str, tyro.conf.Positional],
    *,
    stages: int = 4,
    microbatches: int = 8,
    chunks: int = 2,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    draw: Path | None = None,
) -> None:
    """Simulate a pipeline schedule on paper and print, or draw, its timeline.

    Args:
        name: 1f1b, interleaved, zb_h1, zb_h2, zb_v, v_half, v_min or automatic.
        stages: Pipeline ranks.
        microbatches: Microbatches of a step.
        chunks: Model chunks a rank, for interleaved.
        forward: Time of a forward pass of one microbatch through a rank.
        input_gradient: Time of the backward pass to the input.
        weight_gradient: Time of the backward pass to the weights.
        draw: An SVG file to write.
    """
    from fivefold.artifact import atomic_write
    from fivefold.plan.make_schedule import make_schedule, rank_costs
    from fivefold.plan.schedule_table import render_timeline
    from fivefold.plan.simulate import simulate
    from fivefold.plan.timeline import draw_timeline

    costs = rank_costs(
        name,
        stages,
        chunks=chunks,
        forward=forward,
        input_gradient=input_gradient,
        weight_gradient=weight_gradient,
    )
    timeline = simulate(
        make_schedule(name, stages, microbatches, chunks=chunks, costs=costs), costs
    )
    console = Console(width=max(Console().width, 100))
    console.print(render_timeline(timeline))
    if draw is not None:
        with atomic_write(draw) as partial:
            partial.write_text(draw_timeline(timeline), encoding="utf-8")
        console.out(f"wrote {draw}", highlight=False)


def report(run_dir: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write RUN/report.html from a run directory, finished or not.

    Args:
        run_dir: The run directory, for example `runs/nano`.
    """
    from fivefold.report.page import write_report

    Console().out(f"wrote {write_report(run_dir)}", highlight=False)


def data() -> None:
    """Get text, curate it, look at what was dropped; `fivefold data --help` lists the actions."""
    # The line of `fivefold --help`; `main` goes on to `data.command_line`.


def generate(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    *,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """Continue a text with a trained model.

    Args:
        checkpoint: A Hugging Face directory, for example `runs/nano/pretrain/checkpoint`.
        prompt: The text to continue.
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the best token each time.
        top_p: Keep the smallest set of best tokens with at least this probability.
        top_k: Keep this many best tokens; 0 keeps all.
        seed: Seed of the sampling.
        device: Where to compute.
    """
    from fivefold.models.generate import Sampling
    from fivefold.models.talk import Talker
    from fivefold.recipes.launch import resolve_device

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    talker = Talker(checkpoint, resolve_device(device), sampling, seed)
    sys.stdout.write(prompt)
    for piece in talker.continue_text(prompt, max_new_tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def chat(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    seed: int | None = None,
    device: Device = "auto",
    mode: Literal["auto", "chat", "continue"] = "auto",
    thinking: bool = True,
) -> None:
    """Talk to a trained model; a base model continues what you type.

    Args:
        checkpoint: A Hugging Face directory.
        max_new_tokens: Most tokens of a reply.
        temperature: 0 takes the best token each time.
        top_p: Keep the smallest set of best tokens with at least this probability.
        top_k: Keep this many best tokens; 0 keeps all.
        seed: Seed of the sampling; each turn has another one if not given.
        device: Where to compute.
        mode: chat uses the chat template, continue does not; auto asks the stage that wrote it.
        thinking: Let a chat model think before it answers; its thinking is shown dimmed.
    """
    from fivefold.recipes.launch import resolve_device
    from fivefold.serve.request import SamplingParams
    from fivefold.serve.terminal import chat_at

    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    where = resolve_device(device)
    chat_at(Console(), checkpoint, params, device=where, mode=mode, enable_thinking=thinking)


def serve(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    deterministic: bool = False,
    draft_tokens: int = 0,
    pool_tokens: int = 65_536,
    most_running: int = 64,
    grace_seconds: int = 10,
) -> None:
    """Serve a model over HTTP: OpenAI's routes under /v1, SGLang's beside them, /docs for all.

    Example: `fivefold serve runs/nano/pretrain/checkpoint --port 8000`

    Args:
        checkpoint: A Hugging Face directory.
        host: Address to listen at; the routes that replace weights are open to whoever reaches it.
        port: Port to listen at; 0 takes any free one.
        name: Name of the model in requests; the stage or directory if not given.
        device: Where to compute.
        threads: CPU threads; all cores if not given.
        deterministic: Make every number independent of the batch, bit for bit; slower.
        draft_tokens: Tokens that the MTP layer drafts ahead; 0 turns speculation off.
        pool_tokens: Tokens that the cache holds.
        most_running: Requests that compute at a time.
        grace_seconds: Time that running requests have to finish when the server is stopped.
    """
    from fivefold.recipes.launch import resolve_device
    from fivefold.serve.config import EngineConfig
    from fivefold.serve.launch import serve as serve_checkpoint

    console = Console()
    fields = {
        "deterministic": deterministic,
        "draft_tokens": draft_tokens,
        "pool_tokens": pool_tokens,
        "most_running": most_running,
        # Room for a prompt chunk beside all that decode.
        "step_tokens": max(512, most_running * (1 + draft_tokens)),
    }
    serve_checkpoint(
        checkpoint,
        host=host,
        port=port,
        device=resolve_device(device),
        threads=threads,
        config=validate(EngineConfig, fields, where="serve"),
        name=name,
        grace_seconds=grace_seconds,
        say=lambda line: console.out(line, highlight=False),
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "rl": rl,
    "attempts": attempts,
    "plan": plan,
    "schedule": schedule,
    "report": report,
    "data": data,
    "generate": generate,
    "chat": chat,
    "serve": serve,
}


def main() -> None:
    """Run the command line; exits with 2 on a user's mistake, 130 on an interrupt."""
    arguments = sys.argv[1:]
    commands, name = COMMANDS, "fivefold"
    about = "The GLM-5 recipe as one PyTorch codebase."
    if arguments[:1] == ["data"]:
        from fivefold.data.command_line import DATA_COMMANDS

        commands, name, about = DATA_COMMANDS, "fivefold data", data.__doc__
        arguments = arguments[1:]
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog=name,
            description=about,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except FivefoldError as error:
        message = Text.assemble(("error ", "bold red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on from the last state")
        sys.exit(130)


if __name__ == "__main__":
    main()
