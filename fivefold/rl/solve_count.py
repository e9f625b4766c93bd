"""(k, n) of problems from RL's own rollouts, which cost nothing more.

RL dumps what a batch trained on and what all of its rollouts were worth (`dump`). Each is one
attempt at a problem, by a policy that changed meanwhile: the table says how hard a problem was for
the run, the later dumps how hard it is now.

Surprise: a dump that was written without the groups that had no signal knows only problems of
middling difficulty. And where a function gives several problems one id, a dump cannot tell them
apart: they are counted as one, which is none of those that `attempt` names.
"""

import logging
import re
from pathlib import Path

from fivefold.artifact import write_json
from fivefold.data.attempts import PassCount, write_pass_counts
from fivefold.data.choose_page import rate_block
from fivefold.errors import MissingFileError
from fivefold.rl.attempt_config import DumpCountsConfig
from fivefold.rl.dump import dumped_batches, read_judged

logger = logging.getLogger(__name__)


def write_dump_counts(config: DumpCountsConfig, out: Path) -> None:
    """Write `out/counts/NAME.jsonl` of all dumps that the stage of RL has left.

    Raises:
        MissingFileError: there are none, or none of the source.
        CorruptFileError: one of them is damaged.
    """
    name = config.source
    counts = count_dumps(Path(config.path), config.pass_reward)
    called = next((each for each in (name, *config.aliases) if each in counts), None)
    if called is None:
        raise MissingFileError(
            expected=f"rollouts of the source `{name}` in `{config.path}`",
            found="only those of " + ", ".join(f"`{each}`" for each in sorted(counts)),
            fix="Name a run of the same task",
        )
    found = counts[called]
    write_pass_counts(out / "counts" / f"{name}.jsonl", found)
    write_json(out / "page" / f"10_rates_{name}.json", rate_block(name, found))
    logger.info("%s: (k, n) of %d problems from rollouts of RL", name, len(found))


def count_dumps(directory: Path, threshold: float = 1.0) -> dict[str, dict[str, PassCount]]:
    """Return (k, n) by problem, for each source, of all rollout dumps in a directory.

    Raises:
        MissingFileError: there are none.
        CorruptFileError: one of them is damaged.
    """
    batches = dumped_batches(directory)
    if not batches:
        raise MissingFileError(
            expected=f"rollout dumps in `{directory}`",
            found="none",
            fix="Run RL with `record.dumps_kept` above 0",
        )
    counts: dict[str, dict[str, PassCount]] = {}
    for batch in batches:
        for judged in read_judged(directory / f"batch_{batch:08d}.npz"):
            known = counts.setdefault(judged.source, {})
            key = problem_of_group(judged.group, judged.source)
            passed = PassCount(int(judged.reward >= threshold), 1)
            known[key] = known.get(key, PassCount(0, 0)).plus(passed)
    return counts


def problem_of_group(group: str, source: str) -> str:
    """Return the id of the problem of which a group of rollouts is one occurrence."""
    return re.sub(r"#\d+$", "", group.removeprefix(f"{source}/"))
