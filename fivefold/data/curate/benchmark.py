"""Benchmark files of any usual shape to items: a question and, where there is one, its answer.

Files come as JSON, JSON lines (under either name), CSV, TSV, Parquet or plain text, compressed too.
A question is what stands under a name such as `question`, `prompt` or `problem`, however deep, and
its answer under one such as `answer` or `solution` beside it; a list of bare strings is a question
and its labels; a text file is one question. What stands under other names (contexts, function
tables, rubrics) is not the benchmark's own and not taken.

Surprise: an item is named after its file, and its benchmark after the folder that the file lies in
below the one that was given, or after the file itself.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from fivefold.data.document import read_content
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

_PROMPT_NAMES = (
    "question prompt problem problem_statement input query instruction instructions text sentence "
    "goal task_instructions reason_for_call known_info"
)
_ANSWER_NAMES = (
    "answer answers solution solutions canonical_solution target output response completion "
    "short_answer final_answer expected_answer ground_truth"
)
_PROMPTS, _ANSWERS = frozenset(_PROMPT_NAMES.split()), frozenset(_ANSWER_NAMES.split())
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".md", ".txt")
_COMPRESSED = (".gz", ".zst")
_NOT_ITEMS = ("readme", "license", "licence")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark."""

    benchmark: str
    name: str
    """FILE#NUMBER."""
    prompt: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class BenchmarkFile:
    """A file with the benchmark that it belongs to."""

    path: Path
    benchmark: str
    name: str
    """Path below what was given."""


def find_benchmarks(paths: Sequence[str]) -> list[BenchmarkFile]:
    """Return the readable files behind paths, in the order of their names.

    Raises:
        MissingFileError: no such path.
        ConfigError: no readable file.
    """
    found = []
    for given in paths:
        root = Path(given).expanduser()
        if not root.exists():
            raise MissingFileError(
                expected=f"a benchmark file or a folder of them at `{given}`",
                found="nothing",
                fix="Correct `benchmarks`",
            )
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        readable = [path for path in files if _is_readable(path)]
        if not readable:
            raise ConfigError(
                expected=f"files that end in {', '.join((*_SUFFIXES, *_COMPRESSED))}, at `{given}`",
                found=f"{len(files)} other files",
                fix="Choose another path, or convert them to JSON lines",
            )
        found += [_describe(path, root) for path in readable]
    return sorted(found, key=lambda file: (file.benchmark, file.name))


def _is_readable(path: Path) -> bool:
    name = _plain_name(path)
    return name.endswith(_SUFFIXES) and not name.startswith(_NOT_ITEMS)


def _plain_name(path: Path) -> str:
    """Return a file's name in lower case, without the suffix of a compression."""
    name = path.name.lower()
    return name.rpartition(".")[0] if name.endswith(_COMPRESSED) else name


def _describe(path: Path, root: Path) -> BenchmarkFile:
    if path == root:
        return BenchmarkFile(path, path.name.split(".")[0].lower(), path.name)
    parts = path.relative_to(root).parts
    benchmark = parts[0] if len(parts) > 1 else root.resolve().name
    return BenchmarkFile(path, benchmark.lower(), "/".join(parts))


def digest_benchmarks(paths: Sequence[str]) -> str:
    """Return 32 hex digits of the names and contents of all benchmark files.

    Raises:
        MissingFileError, ConfigError: as `find_benchmarks`.
    """
    content = xxhash.xxh3_128()
    for file in find_benchmarks(paths):
        content.update(f"{file.benchmark}\0{file.name}\0".encode())
        content.update(xxhash.xxh3_128_digest(file.path.read_bytes()))
    return content.hexdigest()


def read_items(file: BenchmarkFile) -> Iterator[Item]:
    """Yield the items of a file; none where it holds no questions.

    Raises:
        CorruptFileError: it is not of the kind that its name says.
    """
    for number, (prompt, answer) in enumerate(_pairs(file.path)):
        if prompt.strip():
            yield Item(file.benchmark, f"{file.name}#{number}", prompt, answer)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    name = _plain_name(path)
    try:
        content = b"".join(read_content(path))
        if name.endswith(".parquet"):
            import pyarrow.parquet as parquet

            yield from _walk(parquet.read_table(io.BytesIO(content)).to_pylist())
            return
        text = content.decode("utf-8-sig")
        if name.endswith((".md", ".txt")):
            yield text, ""
        elif name.endswith((".csv", ".tsv")):
            yield from _walk(_read_csv(text, "\t" if name.endswith(".tsv") else ","))
        else:
            yield from _walk(_read_json(text))
    except CorruptFileError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise CorruptFileError(
            expected=f"a whole benchmark file at `{path}`",
            found=str(error)[:200],
            fix="Copy the file again, or leave it out of `benchmarks`",
        ) from error


def _read_json(text: str) -> list[Any]:
    """Return the values of a JSON file, or of JSON lines under whichever name."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        # `splitlines` would also cut at U+2028, which may stand in a JSON string.
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def _read_csv(text: str, delimiter: str) -> Iterable[dict[str, Any]]:
    # A field may be a whole solution; the module's own limit is 131,072 characters.
    csv.field_size_limit(1 << 24)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def _walk(value: Any) -> Iterator[tuple[str, str]]:
    """Yield question and answer of everything below a value that has a question's name."""
    if isinstance(value, dict):
        fields = {str(name).strip().lower().replace(" ", "_"): one for name, one in value.items()}
        prompts = [_text(one) for name, one in fields.items() if name in _PROMPTS]
        if any(prompts):
            answers = [_text(one) for name, one in fields.items() if name in _ANSWERS]
            yield "\n".join(filter(None, prompts)), "\n".join(filter(None, answers))
            return
        for one in fields.values():
            yield from _walk(one)
    elif isinstance(value, str):
        return
    elif isinstance(value, Iterable):
        parts = list(value)
        if parts and all(isinstance(one, str) for one in parts):
            yield parts[0], "\n".join(parts[1:])
            return
        for one in parts:
            yield from _walk(one)


def _text(value: Any) -> str:
    """Return what a field says: a string, a message's content, or all of a list or table."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        said = next((value[name] for name in ("content", "text") if name in value), None)
        parts = [said] if said is not None else list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        return "" if value is None else str(value)
    return "\n".join(filter(None, map(_text, parts)))
