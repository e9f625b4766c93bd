"""What the report shows of attempts and of what was chosen from them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fivefold.artifact import write_json
from fivefold.data.attempts import PassCount
from fivefold.data.chosen import Chosen


def choose_page(
    page: Path,
    chosen: Mapping[str, Chosen],
    counts: Mapping[str, Mapping[str, PassCount]],
    shown: int,
) -> None:
    """Write the blocks of the stage; `shown` conversations of each source."""
    for name, what in chosen.items():
        write_json(page / f"10_rates_{name}.json", rate_block(name, counts[name]))
        rows = [["answers", "learned", len(what.conversations)]]
        rows += [["answers", reason, n] for reason, n in (+what.dropped).most_common()]
        rows += [["problems", "for RL", len(what.rows)]]
        rows += [["problems", reason, n] for reason, n in what.left_out.most_common()]
        table = {
            "kind": "table",
            "title": f"{name}: what was chosen",
            "note": "Answers are learned by fine-tuning, problems are trained on by RL.",
            "columns": ["what", "became", "number"],
            "rows": rows,
        }
        write_json(page / f"20_chosen_{name}.json", table)
    samples = [
        _sample(name, line) for name, what in chosen.items() for line in what.conversations[:shown]
    ]
    if samples:
        block = {"kind": "samples", "title": "Answers to learn from", "note": None}
        write_json(page / "30_samples.json", {**block, "samples": samples})


def rate_block(name: str, counts: Mapping[str, PassCount]) -> dict[str, Any]:
    """Return how many problems were solved how often, as the report draws it."""
    found = Counter(f"{k} of {n}" for k, n in counts.values() if n)
    order = sorted({c for c in counts.values() if c.n}, key=lambda c: (c.k / c.n, c.n))
    columns = [{"name": f"{k} of {n}", "value": found[f"{k} of {n}"]} for k, n in order]
    unscored = sum(not count.n for count in counts.values())
    return {
        "kind": "histogram",
        "title": f"{name}: how often each problem was solved",
        "note": f"{unscored} problems without a judged attempt are left out." if unscored else None,
        "x_label": "attempts that passed",
        "y_label": "problems",
        "columns": columns,
    }


def _sample(name: str, line: Mapping[str, Any]) -> dict[str, str]:
    *before, answer = line["messages"]
    thinking = answer.get("reasoning_content")
    text = answer["content"] if thinking is None else f"({thinking}) {answer['content']}"
    meta = line["meta"]
    return {
        "label": f"{name}, {line['split']}, solved {meta['k']} of {meta['n']}",
        "prompt": "\n".join(message["content"] for message in before) + "\n",
        "text": text,
    }
