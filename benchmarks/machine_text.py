"""How much machine text the detector finds at its calibrated false-positive rate, on real text.

Human and machine solutions of the same problems (CHAMP, arXiv:2401.06961, MIT: 270 competition
problems with their authors' solutions and the answers of GPT-3.5, GPT-4, GPT-4 Turbo and PaLM 2),
school problems solved by people and by fine-tuned GPT-3 (GSM8K, MIT), and manuals. Detectors:
`rule`, without examples, calibrated on essays and plays as `glm5_math` does it; and learned ones,
from half of the problems and all models but one: `by_source`, as `glm5_math` calibrates; `pooled`,
the same with all human text as one source, which is what calibration by source is measured
against; `without_authors`, which knows no text of CHAMP's authors, so that they are a kind of text
that it never saw. Every rate is on problems that none of them has seen.

Get the files first: `pip download --no-deps champ-dataset==1.0.0`; `example_model_solutions.jsonl`
and `train.jsonl` lie in the repository openai/grade-school-math. Run as
`python benchmarks/machine_text.py WHEEL GSM8K_FOLDER`.
"""

import argparse
import json
import re
import time
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xxhash

from fivefold.data.curate.classifier import area_under_curve
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.raw_page import read_texts
from fivefold.data.curate.shard import find_shards
from fivefold.data.extract import cut_text
from fivefold.data.maths.calibration import upper_bound
from fivefold.data.maths.config import MachineTextConfig
from fivefold.data.maths.machine_text import Detector, fit_detector

UNSEEN = "PaLM 2 Medium"
"""The model whose text nobody learns from."""
AUTHORS = "CHAMP, authors"
PEOPLE, TUNED = "GSM8K, people", "GSM8K, fine-tuned GPT-3"
PEERS = {TUNED: PEOPLE}
"""Whose text of the same kind a model's is told from: of CHAMP's models, the authors'."""
MANUALS = ("mpmath-doc", "python-doc", "debian-reference-en", "postgresql-doc")
_MOST, _LEARNED = 700, 1_000
"""Texts of a kind that are judged; of a human source that are learned from and calibrated on."""
_FORM = re.compile(r"<<[^<>]*>>|\n(?:####|A:).*\Z")
"""What the two kinds of GSM8K's solutions write differently by agreement: marks, the last line."""
Texts = dict[str, list[str]]


def read_champ(wheel: Path) -> dict[str, Texts]:
    """Return texts by author for each half of the problems; `human` is the problems' authors."""
    with zipfile.ZipFile(wheel) as archive:
        problems = json.loads(archive.read("champ_dataset/dataset_files/v0.json"))["problems"]
    halves: dict[str, Texts] = {"seen": defaultdict(list), "unseen": defaultdict(list)}
    for name, problem in problems.items():
        half = halves["seen" if xxhash.xxh3_64_intdigest(name.encode()) % 2 else "unseen"]
        steps = [step.get("_text") or step["_raw_text"] for step in problem["solution"]["steps"]]
        half["human"].append("\n".join(one.replace("@@", "") for one in steps))
        for title, conversation in problem["conversations"].items():
            answers = [
                one["text"]
                for one in conversation["messages"]
                if one["role"].startswith("Model.") and one.get("text")
            ]
            if answers:
                half[title.split("|")[0]].append(max(answers, key=len))
    return halves


def read_gsm8k(folder: Path) -> Texts:
    """Return solutions of people and of fine-tuned models."""
    human = [json.loads(line)["answer"] for line in (folder / "train.jsonl").open()]
    rows = [json.loads(line) for line in (folder / "example_model_solutions.jsonl").open()]
    machine = [
        one["solution"]
        for row in rows
        for name, one in row.items()
        if name.endswith("_verification")
    ]
    plain = {PEOPLE: human, TUNED: machine}
    return {name: [_FORM.sub("", one) for one in some] for name, some in plain.items()}


def read_manuals(names: Sequence[str], size: int) -> Texts:
    """Return pieces of what people wrote, by source."""
    texts: Texts = {}
    for name in names:
        documents = read_texts(find_shards([name]), ExtractConfig())
        texts[name] = [piece for one in documents for piece in cut_text(one.text, size)]
    return texts


def sample(texts: Sequence[str], most: int) -> list[str]:
    """Return up to `most` texts, by the hash of their content."""
    ranked = sorted((xxhash.xxh3_64_intdigest(one.encode(), seed=7), one) for one in set(texts))
    return [one for _, one in ranked[:most]]


def measure(detector: Detector, human: Texts, machine: Texts) -> dict[str, object]:
    """Return the rates of a detector: flagged human text by source, found machine text by model."""
    limit = detector.calibration.threshold

    def scores(texts: Texts) -> Mapping[str, np.ndarray]:
        return {
            name: np.array([detector.score(one) for one in sample(some, _MOST)])
            for name, some in texts.items()
        }

    people, models = scores(human), scores(machine)
    return {
        "calibration": asdict(detector.calibration),
        "too_small_for_a_bound": detector.calibration.small_sources(),
        "false_positives": {
            name: {
                "texts": len(one),
                "rate": round(float((one > limit).mean()), 4),
                "bound_95": round(upper_bound(int((one > limit).sum()), len(one), 0.95), 4),
            }
            for name, one in people.items()
        },
        "found": {
            name: {
                "texts": len(one),
                "rate": round(float((one > limit).mean()), 4),
                "auc": round(area_under_curve(one, people[PEERS.get(name, AUTHORS)]), 4),
            }
            for name, one in models.items()
        },
    }


def main() -> None:
    """Print the rates, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("gsm8k", type=Path)
    given = parser.parse_args()
    began, config = time.process_time(), MachineTextConfig()
    halves, school = read_champ(given.wheel), read_gsm8k(given.gsm8k)
    manuals = read_manuals(MANUALS, config.window_characters)
    essays = read_manuals(config.human, config.window_characters)
    seen, unseen = halves["seen"], halves["unseen"]
    school_people = sample(school[PEOPLE], _LEARNED + _MOST)
    human: Texts = {
        AUTHORS: unseen["human"],
        PEOPLE: school_people[_LEARNED:],
        **{name: some[1::2] for name, some in manuals.items()},
    }
    machine: Texts = {name: some for name, some in unseen.items() if name != "human"}
    machine[TUNED] = school[TUNED]
    known: Texts = {
        AUTHORS: seen["human"],
        PEOPLE: school_people[:_LEARNED],
        **{name: sample(some[::2], _LEARNED) for name, some in manuals.items()},
    }
    models = [
        one for name in seen if name not in ("human", UNSEEN) for one in sample(seen[name], 600)
    ]
    most = config.windows_per_source
    detectors = {
        "rule": ({name: sample(some, most) for name, some in essays.items()}, []),
        "by_source": (known, models),
        "pooled": ({"all": [one for some in known.values() for one in some]}, models),
        "without_authors": ({k: some for k, some in known.items() if k != AUTHORS}, models),
    }
    found = {
        name: measure(fit_detector(people, answers, config), human, machine)
        for name, (people, answers) in detectors.items()
    }
    print(json.dumps(found, indent=2))
    print(
        json.dumps(
            {
                "name": "machine_text",
                "unseen_model": UNSEEN,
                "cpu_seconds": round(time.process_time() - began, 1),
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
