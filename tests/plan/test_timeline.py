import xml.etree.ElementTree as ElementTree

from fivefold.plan.make_schedule import NAMES, make_schedule
from fivefold.plan.simulate import even_costs, simulate
from fivefold.plan.timeline import draw_timeline

_SVG = "{http://www.w3.org/2000/svg}"


def _draw(name: str, **arguments) -> ElementTree.Element:
    schedule = make_schedule(name, 4, 6)
    timeline = simulate(schedule, even_costs(schedule.stages))
    return ElementTree.fromstring(draw_timeline(timeline, **arguments))


def test_timeline_has_one_box_an_action() -> None:
    for name in NAMES:
        schedule = make_schedule(name, 4, 6)
        boxes = [
            rect
            for rect in _draw(name).iter(f"{_SVG}rect")
            if rect.find(f"{_SVG}title") is not None
        ]

        assert len(boxes) == sum(map(len, schedule.actions)), name


def test_timeline_boxes_stay_inside_the_page_and_do_not_overlap() -> None:
    root = _draw("zb_v", width=700)
    boxes: dict[str, list[tuple[float, float]]] = {}
    for rect in root.iter(f"{_SVG}rect"):
        if rect.find(f"{_SVG}title") is not None:
            start, width = float(rect.attrib["x"]), float(rect.attrib["width"])
            boxes.setdefault(rect.attrib["y"], []).append((start, start + width))

    assert len(boxes) == 4
    for row in boxes.values():
        edges = [edge for box in sorted(row) for edge in box]
        assert edges == sorted(edges)
        assert 0 < edges[0] < edges[-1] < 700


def test_timeline_title_is_escaped() -> None:
    root = _draw("1f1b", title="<b> & co")

    assert root.findtext(f"{_SVG}title") == "<b> & co"
