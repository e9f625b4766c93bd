"""Stages, their graph, and the directory in which a run lives.

A stage reads directories and writes one. Its fingerprint is the hash of its name, its config and
the digests of what it reads; `finished.json` in its directory carries that fingerprint and the
digest of what it wrote. A stage whose fingerprint stands there is skipped, one that was killed goes
on where it was, one whose config or inputs changed starts anew after its directory was set aside
under `previous/`: nothing that took hours is deleted unless `--fresh` says so.
"""

import abc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fivefold.artifact import digest_directory, read_json, remove, storage_errors, write_json
from fivefold.config import Config, config_to_json, hash_config
from fivefold.errors import ConfigError, RunDirectoryError
from fivefold.metrics import StageMetrics

logger = logging.getLogger(__name__)


class ProgressTask(Protocol):
    """One line of progress; `shown` values stand beside the bar."""

    def advance(self, amount: float = 1, **shown: str) -> None:
        """Count `amount` more units as done."""
        ...


class Track(Protocol):
    """Opens a line of progress: what, how much in all, in which unit."""

    def __call__(
        self, description: str, total: float, unit: str, /
    ) -> AbstractContextManager[ProgressTask]:
        """Return a context manager that shows the line while it is open."""
        ...


class Ranks(Protocol):
    """The processes that run a recipe together; the first owns the run directory."""

    place: str
    """Where this rank is, for the report of a failure."""

    @property
    def is_first(self) -> bool:
        """Is this the process that owns the run directory?"""
        ...

    def share(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        ...

    def wait(self) -> None:
        """Wait until every rank is here."""
        ...


class OneProcess:
    """A run without peers."""

    place = ""
    is_first = True

    def share(self, value: Any) -> Any:
        """Return the value."""
        return value

    def wait(self) -> None:
        """Go on."""


@dataclass(frozen=True)
class StageContext:
    """What a stage is given beside its inputs."""

    seed: int
    """Seed of the run; a stage derives all its generators from it."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Threads for CPU work."""
    metrics: StageMetrics
    """Where numbers go."""
    track: Track
    """Where progress goes."""
    ranks: Ranks = field(default_factory=OneProcess)
    """The processes that run the stage together."""


class Stage(abc.ABC):
    """One arrow of a recipe: a config that turns input directories into an output directory."""

    what: ClassVar[str] = ""
    """One phrase for the console and the report."""
    is_seeded: ClassVar[bool] = True
    """Does the run's seed change what the stage makes?"""
    is_distributed: ClassVar[bool] = False
    """Do all ranks execute the stage together? Else the first alone, while the others wait."""

    def __init__(self, name: str, config: Config, needs: Mapping[str, str] | None = None) -> None:
        """Name the stage and say which stage makes each of its inputs."""
        self.name = name
        self.config = config
        self.needs = dict(needs or {})

    def with_config(self, config: Config) -> "Stage":
        """Return the same stage with another config of the same class."""
        assert type(config) is type(self.config), f"{self.name} takes {type(self.config).__name__}"
        return type(self)(self.name, config, self.needs)

    @abc.abstractmethod
    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Do the work. `out` exists and may hold what a killed attempt left."""


@dataclass(frozen=True)
class Selection:
    """Which stages of a recipe to run."""

    only: str | None = None
    """Run this stage alone; what it needs must be finished."""
    until: str | None = None
    """Run up to and including this stage."""
    fresh: bool = False
    """Delete what the selected stages made before, and start them anew."""


def order_stages(stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages so that each follows what it needs, otherwise in the order given.

    Raises:
        ConfigError: two stages share a name, or a need is unknown or circular.
    """
    named = {stage.name: stage for stage in stages}
    if len(named) != len(stages):
        raise ConfigError(
            expected="stages with different names",
            found=", ".join(stage.name for stage in stages),
            fix="Rename one of them",
        )
    ordered: dict[str, Stage] = {}
    pending = list(stages)
    while pending:
        ready = [stage for stage in pending if ordered.keys() >= set(stage.needs.values())]
        if not ready:
            stuck = "; ".join(f"{s.name} needs {', '.join(s.needs.values())}" for s in pending)
            raise ConfigError(
                expected="stages whose needs are other stages, without a circle",
                found=stuck,
                fix="Correct `needs` in the recipe",
            )
        ordered[ready[0].name] = ready[0]
        pending.remove(ready[0])
    return list(ordered.values())


def select_stages(stages: Sequence[Stage], selection: Selection) -> list[Stage]:
    """Return the ordered stages that a command asks for.

    Raises:
        ConfigError: an unknown stage name, or both `only` and `until`.
    """
    ordered = order_stages(stages)
    names = [stage.name for stage in ordered]
    wanted = selection.only or selection.until
    if selection.only and selection.until:
        raise ConfigError(
            expected="one of `--only` and `--until`", found="both", fix="Leave one of them out"
        )
    if wanted is None:
        return ordered
    if wanted not in names:
        raise ConfigError(
            expected="the name of a stage",
            found=repr(wanted),
            fix=f"Choose one of {', '.join(names)}",
        )
    last = names.index(wanted)
    return ordered[last if selection.only else 0 : last + 1]


def claim_run_directory(run: Path, recipe: str) -> None:
    """Make the run directory, or check that it belongs to this recipe.

    Raises:
        RunDirectoryError: the directory holds another recipe's run or foreign files.
    """
    owner = (read_json(run / "manifest.json") or {}).get("recipe")
    if owner == recipe:
        return
    # A run killed while it claimed the directory leaves a partial manifest, and may come again.
    if run.exists() and (
        not run.is_dir() or any(path.name != "manifest.json.partial" for path in run.iterdir())
    ):
        raise RunDirectoryError(
            expected=f"an empty directory or an earlier run of recipe `{recipe}` at `{run}`",
            found=f"a run of recipe `{owner}`" if owner else "files that no run of Fivefold made",
            fix="Choose another directory with `--run-dir`",
        )
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)


