"""What RL adds to the report: bands, rollouts by token, histograms, skills over stages."""

import json
import re
from pathlib import Path

import pytest

from fivefold.report.block import draw_block
from fivefold.report.chart import BAND_ERRORS, Chart, Line, Span, draw_chart
from fivefold.report.histogram import height_of
from fivefold.report.page import write_report
from fivefold.report.record import read_run
from fivefold.report.skill import describe_skills, draw_skills, read_examined
from fivefold.report.story import describe_verdict

TOKENS = {
    "kind": "rollouts",
    "title": "Tokens",
    "rollouts": [
        {
            "label": "good",
            "prompt": "<b>Ask</b>",
            "tokens": ["a\n", "<i>", "tool"],
            "advantages": [2.0, 0.5, None],
            "engine_logprobs": [-1.0, -2.0, None],
            "trainer_logprobs": [-1.0, -1.5, None],
            "learned_logprobs": [-0.5, -1.4, None],
        },
        {"label": "bad", "tokens": ["z"], "advantages": [-1.0]},
    ],
}


def block_of(tmp_path: Path, block: dict) -> str:
    path = tmp_path / "10_block.json"
    path.write_text(json.dumps(block))
    return str(draw_block(path))


def tokens_of(page: str) -> list[tuple[str, str, str]]:
    """Return class, attributes and text of each token."""
    return re.findall(r'<span class="(token[^"]*)"([^>]*)>(.*?)</span>', page, re.DOTALL)


def test_tokens_are_coloured_by_sign_and_size_of_their_advantage(tmp_path: Path) -> None:
    page = block_of(tmp_path, TOKENS)
    drawn = tokens_of(page)
    assert [kind for kind, _, _ in drawn] == [
        "token better",
        "token better",
        "token untrained",
        "token worse",
    ]
    strength = [
        float(found[1]) for _, a, _ in drawn if (found := re.search(r"strength:([\d.]+)", a))
    ]
    assert strength[0] == max(strength)
    assert strength[1] == pytest.approx(strength[0] / 4, abs=1e-3)
    assert strength[2] == pytest.approx(strength[0] / 2, abs=1e-3)
    assert drawn[1][2] == "&lt;i&gt;"
    assert "<b>Ask" not in page
    assert "↵" in drawn[0][2]


def test_token_carries_advantage_ratio_and_log_probabilities(tmp_path: Path) -> None:
    drawn = tokens_of(block_of(tmp_path, TOKENS))
    numbers = [
        json.loads(found[1].replace("&#34;", '"'))
        for _, attributes, _ in drawn
        if (found := re.search(r'data-token="([^"]*)"', attributes))
    ]
    assert numbers[0] == [2.0, 1.0, -1.0, -1.0, -0.5]
    assert numbers[1] == pytest.approx([0.5, 2.718281828**0.5, -2.0, -1.5, -1.4], rel=1e-4)
    assert numbers[2] == [-1.0, None, None, None, None]


@pytest.mark.parametrize(
    "change",
    [{"advantages": [1.0]}, {"tokens": None}, {"advantages": ["x", 1, 2]}],
    ids=["shorter", "none", "text"],
)
def test_broken_rollouts_become_a_note(tmp_path: Path, change: dict) -> None:
    rollout = {**TOKENS["rollouts"][0], **change}
    page = block_of(tmp_path, {**TOKENS, "rollouts": [rollout]})
    assert "10_block.json cannot be drawn" in page


def test_histogram_s_heights_are_logarithms_and_one_column_is_marked(tmp_path: Path) -> None:
    columns = [
        {"name": "below", "value": 0},
        {"name": "exactly 1", "value": 10_000, "is_marked": True},
        {"name": "above", "value": 100},
        {"name": "far", "value": 1},
    ]
    page = block_of(tmp_path, {"kind": "histogram", "title": "Rho", "columns": columns})
    heights = [float(height) for height in re.findall(r"height:([\d.]+)%", page)]
    assert heights[0] == 0
    assert heights[1] == 100
    assert 0 < heights[3] < heights[2] < 100
    assert heights[2] == pytest.approx((heights[1] + heights[3]) / 2, abs=0.1)
    assert page.count('class="marked"') == 1
    assert "100 of 10,101 (0.99%)" in page
    empty = block_of(tmp_path, {"kind": "histogram", "columns": columns[:1]})
    assert "Nothing was counted" in empty
    assert height_of(1, 1) == 1


def test_band_covers_the_errors_and_the_axis_holds_it() -> None:
    line = Line("pass", [0, 1, 2], [0.5, 0.5, 0.5], 0, error=[0.25, 0.0, 0.1])
    page = str(draw_chart(Chart("", "", "", [line], height=100)))
    (outline,) = re.findall(r'd="M([^"]*)Z"', page)
    corners = [tuple(map(float, corner.split())) for corner in outline.split("L")]
    upper, lower = corners[:3], corners[3:][::-1]
    gaps = [down[1] - up[1] for up, down in zip(upper, lower, strict=True)]
    assert gaps[1] == 0
    assert gaps[2] / gaps[0] == pytest.approx(0.4, abs=0.01)
    assert all(0 <= y <= 100 for _, y in corners)
    # The widest band fills the axis but its margins.
    assert gaps[0] > 85
    assert BAND_ERRORS == 2
    assert "[0.0, 0.5, 0.25]" in page


