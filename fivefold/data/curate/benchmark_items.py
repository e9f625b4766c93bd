"""What a corpus must not hold, from the config: its files, the catalogue's, and Fivefold's own.

`own` stands for the problems that stages of Fivefold are examined on, which a room above this one
makes, and `public` for what of the catalogue lies in the cache. A benchmark that is not there is
told, never fetched behind the user's back: a corpus depends on what was looked for.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from fivefold.config import hash_config
from fivefold.data.curate.benchmark import (
    BenchmarkFile,
    Item,
    digest_benchmarks,
    find_benchmarks,
    read_items,
)
from fivefold.data.curate.benchmark_source import (
    BENCHMARKS,
    OWN,
    PUBLIC,
    benchmark_folder,
    cached_benchmarks,
)
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.factory import load_factory
from fivefold.errors import MissingFileError


def benchmark_paths(config: DecontaminationConfig) -> list[str]:
    """Return the files and folders that a config means.

    Raises:
        MissingFileError: a benchmark of the catalogue that has not been fetched.
    """
    paths: list[str] = []
    for given in config.benchmarks:
        if given == PUBLIC:
            paths += map(str, cached_benchmarks(config.cache_dir).values())
        elif given in BENCHMARKS and not Path(given).exists():
            folder = benchmark_folder(given, config.cache_dir)
            if not folder.is_dir():
                raise MissingFileError(
                    expected=f"the benchmark `{given}` in `{folder}`",
                    found="nothing: it has not been fetched",
                    fix="Run `fivefold data get --benchmarks`, or name its files instead",
                )
            paths.append(str(folder))
        elif given != OWN:
            paths.append(given)
    return paths


def missing_benchmarks(config: DecontaminationConfig) -> list[str]:
    """Return the names of the catalogue that `public` would stand for, had they been fetched."""
    if PUBLIC not in config.benchmarks:
        return []
    return sorted(BENCHMARKS.keys() - cached_benchmarks(config.cache_dir).keys())


def own_items(config: DecontaminationConfig) -> list[Item]:
    """Return the items of `own`, if the config has it.

    Raises:
        ConfigError: nothing can be imported under the name that the config gives.
    """
    if OWN not in config.benchmarks:
        return []
    return list(load_factory(config.own, "benchmarks.own")())


def read_benchmarks(config: DecontaminationConfig) -> Iterator[Item]:
    """Yield all items, in the order of their benchmarks' names within each kind.

    Raises:
        MissingFileError, ConfigError: as `find_benchmarks`.
        CorruptFileError: a file is not of the kind that its name says.
    """
    yield from own_items(config)
    files: Sequence[BenchmarkFile] = find_benchmarks(benchmark_paths(config))
    for file in files:
        yield from read_items(file)


def decontamination_parts(config: DecontaminationConfig | None) -> list[str]:
    """Return what decides the outcome: the config without names and paths, and all items.

    Raises:
        MissingFileError, ConfigError: as `find_benchmarks`.
    """
    if config is None:
        return []
    rule = config.model_copy(update={"benchmarks": ("any",), "own": ""})
    own = xxhash.xxh3_128()
    for item in own_items(config):
        own.update("\0".join((item.benchmark, item.name, item.prompt, item.answer)).encode())
    return [hash_config(rule), own.hexdigest(), digest_benchmarks(benchmark_paths(config))]
