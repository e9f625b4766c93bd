"""Imports found in the repository, and the order in which nothing comes before what it needs."""

# A row of a table is one line, however long.
# ruff: noqa: E501

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.code.imports import PathIndex, dependency_order, imported_paths

PATHS = (
    "src/site/__init__.py",
    "src/site/row.py",
    "src/site/sub/__init__.py",
    "src/site/sub/deep.py",
    "src/row.h",
    "include/site/table.hpp",
    "web/app.ts",
    "web/lib/index.ts",
    "web/lib/row.js",
    "java/org/site/Row.java",
    "kt/org/site/Cell.kt",
    "rs/lib.rs",
    "rs/row/mod.rs",
    "rs/cell.rs",
    "rb/lib/row.rb",
    "lua/site/row.lua",
    "go/pkg/row/a.go",
    "go/pkg/row/b.go",
    "other/row.py",
)


@pytest.mark.parametrize(
    ("path", "language", "text", "expected"),
    [
        ("src/site/sub/deep.py", "python", "from ..row import a, b\n", ["src/site/row.py"]),
        ("src/site/sub/deep.py", "python", "from .. import row\n", ["src/site/row.py"]),
        ("src/site/main.py", "python", "import site.sub.deep as d, os\n", ["src/site/sub/deep.py"]),
        ("src/site/main.py", "python", "from site.sub import (\n deep,\n)\n", ["src/site/sub/deep.py"]),
        ("src/site/main.py", "python", "from site.sub import name\n", ["src/site/sub/__init__.py"]),
        ("src/site/main.py", "python", "import numpy\nfrom re import sub\n", []),
        ("src/site/x.py", "python", "import row\n", ["src/site/row.py"]),
        ("src/main.c", "c", '#include "row.h"\n#include <stdio.h>\n', ["src/row.h"]),
        ("src/main.cpp", "cpp", "#include <site/table.hpp>\n", ["include/site/table.hpp"]),
        ("web/app.ts", "typescript", "import {a} from './lib';\n", ["web/lib/index.ts"]),
        ("web/app.ts", "javascript", "const r = require('./lib/row.js')\n", ["web/lib/row.js"]),
        ("java/M.java", "java", "import org.site.Row;\nimport java.util.List;\n", ["java/org/site/Row.java"]),
        ("kt/M.kt", "kotlin", "import org.site.Cell\n", ["kt/org/site/Cell.kt"]),
        ("rs/lib.rs", "rust", "mod row;\npub mod cell;\n", ["rs/row/mod.rs", "rs/cell.rs"]),
        ("rb/main.rb", "ruby", "require_relative 'lib/row'\n", ["rb/lib/row.rb"]),
        ("lua/main.lua", "lua", "local r = require('site.row')\n", ["lua/site/row.lua"]),
        ("go/main.go", "go", 'import (\n\t"site.org/pkg/row"\n\t"fmt"\n)\n', ["go/pkg/row/a.go", "go/pkg/row/b.go"]),
        ("a.sql", "sql", "select 1", []),
    ],
)  # fmt: skip
def test_imports_are_resolved(path: str, language: str, text: str, expected: list[str]):
    assert imported_paths(path, text, language, PathIndex(PATHS)) == expected


GRAPHS = st.integers(1, 6).flatmap(
    lambda n: st.fixed_dictionaries(
        {f"f{i}": st.sets(st.sampled_from([f"f{j}" for j in range(n)] + ["out"])) for i in range(n)}
    )
)


def literal_order(imports: dict[str, set[str]]) -> list[str]:
    """Choose again and again among all files that are left."""
    left, order = set(imports), []
    while left:
        unmet = {path: len((imports[path] & left) - {path}) for path in left}
        chosen = min(left, key=lambda path: (unmet[path], path))
        order.append(chosen)
        left.remove(chosen)
    return order


@given(GRAPHS)
def test_order_is_that_of_the_literal_version(imports: dict[str, set[str]]):
    assert dependency_order(imports) == literal_order(imports)


@given(GRAPHS)
def test_where_an_order_without_a_breach_exists_it_is_found(imports: dict[str, set[str]]):
    def breaches(order: tuple[str, ...] | list[str]) -> int:
        place = {path: i for i, path in enumerate(order)}
        return sum(
            place[target] > place[path]
            for path, targets in imports.items()
            for target in targets
            if target in place
        )

    if min(breaches(order) for order in permutations(imports)) == 0:
        assert breaches(dependency_order(imports)) == 0


def test_order_does_not_depend_on_how_files_are_given():
    imports = {"b": ["a"], "a": [], "c": ["b", "d"], "d": ["c"]}
    expected = dependency_order(imports)
    for names in permutations(imports):
        assert dependency_order({name: imports[name] for name in names}) == expected
