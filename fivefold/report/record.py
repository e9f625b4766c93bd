"""Reading a run directory, whatever state a kill left it in.

Nothing here raises for a missing or broken piece: the report is wanted most when a run went wrong.
What could not be read becomes a note that the page shows.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fivefold.artifact import read_json
from fivefold.errors import CorruptFileError
from fivefold.metrics import read_metrics

State = Literal["finished", "unfinished", "not started"]
BOOKKEEPING = ("stage", "step", "time_seconds")
"""Keys of a metrics line that are not metrics."""
TOKENS_METRIC = "train/tokens"
"""Cumulative training tokens: the horizontal axis of a stage that logs them."""
BATCH_METRICS = "rl/"
"""Metrics of stages that count batches."""
ANSWERS_METRIC = "train/answer_tokens"
"""Learned tokens of a step of fine-tuning."""
CONVERSATIONS_FIELD = "conversations"
"""In the config of a stage that fine-tunes."""


@dataclass
class Curve:
    """The values of one metric in one stage, in the order in which they were logged."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    """Where each value is drawn: training tokens if the stage logs them, else steps."""
    non_finite: int = 0
    """Values that were not a finite number and are left out."""


@dataclass
class StageRecord:
    """What one stage left behind."""

    name: str
    state: State
    seconds: float | None
    """Duration; for an unfinished stage, the time that its metrics span; None if unknown."""
    config: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)
    x_label: str = "step"
    blocks: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checkpoint: str | None = None
    """Directory, relative to the run, that Hugging Face libraries open."""
    start: str | None = None
    """Stage whose checkpoint it started from."""

    @property
    def learns_answers(self) -> bool:
        """Are its losses those of answers alone, which do not compare with those of text?"""
        # The config tells it before the first step, when held-out answers alone were measured.
        return ANSWERS_METRIC in self.curves or CONVERSATIONS_FIELD in self.config


@dataclass
class RunRecord:
    """What a run directory says about the run."""

    path: Path
    manifest: dict[str, Any]
    stages: list[StageRecord]
    notes: list[str]

    def last_value(self, *metrics: str) -> float | None:
        """Return the latest value from the last stage that logged any; earlier names come first.

        What stages that learn from answers alone say of their text is left out.
        """
        for stage in reversed(self.stages):
            if stage.learns_answers:
                continue
            for metric in metrics:
                curve = stage.curves.get(metric)
                if curve is not None and curve.values:
                    return curve.values[-1]
        return None


def read_run(run: Path) -> RunRecord:
    """Read what is there; a note stands for each piece that is missing or broken."""
    notes: list[str] = []
    manifest = _read_object(run / "manifest.json", notes)
    configs = _read_object(run / "config.json", notes)
    records = _read_records(run / "metrics.jsonl", notes)
    logged = [str(record["stage"]) for record in records if "stage" in record]
    names = list(dict.fromkeys([*configs, *logged]))
    if run.is_dir():
        markers = {path.parent.name for path in run.glob("*/*ed.json")}
        names += sorted(markers - set(names))
    stages = [_read_stage(run, name, configs.get(name), records) for name in names]
    _find_starts(run, stages)
    return RunRecord(run, manifest, stages, notes)


def _read_stage(run: Path, name: str, config: Any, records: list[dict[str, Any]]) -> StageRecord:
    folder = run / name
    mine = [record for record in records if record.get("stage") == name]
    notes: list[str] = []
    stage = StageRecord(name, "not started", None, config if isinstance(config, dict) else {})
    if (folder / "finished.json").exists():
        stage.state = "finished"
        seconds = _read_object(folder / "finished.json", notes).get("seconds")
        stage.seconds = float(seconds) if isinstance(seconds, int | float) else None
    elif folder.exists() or mine:
        stage.state = "unfinished"
        times = [t for r in mine if isinstance(t := r.get("time_seconds"), int | float)]
        stage.seconds = max(times) - min(times) if times else None
    stage.curves = _collect_curves(mine)
    if TOKENS_METRIC in stage.curves:
        stage.x_label = "training tokens"
        _place_on_tokens(stage.curves)
    elif any(metric.startswith(BATCH_METRICS) for metric in stage.curves):
        stage.x_label = "batch"
    stage.blocks = sorted(
        path for path in folder.glob("page/*") if path.suffix in (".json", ".png")
    )
    weights = sorted(folder.glob("**/model*.safetensors"))
    if weights and (weights[-1].parent / "config.json").exists():
        stage.checkpoint = weights[-1].parent.relative_to(run).as_posix()
    stage.notes = notes
    return stage


def _find_starts(run: Path, stages: list[StageRecord]) -> None:
    """Find the stage whose output, by its digest, each stage had as `start`."""
    made: dict[str, str] = {}
    for stage in stages:
        marker = read_json(run / stage.name / "finished.json")
        marker = marker or read_json(run / stage.name / "started.json") or {}
        inputs = marker.get("inputs")
        if isinstance(inputs, dict):
            stage.start = made.get(str(inputs.get("start")))
        if isinstance(digest := marker.get("output_digest"), str):
            made[digest] = stage.name


def _collect_curves(records: list[dict[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for order, record in enumerate(records):
        step = record.get("step")
        step = step if isinstance(step, int | float) else order
        for metric, value in record.items():
            if metric in BOOKKEEPING:
                continue
            curve = curves.setdefault(metric, Curve())
            number = value if isinstance(value, int | float) else math.nan
            if math.isfinite(number):
                curve.steps.append(float(step))
                curve.values.append(float(number))
            else:
                curve.non_finite += 1
    for curve in curves.values():
        curve.x = curve.steps
    return curves


def _place_on_tokens(curves: dict[str, Curve]) -> None:
    """Express every curve but the token count itself in tokens, interpolating between records."""
    tokens = curves[TOKENS_METRIC]
    if not tokens.values:
        return
    for metric, curve in curves.items():
        if metric != TOKENS_METRIC:
            curve.x = np.interp(curve.steps, tokens.steps, tokens.values).tolist()


def _read_records(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        notes.append(f"{path.name} is missing: there are no curves.")
        return []
    try:
        records = read_metrics(path)
    except CorruptFileError as error:
        notes.append(f"{path.name} is damaged: {error.found}. Lines that can be read are drawn.")
        records = _salvage(path)
    except UnicodeDecodeError:
        notes.append(f"{path.name} is not text: there are no curves.")
        return []
    whole = [record for record in records if isinstance(record, dict)]
    if path.stat().st_size and not _ends_with_newline(path):
        notes.append(f"The last line of {path.name} has no end: a kill may have cut it.")
    return whole


def _salvage(path: Path) -> list[Any]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            kept.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return kept


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        notes.append(f"{path.name} cannot be read.")
        return {}
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} does not hold an object.")
    return {}
