"""`report.html`: the story of a run on one page that needs nothing else.

The page carries its style, its drawings and twenty lines of script for reading values under the
pointer; it loads nothing, so it can be mailed, archived and opened offline. The same run directory
gives the same bytes.
"""

import importlib.resources
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fivefold.artifact import atomic_write
from fivefold.errors import MissingFileError
from fivefold.report.block import draw_block
from fivefold.report.curve import GZIP_METRIC, draw_curves
from fivefold.report.markup import element, join
from fivefold.report.next_step import draw_next_steps
from fivefold.report.record import RunRecord, StageRecord, read_run
from fivefold.report.skill import draw_skills
from fivefold.report.story import (
    describe_verdict,
    draw_figures,
    draw_notes,
    draw_state,
    draw_timeline,
)


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Unfinished runs and damaged files are reported on the page, not raised.

    Raises:
        MissingFileError: the run directory does not exist.
        StorageError: the page cannot be written.
    """
    if not run.is_dir():
        raise MissingFileError(
            expected=f"a run directory at `{run}`",
            found="no such directory",
            fix="Give the directory that `fivefold run` wrote, for example `runs/nano`",
        )
    page = draw_page(read_run(run))
    path = run / "report.html"
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return path


def draw_page(run: RunRecord) -> str:
    """Return the whole HTML document of a run."""
    recipe = str(run.manifest.get("recipe", run.path.name))
    gzip_bits = run.last_value(GZIP_METRIC)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{recipe}: Fivefold run report"),
        element("style", _resource("style.css")),
    )
    body = element(
        "body",
        element(
            "header",
            element("p", "Fivefold run report", class_="eyebrow"),
            element("h1", recipe),
            element("p", describe_verdict(run), class_="verdict"),
            element("p", _describe_origin(run.manifest), class_="origin"),
            draw_notes(run.notes),
            draw_figures(run),
        ),
        element(
            "main",
            element("section", element("h2", "Stages"), draw_timeline(run), id="stages"),
            draw_skills(run),
            *(_draw_stage(stage, gzip_bits) for stage in run.stages),
            element("section", element("h2", "What next"), draw_next_steps(run), id="next"),
            element(
                "section",
                element("h2", "Manifest"),
                _draw_json("What this run was made from", run.manifest),
                id="manifest",
            ),
        ),
        element("script", _resource("hover.js")),
    )
    return Markup("<!doctype html>\n{}\n").format(element("html", head, body, lang="en"))


def _draw_stage(stage: StageRecord, gzip_bits: float | None) -> Markup | None:
    if stage.state == "not started" and not stage.curves and not stage.blocks:
        return None
    return element(
        "section",
        element("h2", stage.name, draw_state(stage)),
        draw_notes(stage.notes),
        draw_curves(stage, gzip_bits),
        join(draw_block(path) for path in stage.blocks),
        _draw_json("Configuration", stage.config) if stage.config else None,
        id=f"stage-{stage.name}",
        class_="stage",
    )


def _draw_json(title: str, value: dict[str, Any]) -> Markup:
    """Return collapsed key-value rows; nested values as JSON."""
    rows = [
        element(
            "tr",
            element("th", key, scope="row"),
            element("td", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)),
        )
        for key, item in value.items()
    ]
    table = element("div", element("table", element("tbody", *rows)), class_="scroll")
    return element("details", element("summary", title), table)


def _describe_origin(manifest: dict[str, Any]) -> str:
    hardware = manifest.get("hardware")
    hardware = hardware if isinstance(hardware, dict) else {}
    parts = {
        "started {}": _spell_time(manifest.get("started")),
        "on {}": manifest.get("device"),
        "{}": hardware.get("cpu"),
        "{} threads": manifest.get("threads"),
        "seed {}": manifest.get("seed"),
        "commit {}": _spell_commit(manifest.get("commit")),
    }
    return " · ".join(form.format(value) for form, value in parts.items() if value is not None)


def _spell_commit(commit: object) -> str | None:
    """Return twelve digits of a commit, and the mark of uncommitted changes if it bears one."""
    digits, mark, changes = str(commit or "").partition("+")
    return digits[:12] + mark + changes or None


def _spell_time(moment: object) -> str | None:
    """Return an ISO moment to the minute; anything else as it is."""
    try:
        return f"{datetime.fromisoformat(str(moment)):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return None if moment is None else str(moment)


def _resource(name: str) -> Markup:
    text = importlib.resources.files("fivefold.report").joinpath(name).read_text(encoding="utf-8")
    return Markup(text)  # a file of this package
