"""RL on a task of one's own: the stages of `fivefold rl`.

    start -> task -> [solved -> sft] -> rl

`start` takes the checkpoint, `task` looks at the task and holds problems out, `solved` and `sft`
teach its own solutions first, `rl` is the stage that recipes use. Where a base model answers
nothing right, no reward tells its answers apart and nothing can be learned; a few hundred solved
problems give it the form of an answer, and a chance. That is a stage of its own and not a trick
inside RL, so that the report shows what each of the two gave.

Surprise: two settings come from the task. Solutions without thinking ask for prompts without, and
the longest response allowed is twice the longest known solution. And some of the stage `task` come
from the others: which problems may train, and how long a prompt may be.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import xxhash

from fivefold.config import Config, apply_overrides, validate
from fivefold.data.conversation_config import ConversationsConfig
from fivefold.envs.config import FileConfig, ProceduralConfig, SolvedConfig, TasksConfig
from fivefold.envs.file_task import FileTask
from fivefold.envs.open_task import open_task
from fivefold.envs.stages import TasksStage
from fivefold.envs.task import Task
from fivefold.errors import ConfigError
from fivefold.models.config import read_config
from fivefold.recipes.start_stage import StartStage, start_config
from fivefold.recipes.task_argument import OwnTask
from fivefold.recipes.task_length import Sizes, does_think, longest_prompt, measure, see_problems
from fivefold.rl.heldout import LEAST_ROWS, heldout_rows
from fivefold.rl.loop_config import (
    EvaluationConfig,
    RecordConfig,
    RlConfig,
    SamplingConfig,
    SourceConfig,
    UpdateConfig,
)
from fivefold.rl.own_task import OwnTaskConfig, OwnTaskStage
from fivefold.rl.preset import icepop
from fivefold.rl.stages import RlStage
from fivefold.serve.config import EngineConfig
from fivefold.stage import Stage
from fivefold.text.tokenizer import load_tokenizer
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage

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
    overrides: Sequence[str] = (),
) -> list[Stage]:
    """Return the stages that train a checkpoint on a task in the directory `run`.

    `sft` counts the solved problems to learn first; `auto` thinks where the task's solutions do.
    `overrides` change single values, as `rl.batches=200`.

    Raises:
        FivefoldError: a checkpoint that is not whole, a task that cannot be opened, problems that
            leave no room for an answer, solutions asked for and not known, an unknown override.
    """
    start = start_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    # What is said of the task itself comes first: the other stages are made from it.
    mine = [override for override in overrides if override.partition(".")[0] == "task"]
    looked_at = apply_overrides({"task": OwnTaskConfig(task=task.config)}, mine)["task"]
    task = dataclasses.replace(task, config=looked_at.task)
    opened = open_task(task.config)
    seen = see_problems(opened, needs_solutions=sft > 0)
    knows_all = all(p.solution for p in seen)
    thinks = thinking == "on" or (thinking == "auto" and (does_think(seen) or not knows_all))
    limit = read_config(checkpoint).max_position_embeddings
    sizes = measure(seen, tokenizer, limit, thinks=thinks)
    known = {"content_hash": _hash_files(task), "name": task.name}
    looked_at = looked_at.model_copy(update=known)
    source, heldout = _source(task, opened, looked_at, run)
    looks = OwnTaskStage("task", looked_at, needs={"start": "start"})
    stages: list[Stage] = [StartStage("start", start), looks]
    if sft:
        solved = _solved(source, opened, heldout, sft, thinks=thinks)
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
    stages.append(RlStage("rl", _rl(source, sizes, heldout, thinks=thinks), needs=needs))
    configs = apply_overrides({stage.name: stage.config for stage in stages}, overrides)
    configs["task"] = looked_at.model_copy(update=_demands(configs, limit))
    # What is said of these on the command line stands.
    configs |= apply_overrides({"task": configs["task"]}, mine)
    return [stage.with_config(configs[stage.name]) for stage in stages]


def _demands(configs: Mapping[str, Config], limit: int) -> dict[str, object]:
    """Return what the stage `task` has to know of the others: fields of its config."""
    rl, solved = configs["rl"], configs.get("solved")
    assert isinstance(rl, RlConfig), "the last stage is `rl`"
    trained = rl.batches * rl.sampling.batch_prompts * (1 + rl.sampling.refill_rounds)
    heldout = rl.evaluation.prompts
    if isinstance(solved, TasksConfig):
        trained = max(trained, *(source.problems for source in solved.sources.values()))
        heldout = max(heldout, *(source.heldout_problems for source in solved.sources.values()))
    is_divided = isinstance(rl.sources[0].task, FileConfig | ProceduralConfig)
    longest = longest_prompt(
        rl.update.row_tokens,
        rl.sampling.max_new_tokens,
        limit,
        setting="rl.sampling.max_new_tokens",
    )
    return {
        "trained": trained,
        "heldout": 0 if is_divided else heldout,
        "longest_prompt_tokens": longest,
        "thinks": rl.sampling.thinks,
    }


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


def _source(
    task: OwnTask, opened: Task, looked_at: OwnTaskConfig, run: Path
) -> tuple[SourceConfig, int | None]:
    """Return what is trained and examined on, as the stage `task` divides it.

    And of a file, how many rows are held out.
    """
    if isinstance(task.config, ProceduralConfig):
        return SourceConfig(task=task.config), None
    place = run / "task"
    if not isinstance(opened, FileTask) or not isinstance(task.config, FileConfig):
        # The problems are held out when the stage runs.
        path = place / "heldout" / f"{task.name}.jsonl"
        heldout = FileConfig(path=str(path), order="file")
        return SourceConfig(task=task.config, heldout=heldout), None
    parts = {
        part: task.config.model_copy(update={"path": str(place / part / opened.path.name)})
        for part in ("train", "heldout")
    }
    count = len(heldout_rows(opened, looked_at.heldout_share, looked_at.most_heldout))
    return SourceConfig(task=parts["train"], heldout=parts["heldout"] if count else None), count


def _solved(
    source: SourceConfig, opened: Task, heldout: int | None, problems: int, *, thinks: bool
) -> SolvedConfig:
    if heldout == 0:
        raise ConfigError(
            expected=f"at least {LEAST_ROWS} rows to fine-tune on, one of them to validate on "
            "whose prompt no other row has",
            found=f"{opened.size} rows, none of which is held out",
            fix="Add rows, raise `task.heldout_share`, or leave `--sft` out",
        )
    fields = {
        "task": source.task,
        "problems": problems,
        "heldout": source.heldout,
        "heldout_problems": _VALIDATED if heldout is None else min(_VALIDATED, heldout),
        "thinks": thinks,
    }
    return validate(SolvedConfig, fields, where="solved")


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


def _rl(source: SourceConfig, sizes: Sizes, heldout: int | None, *, thinks: bool) -> RlConfig:
    examined = 0 if heldout == 0 else _EXAMINED
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