def run_stages(
    stages: Sequence[Stage],
    run: Path,
    selection: Selection,
    make_context: Callable[[Stage], StageContext],
) -> None:
    """Run the selected stages in order, skipping the finished and resuming the killed ones.

    Every rank calls this; the first decides what to skip and writes the markers.

    Raises:
        ConfigError: with `only`, an input that is not there yet or was made by other configs.
    """
    chosen = select_stages(stages, selection)
    contexts = [make_context(stage) for stage in chosen]
    if contexts[0].ranks.is_first:
        if selection.only:
            _check_inputs(chosen[0], stages, run, contexts[0].seed)
        if selection.fresh:
            for stage in chosen:
                remove(run / stage.name)
    for stage, context in zip(chosen, contexts, strict=True):
        _run_stage(stage, run, context)


def _run_stage(stage: Stage, run: Path, context: StageContext) -> None:
    ranks = context.ranks
    ranks.place = f"before stage `{stage.name}`"
    marker = _open_stage(stage, run, context) if ranks.is_first else None
    is_wanted = ranks.share(marker is not None)
    if not is_wanted:
        return
    ranks.place = f"in stage `{stage.name}`"
    out = run / stage.name
    begin = time.monotonic()
    if ranks.is_first or stage.is_distributed:
        if not stage.is_distributed:
            context = replace(context, ranks=OneProcess())
        with storage_errors(out):
            stage.execute({name: run / need for name, need in stage.needs.items()}, out, context)
    ranks.wait()
    if marker is not None:
        seconds = time.monotonic() - begin
        digest = digest_directory(out)
        write_json(out / "finished.json", {**marker, "output_digest": digest, "seconds": seconds})
        (out / "started.json").unlink()
        logger.info("%s: finished in %.0f s", stage.name, seconds)


def _open_stage(stage: Stage, run: Path, context: StageContext) -> dict[str, Any] | None:
    """Make the stage's directory ready and return its marker; None if it finished before."""
    out = run / stage.name
    marker = _expected_marker(stage, run, context.seed)
    finished = read_json(out / "finished.json")
    if finished is not None and _same(finished, marker):
        logger.info("%s: finished before, skipped", stage.name)
        return None
    started = read_json(out / "started.json")
    if out.exists() and (finished is not None or started is None or not _same(started, marker)):
        _set_aside(out, run / "previous")
        started = None
    if started is None:
        context.metrics.forget_after(-1)
        write_json(out / "started.json", marker)
        logger.info("%s: %s", stage.name, stage.what or "starts")
    else:
        logger.info("%s: was interrupted, goes on", stage.name)
    return marker


def _check_inputs(target: Stage, stages: Sequence[Stage], run: Path, seed: int) -> None:
    """Refuse inputs, and inputs of inputs, that are missing or were made by other configs."""
    wanted = set(target.needs.values())
    for stage in reversed(order_stages(stages)):
        if stage.name in wanted:
            wanted |= set(stage.needs.values())
    for stage in order_stages(stages):
        if stage.name not in wanted:
            continue
        finished = read_json(run / stage.name / "finished.json")
        if finished is None or not _same(finished, _expected_marker(stage, run, seed)):
            raise ConfigError(
                expected=f"stage `{stage.name}` to be finished, with its present config, before "
                f"`{target.name}`",
                found=f"{'another config' if finished else 'no result'} in `{run / stage.name}`",
                fix=f"Run it first, for example with `--until {target.name}`",
            )


def _expected_marker(stage: Stage, run: Path, seed: int) -> dict[str, Any]:
    """Return the fingerprint of the stage; what it needs is finished."""
    inputs = {}
    for name, need in stage.needs.items():
        finished = read_json(run / need / "finished.json")
        assert finished is not None, f"{need} runs before {stage.name}"
        inputs[name] = finished["output_digest"]
    return {
        "stage": stage.name,
        "kind": type(stage).__name__,
        "seed": seed if stage.is_seeded else None,
        "config_hash": hash_config(stage.config),
        "inputs": inputs,
        "config": config_to_json(stage.config),
    }


def _same(marker: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    keys = ("stage", "kind", "seed", "config_hash", "inputs")
    return all(marker.get(key) == expected[key] for key in keys)


def _set_aside(out: Path, previous: Path) -> None:
    """Move an outdated stage directory to `previous/NAME-K`."""
    number = 1
    while (target := previous / f"{out.name}-{number}").exists():
        number += 1
    previous.mkdir(exist_ok=True)
    out.rename(target)
    logger.info("%s: config or inputs changed, earlier result kept in %s", out.name, target)
