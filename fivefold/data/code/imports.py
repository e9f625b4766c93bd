"""Which files of a repository a file imports, and the order that puts what is imported first.

Imports are read by patterns for Python, C and its kin, JavaScript and TypeScript, Java and its kin,
Rust, Ruby, Lua and Go, and resolved against the paths that the repository has; what is not in it
does not count. DeepSeek-Coder (arXiv:2401.14196, section 2.2) orders the same way: of the files
that are left, the one with the fewest imports still unmet comes next, so that cycles need no rule
of their own.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from posixpath import normpath

_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<base>\.*[\w.]*)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n#;]+)"
    r"|c?import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)
_QUOTED: Mapping[str, re.Pattern[str]] = {
    "c": re.compile(r"^[ \t]*#[ \t]*include[ \t]*[\"<]([^\">\n]+)[\">]", re.MULTILINE),
    "script": re.compile(
        r"(?:\bfrom[ \t]*|\brequire\([ \t]*|\bimport[ \t]*\(?[ \t]*)[\"'](\.[^\"'\n]*)[\"']"
    ),
    "java": re.compile(r"^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.]+)", re.MULTILINE),
    "rust": re.compile(r"^[ \t]*(?:pub[ \t]+)?mod[ \t]+(\w+)[ \t]*;", re.MULTILINE),
    "ruby": re.compile(r"^[ \t]*require(?:_relative)?[ \t(]*[\"']([^\"'\n]+)[\"']", re.MULTILINE),
    "lua": re.compile(r"\brequire[ \t(]*[\"']([\w./-]+)[\"']"),
    "go": re.compile(r"^[ \t]*(?:import[ \t]+)?(?:\w+[ \t]+)?\"([\w./-]+)\"[ \t]*$", re.MULTILINE),
}
_KIN = {
    **dict.fromkeys(("c", "cpp", "cuda", "objective-c"), "c"),
    **dict.fromkeys(("javascript", "typescript"), "script"),
    **dict.fromkeys(("java", "kotlin", "scala", "groovy"), "java"),
    **{name: name for name in ("rust", "ruby", "lua", "go")},
}
_SCRIPT_ENDINGS = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", "/index.ts", "/index.js")


class PathIndex:
    """The paths of a repository, found by how their names end."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Take all paths."""
        self.paths = set(paths)
        self._ends: defaultdict[str, list[str]] = defaultdict(list)
        self._folders: defaultdict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths):
            self._ends[PurePosixPath(path).name].append(path)
            self._folders[str(PurePosixPath(path).parent)].append(path)

    def ending(self, tail: str, near: str = "") -> str:
        """Return the path that ends in these components; of several the nearest, then the first."""
        name = PurePosixPath(tail).name
        found = [
            path for path in self._ends.get(name, ()) if path == tail or path.endswith(f"/{tail}")
        ]
        return min(found, key=lambda path: (_distance(path, near), path), default="")

    def folder(self, tail: str, ending: str) -> list[str]:
        """Return the files with this ending in folders that end in these components."""
        return [
            path
            for folder, paths in self._folders.items()
            if folder == tail or folder.endswith(f"/{tail}")
            for path in paths
            if path.endswith(ending)
        ]


def _distance(path: str, near: str) -> int:
    one, other = PurePosixPath(path).parts[:-1], PurePosixPath(near).parts[:-1]
    shared = sum(1 for a, b in zip(one, other, strict=False) if a == b)
    return len(one) + len(other) - 2 * shared


def imported_paths(path: str, text: str, language: str, index: PathIndex) -> list[str]:
    """Return the repository's files that a file imports, in order, itself left out."""
    if language in ("python", "cython"):
        found = _python_paths(path, text, index)
    elif language in _KIN:
        kin = _KIN[language]
        found = [
            target
            for name in _QUOTED[kin].findall(text)
            for target in _resolve(kin, name, path, index)
        ]
    else:
        return []
    return [one for one in dict.fromkeys(found) if one and one != path]


def _resolve(kin: str, name: str, path: str, index: PathIndex) -> list[str]:
    folder = str(PurePosixPath(path).parent)
    beside = normpath(f"{folder}/{name}").removeprefix("./")
    if kin == "c":
        return [beside if beside in index.paths else index.ending(normpath(name), path)]
    if kin == "script":
        return [next((beside + e for e in _SCRIPT_ENDINGS if beside + e in index.paths), "")]
    if kin == "java":
        tail = name.replace(".", "/")
        return [index.ending(f"{tail}.{e}", path) for e in ("java", "kt", "scala", "groovy")]
    if kin == "rust":
        stem = PurePosixPath(path).stem
        roots = (folder, f"{folder}/{stem}")
        options = [normpath(f"{r}/{name}{e}") for r in roots for e in (".rs", "/mod.rs")]
        return [next((one for one in options if one in index.paths), "")]
    if kin == "ruby":
        one = f"{beside}.rb".replace(".rb.rb", ".rb")
        return [one if one in index.paths else index.ending(f"{normpath(name)}.rb", path)]
    if kin == "lua":
        return [index.ending(f"{name.replace('.', '/')}.lua", path)]
    return index.folder("/".join(name.split("/")[-2:]), ".go") if "/" in name else []


def _python_paths(path: str, text: str, index: PathIndex) -> list[str]:
    found: list[str] = []
    for match in _PYTHON.finditer(text):
        if match["modules"]:
            modules = [part.split()[0] for part in match["modules"].split(",") if part.split()]
            found += [_python_module(name, path, index) for name in modules]
            continue
        base = match["base"]
        names = [
            part.split()[0] for part in match["names"].strip("() \t").split(",") if part.split()
        ]
        prefix = f"{base}." if base.strip(".") else base
        inner = [_python_module(prefix + name, path, index) for name in names]
        found += [one for one in inner if one]
        if not all(inner):
            found.append(_python_module(base, path, index))
    return found


def _python_module(name: str, path: str, index: PathIndex) -> str:
    """Return the file of a module; relative names from the folder of `path`."""
    dots = len(name) - len(name.lstrip("."))
    tail = name.lstrip(".").replace(".", "/")
    if not dots:
        return (
            _first(index, (f"{tail}.py", f"{tail}/__init__.py", f"{tail}.pyx"), path)
            if tail
            else ""
        )
    folder = PurePosixPath(path).parent
    for _ in range(dots - 1):
        folder = folder.parent
    options = (f"{tail}.py", f"{tail}/__init__.py", f"{tail}.pyx") if tail else ("__init__.py",)
    places = [str(folder / option) for option in options]
    return next((one for one in places if one in index.paths), "")


def _first(index: PathIndex, tails: Sequence[str], near: str) -> str:
    return next((found for tail in tails if (found := index.ending(tail, near))), "")


def dependency_order(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the paths so that imports come first where they can.

    Next is the path with the fewest imports not yet placed; of equal ones the first by name.
    """
    unmet = {path: set(targets) & imports.keys() - {path} for path, targets in imports.items()}
    users: defaultdict[str, list[str]] = defaultdict(list)
    for path, targets in unmet.items():
        for target in targets:
            users[target].append(path)
    queue = [(len(targets), path) for path, targets in unmet.items()]
    heapq.heapify(queue)
    order: list[str] = []
    placed: set[str] = set()
    while queue:
        count, path = heapq.heappop(queue)
        if path in placed or count != len(unmet[path]):
            continue
        placed.add(path)
        order.append(path)
        for user in users[path]:
            unmet[user].discard(path)
            heapq.heappush(queue, (len(unmet[user]), user))
    return order
