"""Every kind of block is drawn; anything else becomes a note, never an exception."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.report.block import draw_block

KINDS = ("text", "table", "lines", "bars", "heatmap", "samples", "hologram")
number = st.integers() | st.floats() | st.none()
value = st.recursive(
    number | st.text(max_size=4),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(("name", "value", "x", "y", "label", "prompt", "text")),
            children,
            max_size=5,
        )
    ),
    max_leaves=12,
)
FIELDS = (
    "title",
    "note",
    "text",
    "columns",
    "rows",
    "series",
    "bars",
    "values",
    "center",
    "x",
    "y",
    "samples",
    "log_x",
    "log_y",
)
block = st.dictionaries(st.sampled_from(FIELDS), value, max_size=6)


def draw(folder: Path, content: object, name: str = "10_block.json") -> str:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(draw_block(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), fields=block)
def test_any_fields_give_a_section(tmp_path: Path, kind: str, fields: dict):
    drawn = draw(tmp_path, {**fields, "kind": kind})
    assert drawn.startswith("<section")
    assert drawn.endswith("</section>")


@pytest.mark.parametrize("content", [[], 3, {}, {"kind": "text"}, {"kind": ["text"]}])
def test_block_that_cannot_be_drawn_names_its_file(tmp_path: Path, content: object):
    assert "Block 10_block.json cannot be drawn" in draw(tmp_path, content)


def test_block_of_an_unknown_kind_is_a_note(tmp_path: Path):
    drawn = draw(tmp_path, {"kind": "hologram", "title": "Soon"})
    assert "Soon" in drawn
    assert "unknown kind &#39;hologram&#39;" in drawn


def test_table_aligns_numbers_and_leaves_none_blank(tmp_path: Path):
    rows = [["a", 1234567, None], ["b", 0.25, "x"]]
    drawn = draw(tmp_path, {"kind": "table", "columns": ["n", "v", "w"], "rows": rows})
    assert '<td class="number">1,234,567</td><td></td>' in drawn
    assert "<td>a</td>" in drawn


def test_bars_scale_to_the_longest_and_mark_negative_ones(tmp_path: Path):
    bars = [{"name": "up", "value": 4}, {"name": "down", "value": -1}]
    drawn = draw(tmp_path, {"kind": "bars", "bars": bars})
    assert "width:100.0%" in drawn
    assert 'bar-track below"><i style="width:25.0%' in drawn


def test_heatmap_has_one_cell_a_finite_value_and_blank_at_the_centre(tmp_path: Path):
    content = {"kind": "heatmap", "values": [[0, 1], [2, float("nan")]], "center": 1}
    drawn = draw(tmp_path, content)
    assert drawn.count("<rect") == 3
    assert "fill:var(--c0);fill-opacity:0.040" in drawn
    assert "fill:var(--c1);fill-opacity:1.000" in drawn
    assert "row 1, column 0: 2" in drawn


def test_heatmap_labels_at_most_twelve_columns(tmp_path: Path):
    names = [f"e{index}" for index in range(64)]
    drawn = draw(tmp_path, {"kind": "heatmap", "values": [[*range(64)]], "x": names, "y": ["l"]})
    assert 0 < drawn.count('class="x-tick"') <= 12


def test_samples_keep_prompt_and_text_apart(tmp_path: Path):
    sample = {"label": "step 10", "prompt": "Once", "text": " upon\na time"}
    drawn = draw(tmp_path, {"kind": "samples", "samples": [sample]})
    assert (
        '<span class="prompt">Once</span><span class="continuation"> upon\na time</span>' in drawn
    )


def test_lines_on_a_log_axis_drop_what_it_cannot_show(tmp_path: Path):
    series = [{"name": "a", "x": [0, 1, 10], "y": [1, 2, 3]}]
    drawn = draw(tmp_path, {"kind": "lines", "log_x": True, "series": series})
    assert "Points that the axes cannot show: 1." in drawn


def test_lines_too_many_for_the_edge_are_named_in_a_legend(tmp_path: Path):
    series = [{"name": f"layer {index}", "x": [0, 1], "y": [0, index]} for index in range(20)]
    drawn = draw(tmp_path, {"kind": "lines", "series": series})
    assert drawn.count("<li>") == 20
    assert "end-label" not in drawn