def test_earlier_stretch_of_a_line_has_no_label() -> None:
    parts = [
        Line("sort", [0, 1], [0.1, 0.2], 0, is_part=True),
        Line("sort", [1, 2], [0.2, 0.9], 0),
        Line("copy", [0, 2], [0.3, 0.4], 1),
    ]
    spans = [Span("one", 0, 1), Span("two", 1, 2, "from zero")]
    page = str(draw_chart(Chart("", "", "", parts, spans=spans)))
    assert page.count("end-label") == 2
    assert page.count("data-points") == 3
    assert re.findall(r"<b>(one|two)</b>", page) == ["one", "two"]
    assert "from zero" in page


def write_stages(run: Path) -> Path:
    """Write a run that learns A, then B at A's expense, then both from the first stage on."""
    run.mkdir()
    outputs = {"sft": "d0", "rl_a": "d1", "rl_b": "d2", "distill": "d3"}
    starts = {"rl_a": "d0", "rl_b": "d1", "distill": "d1"}
    rates = {
        "rl_a": {"reverse": (0.4, 0.8)},
        "rl_b": {"reverse": (0.8, 0.5), "sort": (0.3, 0.7)},
        "distill": {"reverse": (0.5, 0.8), "sort": (0.7, 0.69)},
    }
    (run / "manifest.json").write_text(json.dumps({"recipe": "nano"}))
    (run / "config.json").write_text(json.dumps({name: {} for name in outputs}))
    lines = []
    for stage, digest in outputs.items():
        (run / stage).mkdir()
        inputs = {"start": starts[stage]} if stage in starts else {}
        marker = {"output_digest": digest, "inputs": inputs, "seconds": 9}
        (run / stage / "finished.json").write_text(json.dumps(marker))
        for step in (0, 10):
            record: dict = {"stage": stage, "step": step, "time_seconds": 1.0}
            for skill, values in rates.get(stage, {}).items():
                record[f"rl/eval_pass_rate_{skill}"] = values[step > 0]
                record[f"rl/eval_pass_error_{skill}"] = 0.02
            lines.append(json.dumps(record) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))
    return run


def test_skills_are_followed_over_all_stages(tmp_path: Path) -> None:
    record = read_run(write_stages(tmp_path / "run"))
    assert [stage.start for stage in record.stages] == [None, "sft", "rl_a", "rl_a"]
    found = [(one.stage, one.skill, one.rates[-1]) for one in read_examined(record)]
    assert found == [
        ("rl_a", "reverse", 0.8),
        ("rl_b", "reverse", 0.5),
        ("rl_b", "sort", 0.7),
        ("distill", "reverse", 0.8),
        ("distill", "sort", 0.69),
    ]
    said = describe_skills(record)
    assert "reverse 40% before rl_a, 80% after rl_a, 50% after rl_b, 80% after distill" in said
    assert "sort 30% before rl_b, 70% after rl_b, 69% after distill" in said
    assert said in describe_verdict(record)
    assert "held-out text" not in describe_verdict(record)


