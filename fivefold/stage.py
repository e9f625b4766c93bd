"""Stages, their graph, and the directory in which a run lives.

A stage reads directories and writes one. Its fingerprint is the hash of its name, its config and
the digests of what it reads; `finished.json` in its directory carries that fingerprint and the
digest of what it wrote. A stage whose fingerprint stands there is skipped, one that was killed goes
on where it was, one whose config or inputs changed starts anew after its directory was set aside
under `previous/`: nothing that took hours is deleted unless `--fresh` says so.

The digest of an output covers every file but `page/` (plots), `state/` (resume state), the markers,
and what a kill left half-written (`*.partial`).
"""

import abc
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import xxhash

from fivefold.config import Config, config_to_json, hash_config
from fivefold.errors import ConfigError, RunDirectoryError, StorageError
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


class Stage(abc.ABC):
    """One arrow of a recipe: a config that turns input directories into an output directory."""

    what: ClassVar[str] = ""
    """One phrase for the console and the report."""

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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` at success and disappears at failure.

    Raises:
        StorageError: the disk is full or read-only.
    """
    partial = path.with_name(path.name + ".partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        try:
            yield partial
            if path.is_dir():
                remove(path)
            partial.replace(path)
        except BaseException:
            remove(partial)
            raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's storage faults into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_FAULTS:
            raise
        # A stage also reads: the fault may lie at a file of the user's, far from what it writes.
        place = Path(error.filename) if isinstance(error.filename, str) else path
        is_ours = str(place.absolute()).startswith(str(path.absolute()))
        raise StorageError(
            expected=f"to be able to {f'write `{path}`' if is_ours else f'open `{place}`'}",
            found=f"{error.strerror}, {_free_bytes(place) / 2**20:,.0f} MiB free",
            fix="Free space, correct the permissions, or choose another place with `--run-dir`; a "
            "finished stage is kept and the same command goes on from there",
        ) from error


_STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


def _free_bytes(path: Path) -> int:
    places = (path, *path.absolute().parents)
    return shutil.disk_usage(next(place for place in places if os.access(place, os.F_OK))).free


def remove(path: Path) -> None:
    """Delete a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a kill leaves either the whole file or none."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a marker; None if it is missing, cut or another kind of file."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def digest_directory(root: Path) -> str:
    """Return 16 hex digits over the names and bytes of the artifacts below `root`."""
    whole = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative = path.relative_to(root)
        is_outside = relative.parts[0] in ("page", "state", "started.json", "finished.json")
        if is_outside or any(part.endswith(".partial") for part in relative.parts):
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, xxhash.xxh3_128)
        whole.update(f"{relative.as_posix()}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


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

    Raises:
        ConfigError: with `only`, an input that is not there yet.
    """
    chosen = select_stages(stages, selection)
    if selection.only:
        _input_digests(chosen[0], run)
    if selection.fresh:
        for stage in chosen:
            remove(run / stage.name)
    for stage in chosen:
        _run_stage(stage, run, make_context(stage))


def _run_stage(stage: Stage, run: Path, context: StageContext) -> None:
    out = run / stage.name
    marker = _expected_marker(stage, run, context.seed)
    finished = read_json(out / "finished.json")
    if finished is not None and _same(finished, marker):
        logger.info("%s: finished before, skipped", stage.name)
        return
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
    begin = time.monotonic()
    with storage_errors(out):
        stage.execute({name: run / need for name, need in stage.needs.items()}, out, context)
    seconds = time.monotonic() - begin
    digest = digest_directory(out)
    write_json(out / "finished.json", {**marker, "output_digest": digest, "seconds": seconds})
    (out / "started.json").unlink()
    logger.info("%s: finished in %.0f s", stage.name, seconds)


def _input_digests(stage: Stage, run: Path) -> dict[str, str]:
    inputs = {}
    for name, need in stage.needs.items():
        finished = read_json(run / need / "finished.json")
        if finished is None:
            raise ConfigError(
                expected=f"stage `{need}` to be finished before `{stage.name}`",
                found=f"no `{need}/finished.json` in `{run}`",
                fix=f"Run it first, for example with `--until {stage.name}`",
            )
        inputs[name] = finished["output_digest"]
    return inputs


def _expected_marker(stage: Stage, run: Path, seed: int) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "kind": type(stage).__name__,
        "seed": seed,
        "config_hash": hash_config(stage.config),
        "inputs": _input_digests(stage, run),
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
