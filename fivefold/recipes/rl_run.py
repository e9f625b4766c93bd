"""RL on a task of one's own: the stages of `fivefold rl`.

    start -> task -> [solved -> sft] -> rl

`start` takes the checkpoint, `task` looks at the task and holds rows of a file out, `solved` and
`sft` teach its own solutions first, `rl` is the stage that recipes use. Where a base model answers
nothing right, no reward tells its answers apart and nothing can be learned; a few hundred solved
problems give it the form of an answer, and a chance. That is a stage of its own and not a trick
inside RL, so that the report shows what each of the two gave.

Surprise: two settings come from the task. Solutions without thinking ask for prompts without, and
the longest response allowed is twice the longest known solution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from fivefold.data.conversation_config import ConversationsConfig
from fivefold.envs.config import FileConfig, SolvedConfig, TasksConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.stages import TasksStage
from fivefold.envs.task import Problem, Task, TaskError
from fivefold.errors import ConfigError
from fivefold.models.config import read_config
from fivefold.recipes.start_stage import StartStage, start_config
from fivefold.recipes.task_argument import OwnTask
from fivefold.rl.loop_config import (
    EvaluationConfig,
    RecordConfig,
    RlConfig,
    SamplingConfig,
    SourceConfig,
    UpdateConfig,
)
from fivefold.rl.own_task import LEAST_ROWS, OwnTaskConfig, OwnTaskStage, heldout_rows
from fivefold.rl.preset import icepop
from fivefold.rl.stages import RlStage
from fivefold.serve.config import EngineConfig
from fivefold.stage import Stage
from fivefold.text.template import render, render_prompt
from fivefold.text.tokenizer import Tokenizer, load_tokenizer
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage

_SEEN = 100
"""Problems whose solutions decide about thinking and lengths."""
_UNKNOWN_TOKENS = 128
"""Longest response where no solution is known."""
_ROW_TOKENS = 4096
"""Places of a row of RL where the model's context has as many."""
_PLACES = 8192
"""Places of a forward and backward."""
_EXAMINED = 64
"""Held-out prompts."""
_VALIDATED = 32
"""Held-out conversations of the fine-tuning."""


def rl_stages(
    checkpoint: Path,
    task: OwnTask,
    run: Path,
    *,
    sft: int = 0,
    thinking: Literal["auto", "on", "off"] = "auto",
) -> list[Stage]:
    """Return the stages that train a checkpoint on a task in the directory `run`.

    `sft` counts the solved problems to learn first; `auto` thinks where the task's solutions do.

    Raises:
        FivefoldError: a checkpoint that is not whole, a task that cannot be opened, problems that
            leave no room for an answer, solutions asked for and not known.
    """
    start = start_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    opened = open_task(task.config)
    seen = _see(opened, needs_solutions=sft > 0)
    has_thoughts = any(p.solution and p.solution.reasoning_content for p in seen)
    knows_all = all(p.solution for p in seen)
    thinks = thinking == "on" or (thinking == "auto" and (has_thoughts or not knows_all))
    limit = read_config(checkpoint).max_position_embeddings
    sizes = _measure(seen, tokenizer, limit, thinks=thinks)
    looked_at = OwnTaskConfig(task=task.config, content_hash=_hash_files(task))
    source = _source(task, opened, looked_at, run)
    stages: list[Stage] = [StartStage("start", start), OwnTaskStage("task", looked_at)]
    if sft:
        solved = _solved(source, opened, looked_at, sft, thinks=thinks)
        kept = TasksConfig(sources={task.name: solved})
        stages += [
            TasksStage("solved", kept, needs={"task": "task"}),
            SftStage(
                "sft",
                _sft(sizes.solved_tokens),
                needs={"start": "start", "tokenizer": "start", "conversations": "solved"},
            ),
        ]
    needs = {"start": "sft" if sft else "start", "tokenizer": "start", "task": "task"}
    return [*stages, RlStage("rl", _rl(source, sizes, thinks=thinks), needs=needs)]


@dataclass(frozen=True)
class _Sizes:
    """Lengths that the task's problems ask for."""

    new_tokens: int
    """Longest response."""
    solved_tokens: int
    """Row of the fine-tuning: a prompt with its solution, and then some."""
    row_tokens: int
    """Row of RL; samples are packed as narrow as they allow."""


def _see(task: Task, *, needs_solutions: bool) -> list[Problem]:
    count = _SEEN if task.size is None else min(task.size, _SEEN)
    problems = [task.problem(index) for index in range(count)]
    unsolved = next((p for p in problems if p.solution is None), None)
    if needs_solutions and unsolved is not None:
        raise TaskError(
            expected=f"a solution of `{unsolved.id}`, for `--sft`",
            found="none: the task does not know it",
            fix="Give `solution` in the task's rows, or leave `--sft` out",
        )
    return problems


