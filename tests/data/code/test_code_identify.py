"""Languages by name, first line, ending and content; repair of planted mislabels."""

# A row of a table is one line, however long.
# ruff: noqa: E501

import sysconfig
from pathlib import Path

import pytest

from fivefold.data.code.identify import identify
from fivefold.data.code.language import BY_ENDING, LANGUAGES

STDLIB = Path(sysconfig.get_path("stdlib"))
HEADERS = Path(sysconfig.get_path("include"))

SAMPLES = {
    "python": "import os\n\n\ndef run(path):\n    for name in os.listdir(path):\n        print(name)\n",
    "c": "#include <stdio.h>\n\nint main(void) {\n    struct node *n = first();\n    n->next = 0;\n}\n",
    "cpp": "#include <vector>\nnamespace a {\nclass Row {\npublic:\n  std::vector<int> x;\n};\n}\n",
    "objective-c": "#import <Foundation/Foundation.h>\n@interface Row : NSObject\n- (void)run;\n@end\n",
    "matlab": "function y = area(r)\n% area of a circle\ny = pi .* r;\nend\n",
    "perl": "use strict;\nuse warnings;\nmy $x = shift;\nsub run {\n  return $x->{name};\n}\n",
    "prolog": ":- module(family, [parent/2]).\nparent(ann, bob).\nelder(X, Y) :-\n    parent(X, Y).\n",
    "typescript": "export interface Row {\n  name: string;\n  size?: number;\n}\n",
    "xml": '<?xml version="1.0"?>\n<TS version="2.1">\n<context>\n</context>\n</TS>\n',
    "verilog": "module counter(input clk);\n  reg [3:0] n;\n  always @(posedge clk) n <= n + 1;\nendmodule\n",
    "coq": "Require Import Arith.\nTheorem plus_zero : forall n, n + 0 = n.\nProof.\nQed.\n",
    "rust": "use std::fs;\n\npub fn run(path: &str) -> usize {\n    let mut n = 0;\n    n\n}\nimpl Row {\n}\n",
    "go": 'package main\n\nimport (\n\t"fmt"\n)\n\nfunc main() {\n\tx := 1\n\tfmt.Println(x)\n}\n',
    "java": "package org.site;\n\nimport java.util.List;\n\npublic class Row {\n}\n",
    "scala": "import scala.util._\nobject Main {\n  def run(x: Int): Int = {\n    val y = x\n    y\n  }\n}\n",
    "lua": "local M = {}\nlocal function run(x)\n  if x ~= nil then\n    return x\n  end\nend\nreturn M\n",
    "ruby": "require 'json'\nmodule Site\n  def run\n    rows.each do |row|\n    end\n  end\nend\n",
    "shell": "set -e\nif [ -f a ]; then\n  echo $HOME\nfi\nexport PATH=/bin\n",
    "kotlin": "data class Row(val x: Int)\nfun run(x: Int) {\n    val y: Int = x\n}\nfun go(x: Int) {}\n",
    "swift": "import Foundation\nfunc run(x: Int) -> Int {\n  guard let y = find(x) else { return 0 }\n}\n",
}  # fmt: skip


@pytest.mark.parametrize("language", sorted(SAMPLES))
def test_shared_endings_are_told_apart_by_content(language: str):
    for ending in LANGUAGES[language].endings:
        if len(BY_ENDING[ending]) > 1:
            assert identify(f"src/row{ending}", SAMPLES[language]).language == language


@pytest.mark.parametrize("language", sorted(set(SAMPLES) - {"xml", "objective-c", "matlab"}))
def test_files_without_an_ending_are_named_by_content(language: str):
    found = identify("bin/run", SAMPLES[language] * 3)
    assert (found.language, found.by) == (language, "content")


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("run", "#!/usr/bin/env python3.11\nx = 1\n", ("python", "shebang")),
        ("run", "#!/bin/sh -e\necho\n", ("shell", "shebang")),
        ("run", "#!/usr/bin/env -S node --harmony\nx\n", ("javascript", "shebang")),
        ("row.inc", "// -*- mode: C++ -*-\nint x;\n", ("cpp", "modeline")),
        ("row", "x = 1\n# vim: set ft=ruby :\n", ("ruby", "modeline")),
        ("Makefile", "all:\n", ("makefile", "name")),
        ("a/CMakeLists.txt", "project(x)\n", ("cmake", "name")),
        ("a/row.rs", "\n", ("rust", "ending")),
        ("a/data.bin", "nothing that speaks\n", ("", "nothing")),
    ],
)
def test_the_surest_sign_decides(path: str, text: str, expected: tuple[str, str]):
    found = identify(path, text)
    assert (found.language, found.by) == expected


def test_planted_mislabels_are_repaired():
    files = [path for path in sorted(STDLIB.glob("*.py")) if path.stat().st_size > 4000][10:40:2]
    for ending, named in ((".rs", "rust"), (".java", "java")):
        found = [identify(path.stem + ending, path.read_text("utf-8")) for path in files]
        assert sum(one.language == "python" for one in found) >= 0.9 * len(files)
        assert {one.overruled for one in found if one.by == "content"} == {named}


def test_right_labels_are_never_overruled():
    files = [*sorted(STDLIB.glob("*.py"))[:150], *sorted(HEADERS.rglob("*.h"))]
    assert len(files) > 200
    for path in files:
        found = identify(path.name, path.read_text("utf-8", errors="replace"))
        expected = {"python"} if path.suffix == ".py" else {"c", "cpp"}
        assert found.language in expected, path
        assert not found.overruled


def test_data_and_prose_do_not_overrule_a_name():
    assert identify("row.py", '{"a": 1}\n' * 20).language == "python"
    assert identify("row.json", SAMPLES["python"] * 5).language == "json"


def test_every_language_has_a_way_to_be_known():
    for language in LANGUAGES.values():
        assert language.endings or language.names or language.interpreters
