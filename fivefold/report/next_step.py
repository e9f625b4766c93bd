"""What a reader can do with a finished or interrupted run, as commands to copy."""

import shlex
from pathlib import PurePath

from markupsafe import Markup

from fivefold.report.markup import element
from fivefold.report.record import TOKENS_METRIC, RunRecord


def draw_next_steps(run: RunRecord) -> Markup:
    """Return the commands with which a reader goes on."""
    recipe = str(run.manifest.get("recipe", "nano"))
    place = run.path.as_posix()
    run_recipe = f"fivefold run {recipe} --run-dir {place}"
    models = [stage.checkpoint for stage in run.stages if stage.checkpoint is not None]
    model = f"{place}/{models[-1] if models else 'STAGE/checkpoint'}"
    trained = [stage.name for stage in run.stages if TOKENS_METRIC in stage.curves]
    budget = f"{trained[0] if trained else 'pretrain'}.total_tokens"
    resume = _spell_command(run.manifest.get("command")) or run_recipe
    own = [
        ("Continue a text", f"fivefold generate {model} --prompt 'Once upon a time'"),
        (
            "Train on more tokens, in another directory",
            f"{run_recipe}-longer {budget}=2e7",
        ),
        (
            "Train on text of your own",
            f"{run_recipe}-mine corpus.profile=files corpus.files='[\"my-texts/\"]'",
        ),
    ]
    further = [
        ("Serve it", f"fivefold serve {model}"),
        ("Go on from here with another task", f"fivefold rl {model} --task MY_TASK.py"),
    ]
    steps = [
        ("Talk to the model", f"fivefold chat {model}{_thinking_flag(run)}"),
        ("Go on after an interruption; finished stages are skipped", resume),
        *(own if _is_recipe(run) else further),
        (
            "Open it in transformers",
            "\n".join(
                [
                    "from transformers import AutoModelForCausalLM, AutoTokenizer",
                    f"model = AutoModelForCausalLM.from_pretrained({model!r})",
                    f"tokenizer = AutoTokenizer.from_pretrained({model!r})",
                ]
            ),
        ),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", what), element("dd", element("pre", command)))
            for what, command in steps
        ),
        class_="next",
    )


def _is_recipe(run: RunRecord) -> bool:
    """Did `fivefold run` make the run? So is one assumed whose command is not known."""
    command = run.manifest.get("command")
    arguments = command.split() if isinstance(command, str) else command
    if not isinstance(arguments, list) or len(arguments) < 2:
        return True
    return str(arguments[1]) == "run"


def _thinking_flag(run: RunRecord) -> str:
    """Return the flag of `fivefold chat` for a model that was trained to answer at once."""
    trained = [stage for stage in run.stages if stage.checkpoint is not None]
    sampling = trained[-1].config.get("sampling") if trained else None
    answers_at_once = isinstance(sampling, dict) and sampling.get("thinks") is False
    return " --no-thinking" if answers_at_once else ""


def _spell_command(command: object) -> str:
    """Return the command line of a run, given as text or as its arguments; empty if neither."""
    if isinstance(command, list) and command:
        program, *arguments = map(str, command)
        name = PurePath(program).name
        # What `python -m fivefold` leaves of itself.
        names = ["python", "-m", "fivefold"] if name == "__main__.py" else [name]
        return shlex.join([*names, *arguments])
    return command if isinstance(command, str) else ""
