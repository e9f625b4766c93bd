"""Issue sequences: what links a change, what is packed, and that the fix is never in the base."""

# A row of a table is one line, however long.

import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from math import log
from pathlib import Path

import pytest
from code_builder import Repository, python_text
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.code.config import IssueConfig, SecretConfig
from fivefold.data.code.diff import changed_lines, file_diff, split_lines
from fivefold.data.code.git import Change, FileChange, GitRepository
from fivefold.data.code.issue import IssueMiner, Outcome, part_texts
from fivefold.data.code.link import Issue, find_link, read_dump
from fivefold.data.code.retrieve import bm25, is_test, rank_files, words_of
from fivefold.data.document import Document
from fivefold.errors import CorruptFileError, MissingFileError

TOKEN = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT" * 2
FIXED = "    if not rows:\n        return 0\n"


def source(fix: str = "", key: str = TOKEN) -> str:
    return (
        python_text(1)
        + f'\n\nKEY = "{key}"\n\n\ndef count_rows(rows):\n'
        + f'    """Count."""\n{fix}    return len(rows)\n'
    )


BASE = {
    "README.md": "# Site\n\nCounts rows of tables.\n",
    "site/rows.py": source(),
    "site/table.py": python_text(2, imports="from site.rows import count_rows\n"),
    "site/unrelated.py": python_text(3),
    "tests/test_rows.py": "def test_count():\n    assert True\n",
    "CHANGES.md": "old\n",
}
FIX = {
    "site/rows.py": source(FIXED),
    "tests/test_rows.py": "def test_count():\n    rows = None\n    assert count_rows(rows) == 0\n",
    "CHANGES.md": "count_rows takes None\n",
}
MESSAGE = """Rows may be missing

A table without rows gave a TypeError in count_rows, for rows is None there.

Fixes #12
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "site")
    made.commit("Begin", BASE)
    return made


def mine(
    repository: Repository, dump: Mapping[int, Issue] | None = None, **fields: object
) -> list[Outcome]:
    """Return the outcomes of all changes, the newest first."""
    reader = GitRepository(repository.root)
    with reader.contents() as contents:
        config = IssueConfig(**{"min_words": 5, **fields})
        miner = IssueMiner(reader, "site", contents, dump or {}, config, SecretConfig())
        return [miner.mine(change) for change in reader.history(100)]


def newest(repository: Repository, **facts) -> Document:
    document = mine(repository, **facts)[0].document
    assert document is not None
    return document


def apply(document: Document, folder: Path) -> dict[str, str]:
    """Write the packed base files, apply the packed diffs with git, return what comes out."""
    for path, text in part_texts(document, "touched").items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    for role in ("diff", "tests"):
        for text in part_texts(document, role).values():
            _, _, patch = text.partition("\n")
            subprocess.run(
                ["git", "apply", "--whitespace=nowarn", "-"],
                input=patch.encode(),
                cwd=folder,
                check=True,
                capture_output=True,
            )
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes().decode() for f in files}


def test_diffs_apply_to_the_packed_base_files(repository: Repository, tmp_path: Path):
    repository.commit(MESSAGE, FIX)
    document = newest(repository)
    found = apply(document, tmp_path / "applied")
    assert found == {
        "site/rows.py": source(FIXED, "REDACTED_GITHUB"),
        "tests/test_rows.py": FIX["tests/test_rows.py"],
    }


def test_the_base_never_contains_the_fix(repository: Repository):
    repository.commit(MESSAGE, FIX)
    later = {
        "site/count_rows_later.py": python_text(9) + "# count_rows\n",
        "site/rows.py": source(FIXED) + "# later\n",
    }
    repository.commit("Later, see #13 which asks for words on what comes later", later)
    outcomes = mine(repository)
    document = outcomes[1].document
    assert document is not None
    context = part_texts(document, "touched") | part_texts(document, "retrieved")
    assert context["site/rows.py"] == source(key="REDACTED_GITHUB")
    tree = repository.git("ls-tree", "-r", "--name-only", document.meta["base"]).split("\n")
    assert set(context) <= set(tree)
    before_diff = document.text.split("<diff>")[0]
    assert FIXED not in before_diff
    assert FIXED.strip() in document.text.split("<diff>")[1].replace("+", "")
    # What tells of the fix is neither context nor part of the diff.
    assert "CHANGES" not in document.text


def test_secrets_are_scrubbed_on_both_sides(repository: Repository):
    changed = source(FIXED, key=TOKEN[:-4] + "Zz9x")
    repository.commit(MESSAGE + f"\nthe key was {TOKEN}\n", {"site/rows.py": changed})
    outcome = mine(repository)[0]
    assert outcome.document
    assert TOKEN[:12] not in outcome.document.text
    assert "Zz9x" not in outcome.document.text
    assert {edit.reason for edit in outcome.edits} == {"secret.github"}


def test_parts_are_where_meta_says(repository: Repository):
    repository.commit(MESSAGE, FIX)
    document = newest(repository)
    roles = [part["role"] for part in document.meta["parts"]]
    assert sorted(set(roles)) == ["diff", "issue", "pull_request", "retrieved", "tests", "touched"]
    assert part_texts(document, "issue")[""].startswith("<issue> #12 Rows may be missing\n")
    for path, text in (part_texts(document, "touched") | part_texts(document, "retrieved")).items():
        assert f"<file> {path}\n{text}" in document.text
    assert document.meta["linked_by"] == "fixes"
    assert document.lang == "python"
    # The importer of the touched module and the readme are found.
    assert {"site/table.py", "README.md"} <= set(part_texts(document, "retrieved"))


def test_budget_holds_and_only_retrieved_files_are_left_out(repository: Repository):
    repository.commit(MESSAGE, FIX)
    whole = newest(repository)
    fixed = len(whole.text) - sum(map(len, part_texts(whole, "retrieved").values()))
    small = newest(repository, max_characters=fixed + 300)
    assert len(small.text) <= fixed + 300
    assert part_texts(small, "touched") == part_texts(whole, "touched")
    assert len(part_texts(small, "retrieved")) < len(part_texts(whole, "retrieved"))
    assert mine(repository, max_characters=1000)[0].reason == "issue.too_long"


def test_variants_are_drawn_by_the_commit_alone(repository: Repository):
    for number in range(12):
        fix = source(f"    if rows == {number}:\n        return {number}\n    rows = rows\n")
        repository.commit(MESSAGE.replace("#12", f"#{number + 1}"), {"site/rows.py": fix})
    texts = [outcome.document.text for outcome in mine(repository) if outcome.document]
    assert len(texts) == 12
    assert texts == [outcome.document.text for outcome in mine(repository) if outcome.document]
    first = ["issue" if t.find("<issue>") < t.find("<file>") else "files" for t in texts]
    assert set(first) == {"issue", "files"}
    only = mine(repository, files_first_share=1.0)
    assert all(
        o.document.text.find("<file>") < o.document.text.find("<issue>")
        for o in only[:12]
        if o.document
    )


def test_each_change_that_is_left_out_has_its_reason(repository: Repository):
    planted = [
        ("no_link", "Tidy up the rows for all of us", {"site/rows.py": source("    x = 1\n" * 3)}),
        ("bot", MESSAGE, {"site/rows.py": source("    x = 2\n" * 3)}),
        ("no_source", MESSAGE, {"README.md": "# Other\n"}),
        ("no_source", MESSAGE, {"tests/test_rows.py": "x = 1\ny = 2\nz = 3\n"}),
        ("many_files", MESSAGE, {f"site/n{i}.py": python_text(i) for i in range(11)}),
        ("small_change", MESSAGE, {"site/table.py": BASE["site/table.py"] + "#\n"}),
        ("large_change", MESSAGE, {"site/big.py": "x = 1\n" * 1001}),
        ("few_words", "See #4", {"site/rows.py": source("    x = 3\n" * 3)}),
        ("unreadable", MESSAGE, {"site/latin.py": b"# \xff\nx = 1\n"}),
        ("no_file", MESSAGE, {"site/a\tb.py": "x = 1\n" * 4}),
    ]
    for reason, message, files in planted:
        author = "dependabot[bot] <x@y.z>" if reason == "bot" else ""
        repository.commit(message, files, author)
    reasons = [outcome.reason for outcome in mine(repository)][::-1]
    assert reasons == ["issue.no_base", *(f"issue.{reason}" for reason, _, _ in planted)]


def test_merged_branches_are_one_change(repository: Repository):
    repository.git("checkout", "-q", "-b", "fix")
    repository.commit("first half", {"site/rows.py": source(FIXED)})
    repository.commit("second half", {"tests/test_rows.py": FIX["tests/test_rows.py"]})
    repository.git("checkout", "-q", "main")
    repository.merge(
        "fix", "Merge pull request #34 from ann/fix\n\nTake tables without any rows\n\nCloses #33"
    )
    outcome = mine(repository)[0]
    assert outcome.document
    assert (outcome.document.meta["issue"], outcome.document.meta["pull"]) == (33, 34)
    assert set(part_texts(outcome.document, "touched")) == {"site/rows.py", "tests/test_rows.py"}
    assert "<pull_request> #34 Take tables without any rows" in outcome.document.text


def test_fragments_describe_and_are_not_in_the_diff(repository: Repository):
    words = "Fixed a crash of ``count_rows``: tables may be without rows now.\n"
    repository.commit("Rows (#34)", {**FIX, "changelog/33.bugfix.rst": words})
    document = newest(repository, without_text_share=0.0)
    assert document.meta["kind"] == "bugfix"
    assert document.meta["issue"] == 33
    assert "without rows now" in part_texts(document, "issue")[""]
    assert "changelog" not in document.text


def test_a_dump_gives_the_issue_and_its_date(repository: Repository, tmp_path: Path):
    repository.commit(MESSAGE, FIX)
    dump = tmp_path / "issues.jsonl"
    row = (
        '{"repository": "site", "number": 12, "title": "Crash on empty", "body": '
        '"It says: no len of None here", "comments": ["same for me"], "created": "%s"}\n'
    )
    dump.write_text(row % "2020-01-01" + row.replace('"site"', '"x"') % "")
    issues = read_dump(str(dump), "site")
    assert list(issues) == [12]
    text = part_texts(newest(repository, dump=issues), "issue")[""]
    assert text == "<issue> #12 Crash on empty\nIt says: no len of None here\nsame for me\n"
    dump.write_text(row % "2031-01-01")
    assert mine(repository, read_dump(str(dump), "site"))[0].reason == "issue.created_after"
    committed = datetime.fromisoformat(next(GitRepository(repository.root).history(1)).date)
    for minutes, zone, reason in ((-1, 14, ""), (1, -12, "issue.created_after")):
        moment = committed + timedelta(minutes=minutes)
        created = moment.astimezone(timezone(timedelta(hours=zone))).isoformat()
        dump.write_text(row % created)
        assert mine(repository, read_dump(str(dump), "site"))[0].reason == reason
    dump.write_text('{"number": 1}\n')
    with pytest.raises(CorruptFileError, match="line 1"):
        read_dump(str(dump), "site")
    with pytest.raises(MissingFileError, match="dump"):
        read_dump(str(tmp_path / "none"), "site")


def change(message: str, *added: str) -> Change:
    files = [FileChange(path, "000000", "100644", "", "b" * 40) for path in added]
    return Change("c", "b", False, "Ann", "a@b.c", "2020", message, files)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (change("Fix it\n\nFixes #5"), (5, "fixes", None)),
        (change("Fix it\n\ncloses: #5 and #6"), (5, "fixes", None)),
        (change("fix #5 - a crash (#9)"), (5, "fixes", 9)),
        (change("A crash, #5 (#9)"), (5, "subject", 9)),
        (change("A crash (#9)\n\nsee #5"), (5, "mention", 9)),
        (change("A crash (#9)\n\nof a kind"), (9, "subject", 9)),
        (change("Merge pull request #9 from a/b\n\nA crash\n\nResolves #5"), (5, "fixes", 9)),
        (change("Merge pull request #9 from a/b\n\nA crash"), (9, "subject", 9)),
        (change("A crash (#9)", "changelog/5.bugfix.rst"), (5, "fragment", 9)),
        (change("A crash", "newsfragments/5.feature.2.md"), (5, "fragment", None)),
        (change("A crash"), None),
        (change("Colour is a#123456 and x/#4"), None),
    ],
)
def test_links(made: Change, expected: tuple | None):
    link = find_link(made)
    assert (link and (link.issue, link.by, link.pull)) == expected


def test_an_answer_that_was_cut_short_is_not_taken_for_the_next(repository: Repository):
    reader = GitRepository(repository.root)
    files = {file.path: file.blob for file in reader.tree(reader.head())}
    with reader.contents() as contents:
        questions, answers = contents._pipes()
        questions.write(f"{files['README.md']}\n".encode())
        questions.flush()
        answers.read(3)
        contents._is_asking = True
        assert contents.read(files["CHANGES.md"]) == b"old\n"
        with pytest.raises(CorruptFileError, match="no object"):
            contents.read("0" * 40)
        assert contents.read(files["README.md"]).startswith(b"# Site")


LINES = st.lists(
    st.sampled_from(["a", "b", "", " ", "-- c", "++ d", "@@ e", "\x0c", "\u2028", "\r"]), max_size=8
)
SIDES = st.tuples(LINES, st.booleans()).map(
    lambda p: "\n".join(p[0]) + "\n" * (p[1] and bool(p[0]))
)


@settings(max_examples=40)
@given(st.one_of(st.none(), SIDES), st.one_of(st.none(), SIDES))
def test_git_applies_our_diffs(
    tmp_path_factory: pytest.TempPathFactory, old: str | None, new: str | None
):
    if old == new:
        return
    folder = tmp_path_factory.mktemp("apply")
    file = folder / "a b.py"
    if old is not None:
        file.write_bytes(old.encode())
    patch = file_diff("a b.py", old, new)
    subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"], input=patch.encode(), cwd=folder, check=True
    )
    assert (file.read_bytes().decode() if file.exists() else None) == new
    assert changed_lines(patch) >= abs(len(split_lines(old or "")) - len(split_lines(new or "")))


def test_bm25_by_closed_form():
    scores = bm25(["row"], [["row", "row", "x"], ["x"]])
    rarity, mean = log(1 + 1.5 / 1.5), 2.0
    assert scores == pytest.approx([rarity * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / mean)), 0.0])
    assert bm25(["row"], []) == []


def test_what_the_issue_names_comes_first():
    paths = [f"src/module_{i}.py" for i in range(30)] + [
        "src/http_reader.py",
        "tests/test_row.py",
        "README.md",
    ]
    texts = {path: ["other"] for path in paths} | {"src/module_7.py": ["timeout", "socket"]}
    touched = {"src/row.py": ("python", "from . import module_3\n")}
    ranked = rank_files(
        "HttpReader: timeout of the socket in module", paths, touched, texts.__getitem__, 40
    )
    extra = {"src/module_3.py", "tests/test_row.py", "README.md"}
    assert next(path for path in ranked if path not in extra) == "src/module_7.py"
    assert extra <= set(ranked)
    assert rank_files("nothing of it", paths, {}, texts.__getitem__, 40) == ["README.md"]
    assert words_of("readHTTPFile_now 42") == ["read", "http", "file", "now"]


@pytest.mark.parametrize(
    "path", ["tests/a.py", "a/test_b.py", "src/b_test.go", "a/FooTest.java", "spec/a.rb"]
)
def test_tests_are_known_by_their_paths(path: str):
    assert is_test(path)
    assert not is_test("src/contest.py")
    assert not is_test("src/latest/a.py")
