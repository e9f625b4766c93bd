"""The run in a few sentences: verdict, key figures and timeline."""

from markupsafe import Markup

from fivefold.report.curve import GZIP_METRIC
from fivefold.report.markup import element, join
from fivefold.report.record import TOKENS_METRIC, RunRecord, StageRecord
from fivefold.report.scale import format_number, format_seconds
from fivefold.report.skill import describe_skills, read_examined, read_failures, skills_of

BITS_METRICS = ("validation/final_bits_per_byte", "validation/bits_per_byte")
"""All held-out documents at the end of a stage; failing that, the sample of them along training."""
UNKNOWN = "\N{EN DASH}"
"""Stands for a figure that the run does not give."""
CLEAR_MARGIN = 0.05
"""Share of gzip's size below which a difference is called small."""
_SHOWN_SKILLS = 2
_MARKS = {"finished": "✓", "unfinished": "◐", "not started": "○"}


def describe_verdict(run: RunRecord) -> str:
    """Say in plain words how good the model became and whether the run is complete."""
    parts = [_describe_compression(run), describe_skills(run), _describe_progress(run)]
    return " ".join(part for part in parts if part)


def count_tokens(run: RunRecord) -> float:
    """Return the tokens trained in all stages.

    A stage that begins where the one before it ended counted on; any other counted from zero.
    """
    total, previous_end = 0.0, 0.0
    for stage in run.stages:
        curve = stage.curves.get(TOKENS_METRIC)
        if curve is None or not curve.values:
            continue
        first, last = curve.values[0], curve.values[-1]
        counted_on = previous_end > 0 and first >= previous_end
        total += last - previous_end if counted_on else last
        previous_end = last
    return total


def draw_figures(run: RunRecord) -> Markup:
    """Return the strip of key figures."""
    finished = sum(stage.state == "finished" for stage in run.stages)
    seconds = [stage.seconds for stage in run.stages if stage.seconds is not None]
    bits, gzip = run.last_value(*BITS_METRICS), run.last_value(GZIP_METRIC)
    tokens = count_tokens(run)
    figures: list[tuple[str, str, str | None]] = [
        ("stages finished", f"{finished} of {len(run.stages)}", None),
        ("time in stages", format_seconds(sum(seconds)) if seconds else UNKNOWN, None),
        ("tokens trained", format_number(tokens) if tokens else UNKNOWN, None),
    ]
    skills = _skill_figures(run)
    if bits is not None or not skills:
        compared = f"gzip -9: {gzip:.3f}" if gzip is not None else None
        shown = f"{bits:.3f}" if bits is not None else UNKNOWN
        figures.append(("bits a byte, held-out", shown, compared))
    figures += skills
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value, element("small", detail) if detail else None),
            )
            for name, value, detail in figures
        ),
        class_="figures",
    )


def _skill_figures(run: RunRecord) -> list[tuple[str, str, str | None]]:
    """Return the last pass rate of the first skills, beside the first one."""
    examined = read_examined(run)
    figures: list[tuple[str, str, str | None]] = []
    for skill in skills_of(examined)[:_SHOWN_SKILLS]:
        mine = [one for one in examined if one.skill == skill]
        figures.append(
            (f"{skill}, solved", f"{mine[-1].rates[-1]:.0%}", f"at first: {mine[0].rates[0]:.0%}")
        )
    return figures


def draw_timeline(run: RunRecord) -> Markup:
    """Return the stages as rows on one clock, each a link to its section."""
    total = sum(stage.seconds or 0.0 for stage in run.stages) or 1.0
    rows, begin = [], 0.0
    for stage in run.stages:
        seconds = stage.seconds or 0.0
        bar = element(
            "i", style=f"left:{begin / total * 100:.2f}%;width:{seconds / total * 100:.2f}%"
        )
        rows.append(
            element(
                "li",
                element("a", stage.name, href=f"#stage-{stage.name}"),
                element("span", bar, class_="clock"),
                draw_state(stage),
                class_=stage.state.replace(" ", "-"),
            )
        )
        begin += seconds
    return element("ol", *rows, class_="timeline")


def draw_state(stage: StageRecord) -> Markup:
    """Return the state of a stage in a mark, a word and a duration."""
    words = stage.state if stage.state != "finished" or stage.seconds is None else ""
    duration = format_seconds(stage.seconds) if stage.seconds is not None else ""
    if duration and stage.state == "unfinished":
        words += " after"
    text = " ".join(part for part in (words, duration) if part)
    mark = element("span", _MARKS[stage.state], class_="mark", role="img", aria_label=stage.state)
    return element("span", mark, " ", text, class_=f"state {stage.state.replace(' ', '-')}")


def _describe_compression(run: RunRecord) -> str:
    bits, gzip = run.last_value(*BITS_METRICS), run.last_value(GZIP_METRIC)
    if bits is None and (read_examined(run) or read_failures(run)):
        return ""
    if bits is None:
        return "The model has not been measured on held-out text yet."
    is_final = bits == run.last_value(BITS_METRICS[0])
    text = "the held-out text" if is_final else "a sample of the held-out text"
    learned = f"The model predicts {text} at {bits:.2f} bits a byte"
    if gzip is None:
        return f"{learned}; there is no gzip figure to compare it with."
    saving = 1 - bits / gzip
    reference = f"gzip -9, which spends {gzip:.2f} on all of it"
    if saving >= CLEAR_MARGIN:
        return f"{learned}, {saving:.0%} less than {reference}: it has learned the language."
    if saving > 0:
        return f"{learned}, a little less than {reference}: it has learned the common patterns."
    if saving > -CLEAR_MARGIN:
        return f"{learned}, about as much as {reference}: more tokens will help."
    return f"{learned}, {-saving:.0%} more than {reference}: it needs more tokens."


def _describe_progress(run: RunRecord) -> str:
    if not run.stages:
        return "No stage has begun."
    unfinished = [stage.name for stage in run.stages if stage.state == "unfinished"]
    waiting = [stage.name for stage in run.stages if stage.state == "not started"]
    if unfinished:
        names = " and ".join(unfinished)
        begins = f"Stage {names} has" if len(unfinished) == 1 else f"Stages {names} have"
        return f"{begins} not finished; the same command goes on from there."
    if waiting:
        return f"All stages that began have finished; {', '.join(waiting)} did not start."
    return "All stages finished."


def draw_notes(notes: list[str]) -> Markup | None:
    """Return what could not be read, as visible notes."""
    return join(element("p", note, class_="warning") for note in notes) if notes else None
