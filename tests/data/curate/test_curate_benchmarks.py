"""A benchmark item that is planted among good documents is dropped in every recipe."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fivefold.config import apply_overrides
from fivefold.data.corpus_stage import recipe_table
from fivefold.data.curate.benchmark import find_benchmarks, read_items
from fivefold.data.curate.config import EngineConfig
from fivefold.data.curate.dclm_baseline import Curated
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.document import Document, document_id, document_writer, read_documents

SMALL: dict[str, dict[str, Any]] = {
    "dclm_baseline": {"language": None},
    "glm5_web": {
        "language": None,
        "embedding": None,
        "knowledge": None,
        "training": {"dim": 10, "buckets": 1000, "heldout_share": 0.4},
        "tiers": [{"name": "all", "min_percentile": 0, "epochs": 1}],
    },
    "glm5_code": {"heuristics": None, "classifier": None, "tiers": {"low_epochs": 1}},
    "glm5_math": {
        "language": None,
        "admit": None,
        "templates": None,
        "machine_text": None,
        "select": {"keep_share": 1.0},
    },
    "midtrain_long": {
        "context_tokens": 512,
        "index": {"chunk_tokens": 64, "max_document_share": 1.0},
        "nextlong": {"min_root_tokens": 64, "min_similarity": 0.0},
        "natural": None,
        "entropylong": None,
        "interleave": None,
        "mrcr": None,
        "repository": None,
    },
}


@pytest.fixture
def question(shared_data: Path) -> str:
    (item, *_) = read_items(find_benchmarks([str(shared_data / "gsm8k")])[0])
    return item.prompt


def write_pages(folder: Path, english: Callable[[int], str], question: str) -> Path:
    texts = [english(number) for number in range(90)]
    texts[7] = f"{question}\n{english(7)}\n{english(80)}"
    folder.mkdir()
    with document_writer(folder / "rows.jsonl.zst") as append:
        for number, text in enumerate(texts):
            append(Document(document_id(str(folder), str(number)), text, "web", str(number), "en"))
    return folder


def write_repository(folder: Path, english: Callable[[int], str], question: str) -> Path:
    """Write modules whose comments are the pages."""
    folder.mkdir()
    for number in range(12):
        text = question if number == 7 else english(number)
        body = "".join(f"# {line}\n" for line in text.split("\n"))
        code = "".join(f"def f{number}_{k}(a):\n    return a * {k + number}\n" for k in range(6))
        (folder / f"m{number}.py").write_text(body + code)
    return folder


def drops(curated: Curated) -> dict[str, int]:
    return {
        reason: count
        for account in curated.accounts.values()
        for reason, count in account.drops.items()
        if reason.startswith("benchmark.")
    }


def test_a_line_separator_in_a_string_does_not_end_its_json_line(tmp_path: Path):
    rows = [{"question": "Why\u2028and how?"}, {"question": "When?"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "own.jsonl").write_text("\r\n".join(lines))
    (file,) = find_benchmarks([str(tmp_path)])
    assert [item.prompt for item in read_items(file)] == ["Why\u2028and how?", "When?"]


@pytest.mark.parametrize("name", recipe_table())
def test_a_planted_item_is_dropped_in_every_recipe(
    name: str, tmp_path: Path, english: Callable[[int], str], question: str, shared_data: Path
):
    recipe, reads = recipe_table()[name]
    write = write_repository if reads == "repositories" else write_pages
    pages = write(tmp_path / "pages", english, question)
    given: dict[str, Any] = {"tasks": 2, **SMALL[name]}
    if name == "glm5_web":
        given["reference"] = {"quality": [str(write_pages(tmp_path / "good", _shift(english), ""))]}
    rows = str(shared_data / "gsm8k")
    overrides = [f"{name}.{key}={json.dumps(value)}" for key, value in given.items()]
    shards = recipe.find([str(pages)], str(tmp_path))
    listed = f'{name}.benchmarks={{"benchmarks": ["{rows}"]}}'
    found: list[tuple[dict[str, int], str]] = []
    for where, extra in (("without", [f"{name}.benchmarks=null"]), ("with", [listed])):
        config = apply_overrides({name: recipe.config()}, [*overrides, *extra])[name]
        curated = recipe.run(shards, config, tmp_path / where, None)
        found.append((drops(curated), _joined(curated.documents)))
    planted = " ".join(question.lower().split()[1:4])
    assert found[0][0] == {}
    assert planted in found[0][1]
    assert found[1][0] == {"benchmark.gsm8k": 1}
    assert planted not in found[1][1]
    assert found[1][1]


def _shift(english: Callable[[int], str]) -> Callable[[int], str]:
    return lambda number: english(1000 + number)


def _joined(files: Sequence[Path]) -> str:
    return "\n".join(one.text.lower() for file in files for one in read_documents(file))


def test_every_recipe_takes_the_same_field():
    for name, (recipe, _) in recipe_table().items():
        config = recipe.config()
        assert isinstance(config, EngineConfig), name
        assert config.benchmarks == DecontaminationConfig()
