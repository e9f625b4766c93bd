"""What a run can do: the pass rate of every examined skill, over all stages that examined it.

One stage learns a skill, the next one forgets some of it while it learns another, a last one brings
both back: that story stands in no single stage, so the page tells it on top. Stages follow each
other on one axis of batches; a stage that did not start where the one before it ended says so.

Metrics: `rl/eval_pass_rate_SKILL` and `rl/eval_pass_error_SKILL`, whatever stage logs them. Answers
that could not be judged are in no rate: `rl/eval_failed_rollouts` of `rl/eval_rollouts` says so.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fivefold.report.chart import BAND_ERRORS, Chart, Line, Span, draw_chart
from fivefold.report.markup import element, join
from fivefold.report.record import RunRecord, StageRecord

_RATE = re.compile(r"rl/eval_pass_rate_(?P<skill>.+)")
_MOST_TOLD = 3
"""Skills that the verdict speaks of."""


@dataclass(frozen=True)
class Examined:
    """The examinations of one skill in one stage."""

    stage: str
    skill: str
    steps: Sequence[float]
    rates: Sequence[float]
    errors: Sequence[float]
    """Standard error of each rate; NaN where it is unknown."""

    def spell(self, place: int) -> str:
        """Return a pass rate with its standard error, if that is known."""
        rate, error = self.rates[place], self.errors[place]
        return f"{rate:.0%}" if math.isnan(error) else f"{rate:.0%} ± {error:.0%}"


def read_examined(run: RunRecord) -> list[Examined]:
    """Return all examinations, stage by stage."""
    found = []
    for stage in run.stages:
        for metric, curve in stage.curves.items():
            match = _RATE.fullmatch(metric)
            if match is None or not curve.values:
                continue
            error = stage.curves.get(metric.replace("_rate_", "_error_", 1))
            known = dict(zip(error.steps, error.values, strict=True)) if error else {}
            errors = [known.get(step, math.nan) for step in curve.steps]
            found.append(Examined(stage.name, match["skill"], curve.steps, curve.values, errors))
    return found


def skills_of(examined: Sequence[Examined]) -> list[str]:
    """Return the names of the skills, in the order in which they were first examined."""
    return list(dict.fromkeys(one.skill for one in examined))


def describe_skills(run: RunRecord) -> str:
    """Say for each skill what share of its held-out problems was solved, stage by stage."""
    examined = read_examined(run)
    told = []
    for skill in skills_of(examined)[:_MOST_TOLD]:
        mine = [one for one in examined if one.skill == skill]
        first = f"{mine[0].rates[0]:.0%} before {mine[0].stage}"
        after = [f"{one.rates[-1]:.0%} after {one.stage}" for one in mine if len(one.rates) > 1]
        told.append(f"{skill} {', '.join([first, *after])}")
    left_out = " ".join(read_failures(run))
    return f"Held-out problems solved: {'; '.join(told)}. {left_out}".rstrip() if told else left_out


def read_failures(run: RunRecord) -> list[str]:
    """Say of each stage how many held-out answers its worst examination could not judge."""
    found = []
    for stage in run.stages:
        failed = stage.curves.get("rl/eval_failed_rollouts")
        if failed is None or not any(failed.values):
            continue
        asked = stage.curves.get("rl/eval_rollouts")
        of = dict(zip(asked.steps, asked.values, strict=True)) if asked else {}
        worst = max(range(len(failed.values)), key=failed.values.__getitem__)
        step, count = failed.steps[worst], failed.values[worst]
        whole = f" of {of[step]:.0f}" if step in of else ""
        found.append(
            f"In {stage.name}, up to {count:.0f}{whole} held-out answers of an examination could "
            "not be judged; they are in no rate."
        )
    return found


def draw_skills(run: RunRecord) -> Markup | None:
    """Return the chart and the table of all skills; None where nothing was examined."""
    examined = read_examined(run)
    if not examined:
        return None
    spans = _span_stages(run, examined)
    begins = {span.name: span.begin for span in spans}
    skills = skills_of(examined)
    lines = []
    for colour, skill in enumerate(skills):
        mine = [one for one in examined if one.skill == skill]
        for one in mine:
            x = [begins[one.stage] + step for step in one.steps]
            is_part = one is not mine[-1]
            lines.append(Line(skill, x, one.rates, colour, error=list(one.errors), is_part=is_part))
    caption = element(
        "span",
        f"Bands: {BAND_ERRORS} standard errors to either side, over prompts. The same held-out "
        "problems at every examination.",
    )
    warnings = [element("p", failure, class_="warning") for failure in read_failures(run)]
    chart = Chart(
        "Pass rate of every examined skill",
        "",
        "share of held-out problems",
        lines,
        height=260,
        caption=caption,
        y_holds=(0.0, 1.0),
        spans=spans,
    )
    return element(
        "section",
        element("h2", "What it learned"),
        draw_chart(chart),
        join(warnings),
        _draw_table(run, examined, skills),
        id="skills",
    )


def _span_stages(run: RunRecord, examined: Sequence[Examined]) -> list[Span]:
    """Place the stages that examined something one after the other."""
    spans, begin, previous = list[Span](), 0.0, ""
    for stage in run.stages:
        ends = [max(one.steps) for one in examined if one.stage == stage.name]
        if not ends:
            continue
        length = max(*ends, 1.0)
        note = f"from {stage.start}" if stage.start and stage.start != previous else ""
        spans.append(Span(stage.name, begin, begin + length, note))
        begin, previous = begin + length, stage.name
    return spans


def _draw_table(run: RunRecord, examined: Sequence[Examined], skills: Sequence[str]) -> Markup:
    found = {(one.skill, one.stage): one for one in examined}
    stages = [stage for stage in run.stages if any(one.stage == stage.name for one in examined)]
    head = element(
        "tr",
        element("th", "skill", scope="col"),
        element("th", "at first", scope="col", class_="number"),
        *(element("th", f"after {s.name}", scope="col", class_="number") for s in stages),
    )
    rows = [
        element(
            "tr",
            element("th", skill, scope="row"),
            element("td", _first(examined, skill), class_="number"),
            *(element("td", _cell(found, skill, stage), class_="number") for stage in stages),
        )
        for skill in skills
    ]
    table = element("table", element("thead", head), element("tbody", *rows))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Skills")


def _first(examined: Sequence[Examined], skill: str) -> str:
    return next(one for one in examined if one.skill == skill).spell(0)


def _cell(found: dict[tuple[str, str], Examined], skill: str, stage: StageRecord) -> str:
    one = found.get((skill, stage.name))
    return "not examined" if one is None else one.spell(-1)