def _measure(problems: list[Problem], tokenizer: Tokenizer, limit: int, *, thinks: bool) -> _Sizes:
    """Return how long responses and rows may be: powers of two, within the model's context."""
    prompts, answers = [0], list[int]()
    for problem in problems:
        prompt = len(render_prompt(problem.prompt, tokenizer, enable_thinking=thinks))
        prompts.append(prompt)
        if problem.solved is not None:
            answers.append(len(render(problem.solved, tokenizer, close=True).ids) - prompt)
    wanted = 2 * max(answers) if answers and thinks == _thinks(problems) else _UNKNOWN_TOKENS
    new_tokens = max(1 << (wanted - 1).bit_length(), 16)
    room = limit - 1 - max(prompts)
    if room < 16:
        raise ConfigError(
            expected=f"prompts that leave room for an answer within the model's {limit} tokens",
            found=f"one of {max(prompts)} tokens",
            fix="Shorten the prompts, or train a checkpoint with a longer context",
        )
    new_tokens = min(new_tokens, room)
    # Prompts that are not seen here may be longer.
    solved_tokens = max(1 << (2 * max(prompts) + new_tokens).bit_length(), 128)
    row_tokens = max(min(limit, _ROW_TOKENS), solved_tokens)
    return _Sizes(new_tokens, min(solved_tokens, limit), min(row_tokens, limit))


def _thinks(problems: list[Problem]) -> bool:
    return any(p.solution and p.solution.reasoning_content for p in problems)


def _hash_files(task: OwnTask) -> str:
    """Hash the task's file and that of its reward function; empty where there is neither."""
    judge = getattr(task.config, "verifier", None)
    target = str(judge.get("target", "")) if isinstance(judge, Mapping) else ""
    rewards = Path(target.rpartition(":")[0])
    files = [path for path in (task.file, rewards) if path is not None and path.is_file()]
    content = xxhash.xxh3_128()
    for path in dict.fromkeys(files):
        content.update(path.read_bytes())
    return content.hexdigest()[:16] if files else ""


def _source(task: OwnTask, opened: Task, looked_at: OwnTaskConfig, run: Path) -> SourceConfig:
    """Return what is trained and examined on; rows of a file as the stage `task` divides them."""
    if not isinstance(task.config, FileConfig):
        return SourceConfig(task=task.config)
    assert opened.size is not None, "a file ends"
    place = run / "task"
    name = Path(task.config.path).name
    parts = {
        part: task.config.model_copy(update={"path": str(place / part / name)})
        for part in ("train", "heldout")
    }
    has_heldout = bool(heldout_rows(opened.size, looked_at))
    return SourceConfig(task=parts["train"], heldout=parts["heldout"] if has_heldout else None)


def _solved(
    source: SourceConfig,
    opened: Task,
    looked_at: OwnTaskConfig,
    problems: int,
    *,
    thinks: bool,
) -> SolvedConfig:
    heldout = _VALIDATED
    if isinstance(source.task, FileConfig):
        assert opened.size is not None, "a file ends"
        heldout = min(heldout, len(heldout_rows(opened.size, looked_at)))
        if not heldout:
            raise ConfigError(
                expected=f"at least {LEAST_ROWS} rows to fine-tune on, one of them to validate on",
                found=str(opened.size),
                fix="Add rows, or leave `--sft` out",
            )
    return SolvedConfig(
        task=source.task,
        problems=problems,
        heldout=source.heldout,
        heldout_problems=heldout,
        thinks=thinks,
    )


def _sft(context_tokens: int) -> SftConfig:
    return SftConfig(
        conversations=ConversationsConfig(context_tokens=context_tokens),
        kind="linear",
        # Muon's updates have a fixed size: few steps want a large rate.
        peak_lr=1.2e-2,
        final_lr=1e-3,
        warmup_fraction=0.05,
        batch_rows=4,
        microbatch_rows=4,
        mtp_weight=0.0,
        mtp_weight_late=0.0,
        validation_steps=20,
        sample_count=2,
        log_steps=10,
    )


def _rl(source: SourceConfig, sizes: _Sizes, *, thinks: bool) -> RlConfig:
    examined = _EXAMINED if not isinstance(source.task, FileConfig) or source.heldout else 0
    return RlConfig(
        sources=(source,),
        algorithm=icepop(16),
        batches=40,
        sampling=SamplingConfig(
            batch_prompts=16, max_new_tokens=sizes.new_tokens, thinks=thinks, refill_rounds=1
        ),
        evaluation=EvaluationConfig(prompts=examined, every_batches=10),
        update=UpdateConfig(
            row_tokens=sizes.row_tokens,
            microbatch_rows=max(_PLACES // sizes.row_tokens, 1),
            lr=1e-3,
            warmup_updates=5,
        ),
        record=RecordConfig(checkpoint_batches=10, shown_rollouts=4),
        engine=EngineConfig(most_running=256, step_tokens=1024),
    )
