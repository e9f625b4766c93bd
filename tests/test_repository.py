"""The house rules that no tool checks: docstrings, file sizes, names, rooms, nothing private."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fivefold"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 600
MOST_SPINE_LINES = 350


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def tracked_files() -> list[Path]:
    """Return what a checkout holds, or skip where there is no git."""
    try:
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def mentioned_paths(page: Path) -> set[str]:
    """Return the repository paths that a page of `docs/` names, in code marks or links."""
    text = page.read_text(encoding="utf-8")
    candidates = re.findall(r"`([\w./-]+/[\w./-]+)`|\]\(([\w./-]+/[\w./-]+)\)", text)
    names = {code or link.removeprefix("../") for code, link in candidates}
    return {name for name in names if re.match(r"(fivefold|tests|docs|benchmarks)/", name)}


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_module_begins_with_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(parsed(path))
    assert docstring
    assert not docstring[0].islower()
    assert len(docstring) > 20


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=named)
def test_init_file_is_a_tour_without_exports(path: Path) -> None:
    tour, *rest = parsed(path).body
    assert isinstance(tour, ast.Expr)
    if path.parent == PACKAGE:
        (version,) = rest
        assert isinstance(version, ast.Assign)
        assert ast.unparse(version.targets[0]) == "__version__"
    else:
        assert rest == []


def test_tour_of_a_room_names_existing_modules_only() -> None:
    for init in PACKAGE.glob("*/__init__.py"):
        tour = ast.get_docstring(parsed(init)) or ""
        listing = tour.partition("Reading order:")[2].partition(".")[0]
        modules = set(re.findall(r"`(\w+)`", listing))
        known = {path.stem for path in init.parent.glob("*.py")} | {
            path.name for path in init.parent.iterdir() if path.is_dir()
        }
        assert modules <= known, f"{named(init)}: {sorted(modules - known)}"


@pytest.mark.parametrize("path", sorted([*SOURCES, *(ROOT / "tests").rglob("*.py")]), ids=named)
def test_file_is_not_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_spine_files_exist_and_are_short() -> None:
    page = ROOT / "docs" / "spine.md"
    if not page.exists():
        pytest.skip("no docs/spine.md")
    files = [ROOT / name for name in mentioned_paths(page) if name.endswith(".py")]
    assert files
    for path in files:
        assert path.is_file(), named(path)
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_SPINE_LINES, named(path)


def test_paper_map_points_to_what_exists() -> None:
    page = ROOT / "docs" / "paper_map.md"
    if not page.exists():
        pytest.skip("no docs/paper_map.md")
    names = mentioned_paths(page)
    assert names
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_no_file_is_named_after_nothing() -> None:
    empty = re.compile(r"(^|_)(utils?|common|helpers?|misc|base|new|old|v2|tmp)(_|$)")
    paths = [path for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts]
    assert [named(path) for path in paths if empty.search(path.stem)] == []


def test_every_room_has_its_place_in_the_layers() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    placed = [name.strip() for layer in layers for name in re.split(r"[|:]", layer)]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(placed) == len(set(placed))
    assert set(placed) == rooms | modules


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {path.parent for path in SOURCES}
    assert [named(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_nothing_of_one_machine_is_in_the_repository() -> None:
    home = re.compile(
        r"/(?:home|Users)/(?!you\b|me\b|user\b)\w+/|/root/|/work/|/tmp/pytest"
        r"|https?://[\w.-]*(?:pypi|mirror|registry|nexus|artifactory)[\w.-]*/",
        re.IGNORECASE,
    )
    found = []
    for path in tracked_files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{named(path)}: {match.group()}" for match in home.finditer(text)]
    assert found == []


def test_no_notes_to_oneself_are_left_in_the_code() -> None:
    note = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
    sources = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    for path in sources:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not note.search(line) or path.name == Path(__file__).name, (
                f"{named(path)}:{number}"
            )


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_readme_is_finished_and_its_links_resolve() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if line.isupper() and line.isalpha()]
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