def test_skills_stand_on_top_of_the_page(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    section = str(draw_skills(read_run(run)))
    assert re.findall(r"<b>(rl_a|rl_b|distill)</b>", section) == ["rl_a", "rl_b", "distill"]
    # distill goes on from rl_a and not from the stage before it.
    assert re.findall(r"<small>(.*?)</small>", section) == ["from sft", "from rl_a"]
    points = [
        json.loads(p.replace("&#34;", '"')) for p in re.findall(r'data-points="(.*?)"', section)
    ]
    assert [p[0][0] for p in points] == [0, 10, 20, 10, 20]
    assert points[1] == [[10, 0.8, 0.02], [20, 0.5, 0.02]]
    assert section.count("not examined") == 1
    page = write_report(run).read_text()
    assert page.index('id="skills"') < page.index('id="stage-rl_a"')
    assert "reverse, solved" in page


def test_run_without_examinations_has_no_skills(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    (run / "metrics.jsonl").write_text("")
    assert draw_skills(read_run(run)) is None
    assert 'id="skills"' not in write_report(run).read_text()


def test_errors_are_bands_and_not_charts_of_their_own(tmp_path: Path) -> None:
    page = write_report(write_stages(tmp_path / "run")).read_text()
    assert "rl/eval_pass_rate_sort" in page
    assert ">rl/eval_pass_error_sort<" not in page
    assert page.count('class="band"') == 10  # five on top, five in the stages
    assert 'data-x-label="batch"' in page


def test_losses_on_answers_do_not_count_as_those_on_text(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    lines = [
        {"stage": "sft", "step": 1, "train/answer_tokens": 9, "validation/bits_per_byte": 0.5},
        {"stage": "sft", "step": 2, "train/answer_tokens": 9, "validation/bits_per_byte": 0.4},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    record = read_run(run)
    assert record.last_value("validation/bits_per_byte") is None
    page = write_report(run).read_text()
    assert "Held-out answers" in page


def test_answers_before_the_first_step_do_not_count_as_text_either(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"pretrain": {}, "sft": {"conversations": {}}}))
    before = {"stage": "pretrain", "step": 9, "validation/bits_per_byte": 2.0}
    first = {"stage": "sft", "step": 0, "validation/bits_per_byte": 7.9}
    append(run, before, first)
    assert read_run(run).last_value("validation/bits_per_byte") == 2.0


def test_a_task_named_after_any_file_is_followed(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("_sort", "_my-own.task 2"))
    assert "my-own.task 2 30% before rl_b" in describe_skills(read_run(run))
    assert write_report(run).read_text().count('class="band"') == 10


def append(run: Path, *records: dict) -> str:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return write_report(run).read_text()


def test_unknown_error_is_no_error_of_zero(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("rl/eval_pass_error_sort", "rl/other_sort"))
    section = str(draw_skills(read_run(run)))
    assert '<td class="number">70%</td>' in section
    assert "80% ± 2%" in section
    assert "± 0%" not in section
    assert section.count('class="band"') == 3
    points = re.findall(r'data-name="sort" data-points="(.*?)"', section)
    assert [json.loads(p) for p in points] == [[[10, 0.3], [20, 0.7]], [[20, 0.7], [30, 0.69]]]


def test_band_ends_where_an_error_is_unknown() -> None:
    errors = [0.1, 0.1, float("nan"), 0.2, 0.2]
    line = Line("pass", [0, 1, 2, 3, 4], [0.5, 0.5, 5.0, 0.5, 0.5], 0, error=errors)
    page = str(draw_chart(Chart("", "", "", [line], height=100)))
    bands = re.findall(r'd="M([^"]*)Z"', page)
    assert [len(band.split("L")) for band in bands] == [4, 4]
    assert "nan" not in page
    assert "[1.0, 0.5, 0.1], [2.0, 5.0], [3.0, 0.5, 0.2]" in page


def test_equal_curves_are_one_line_with_all_their_names(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    page = append(
        run,
        *(
            {
                "stage": "rl_b",
                "step": step,
                "rl/groups_drawn": 8 + step,
                "rl/groups_kept": 8 + step,
                "rl/groups_repaired": step,
                "rl/eval_pass_rate": 0.5 + step / 100,
                "rl/eval_pass_rate_only": 0.5 + step / 100,
            }
            for step in (1, 2)
        ),
    )
    assert 'data-name="drawn = kept"' in page
    assert 'data-name="all = only"' in page
    assert "drawn = kept " in page
    assert "<code>rl/groups_drawn</code> <code>rl/groups_kept</code>" in page


def test_lines_of_other_errors_are_not_equal(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    both = {"rl/eval_pass_rate_a": 0.5, "rl/eval_pass_rate_b": 0.5}
    errors = {"rl/eval_pass_error_a": 0.1, "rl/eval_pass_error_b": 0.2}
    page = append(
        run,
        {"stage": "new", "step": 1, **both, **errors},
        {"stage": "new", "step": 2, **dict.fromkeys(both, 0.6), **errors},
    )
    assert "a = b" not in page


def test_answers_that_were_not_judged_are_told_on_top(tmp_path: Path) -> None:
    run = write_stages(tmp_path / "run")
    assert "could not be judged" not in write_report(run).read_text()
    page = append(
        run,
        *(
            {
                "stage": "rl_b",
                "step": step,
                "rl/eval_failed_rollouts": failed,
                "rl/eval_rollouts": 64,
            }
            for step, failed in ((0, 1), (10, 3))
        ),
    )
    said = "In rl_b, up to 3 of 64 held-out answers of an examination could not be judged"
    assert said in describe_verdict(read_run(run))
    assert page.count(said) == 2
    assert "Held-out answers not judged" in page
    (run / "metrics.jsonl").write_text("")
    append(run, {"stage": "rl_b", "step": 0, "rl/eval_failed_rollouts": 9})
    verdict = describe_verdict(read_run(run))
    assert verdict.startswith("In rl_b, up to 9 held-out answers of an examination could not")


@pytest.mark.parametrize(
    ("command", "is_recipe"),
    [
        (["/bin/fivefold", "run", "my recipe"], True),
        (["/bin/fivefold", "rl", "start", "--task", "x.py"], False),
        ("fivefold rl start --task 'x", False),
        (["/lib/fivefold/__main__.py", "run", "nano"], True),
        (None, True),
    ],
)
def test_recipe_is_told_by_the_command(
    tmp_path: Path, command: list[str] | str | None, is_recipe: bool
) -> None:
    run = write_stages(tmp_path / "run")
    (run / "manifest.json").write_text(json.dumps({"recipe": "spaced name", "command": command}))
    page = write_report(run).read_text()
    assert ("Train on more tokens" in page) == is_recipe
    assert ("Go on from here with another task" in page) != is_recipe
    assert ("python -m fivefold run nano" in page) == ("__main__" in str(command))
